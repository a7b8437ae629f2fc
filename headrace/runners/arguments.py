"""Checks what a runner is given, before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headrace.agents.base import Agent
from headrace.algos.base import Algo
from headrace.runners.callbacks import Callback
from headrace.runners.config import RunnerConfig
from headrace.samplers.base import BaseSampler

__all__ = ["require_arguments"]

#: The positional arguments of every runner, in order, and their classes.
_KINDS: dict[str, type] = {"algo": Algo, "agent": Agent, "sampler": BaseSampler, "config": RunnerConfig}


def require_arguments(runner: str, given: Sequence[Any], callbacks: Sequence[Any]) -> None:
    """Raises TypeError, which says what stands where, for arguments of a wrong class or an agent that does not fit.

    Args:
        runner: name of the class of the runner.
        given: algorithm, agent, sampler and config.
        callbacks: the callbacks.
    """
    wrong = [
        (name, kind, value)
        for (name, kind), value in zip(_KINDS.items(), given, strict=True)
        if not isinstance(value, kind)
    ]
    if wrong:
        found = " and ".join(f"{_said(value)} as {name}" for name, _, value in wrong)
        raise TypeError(f"{runner}({', '.join(_KINDS)}) got {found}; {_remedy(runner, *wrong[0])}")
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise TypeError(f"callbacks must be Callback objects, got {_said(callback)}")
    algo, agent, sampler, *_ = given
    algo.require_agent(agent)
    algo.require_batch(sampler.batch_spec)


def _said(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, tuple(_KINDS.values())):
        return f"a {type(value).__name__}"
    return f"{type(value).__name__} {value!r}"


def _remedy(runner: str, name: str, kind: type, value: Any) -> str:
    if isinstance(value, type):
        return f"make an object of the class: {value.__name__}(...)"
    if isinstance(value, tuple(_KINDS.values())):
        return f"give them in this order, or by name: {runner}({', '.join(f'{one}=...' for one in _KINDS)})"
    if kind is RunnerConfig:
        return "config must be a RunnerConfig(n_steps=...)"
    return f"{name} must be an object of class {kind.__name__}"
