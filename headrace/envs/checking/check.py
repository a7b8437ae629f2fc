"""`check_env`: checks an environment against the contract that samplers rely on and reports each broken clause."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import cloudpickle
import gymnasium

from headrace.envs.checking.rules import Violation
from headrace.envs.checking.stages import CheckJob, Event, Findings, checking_process
from headrace.envs.factory import EnvFactory
from headrace.envs.pickling import loads_untracked
from headrace.errors import EnvFailed, WorkerCrashed, WorkerHung, headline
from headrace.processes.affinity import set_torch_threads
from headrace.processes.group import WorkerGroup
from headrace.processes.start_method import choose_start_method
from headrace.processes.status import Phase

__all__ = ["Violation", "check_env", "one_thread"]

_CANNOT_RESET = {"constructor", "spaces", "fixed-shape"}
_WRONG_ANSWERS = {"raises", "reset-answer", "step-answer", "observation", "reward", "terminated", "truncated", "info"}
_CANNOT_STEP = _CANNOT_RESET | {"signature", "action-space"}
_CANNOT_REPEAT = _CANNOT_STEP | _WRONG_ANSWERS | {"global-rng", "seeding", "continues"}

_START_SECONDS = 120.0

#: The stages. Each is skipped if one of its clauses is broken, because it could not find anything new.
_STAGES: tuple[tuple[str, set[str]], ...] = (
    ("make", set()),
    ("play", _CANNOT_STEP),
    ("reseed", _CANNOT_REPEAT),
    ("restart", _CANNOT_REPEAT),
    ("together", _CANNOT_REPEAT | {"reseeding"}),
    ("close", {"constructor"}),
)


def check_env(
    EnvCls: Any,
    env_kwargs: Mapping[str, Any] | None = None,
    *,
    n_steps: int = 1000,
    seed: int = 0,
    timeout: float = 30.0,
    pad: Mapping[str, int] | None = None,
) -> list[Violation]:
    """Returns the clauses of the contract that an environment breaks, the first case of each; empty if it breaks none.

    Two separate processes each make the environment and step it with the same random actions, through the code that
    samplers use, so a sampler accepts whatever passes here. Crashes and hangs are violations, too. Returning the same
    array at each step and modifying it is not a violation: samplers copy. Stepping after the end of an episode is not
    tried: its outcome is undefined, and samplers do not do it.

    Args:
        EnvCls: as for a sampler.
        env_kwargs: arguments of the environment.
        n_steps: environment steps of the main run; the other runs together take as many again.
        seed: seed of the environment's seeds and of the actions.
        timeout: seconds that one call of the environment may take.
        pad: maximum lengths of texts and sequences, see `Padded`.

    Raises:
        TypeError: `EnvCls` has none of the accepted types.
        ValueError: the id is not registered, or a number is out of range.
    """
    if n_steps < 1 or seed < 0 or timeout <= 0:
        raise ValueError(
            f"n_steps must be at least 1, seed at least 0, timeout positive; got n_steps={n_steps}, seed={seed}, "
            f"timeout={timeout}"
        )
    factory = EnvFactory.of(EnvCls, env_kwargs, pad=pad)
    if isinstance(factory.make, gymnasium.envs.registration.EnvSpec):
        # Gymnasium's own checker would stop with an assertion before this one could report the violation.
        factory = replace(factory, kwargs={"disable_env_checker": True, **factory.kwargs})
    found = _unpicklable(factory)
    start_method = choose_start_method("auto")
    if found and start_method != "fork":
        return found
    job = CheckJob(factory, n_steps, seed)
    group = WorkerGroup(
        checking_process,
        [job, job],
        start_method=start_method,
        prologue=one_thread,
        name="check_env",
        timeout=timeout,
    )
    try:
        group.replies(_START_SECONDS)  # `timeout` is for the environment; on a busy machine a process starts slowly
        for stage, needs in _STAGES:
            known = {violation.clause for violation in found}
            if not needs & known:
                group.send(stage)
                found += [violation for violation in _merged(group.replies()) if violation.clause not in known]
        group.stop()
    except (EnvFailed, WorkerCrashed, WorkerHung) as error:
        found.append(_fatal(error, timeout))
    finally:
        group.kill()
    return found


def one_thread(rank: int) -> None:
    """Limits torch to one thread, for environments that use it."""
    set_torch_threads(1)


def _unpicklable(factory: EnvFactory) -> list[Violation]:
    try:
        loads_untracked(cloudpickle.dumps(factory))
    except Exception as error:
        return [Violation("pickling", "pickling EnvCls and env_kwargs", headline(error), "no exception")]
    return []


def _merged(replies: Sequence[Findings]) -> list[Violation]:
    """Returns what both processes found or, if nothing, where their runs differ."""
    first, second = replies
    known = {violation.clause for violation in first.violations}
    found = first.violations + [violation for violation in second.violations if violation.clause not in known]
    return found or first_difference(first.events, second.events)


def first_difference(events: Sequence[Event], others: Sequence[Event]) -> list[Violation]:
    """Returns the violation that two runs with the same seed and actions differ; empty if they do not."""
    for event, other in zip(events, others, strict=False):
        if event != other:
            later = event.is_reset and event.place != events[0].place
            return [
                Violation(
                    "continues" if later else "seeding",
                    event.place,
                    f"two new environments with the same seed and actions gave {event.difference(other)}",
                    "the same from both",
                )
            ]
    return []


_CALLS = {
    Phase.CONSTRUCTING.words: "the constructor",
    Phase.RESETTING.words: "reset() of episode {}",
    Phase.STEPPING.words: "step() {}",
    Phase.CLOSING.words: "close()",
}


def _fatal(error: EnvFailed | WorkerCrashed | WorkerHung, timeout: float) -> Violation:
    """Returns the violation for a process that died or does not answer."""
    where = error.where
    phase = where.phase if where is not None and where.phase is not None else ""
    step = where.step if where is not None and where.step is not None else 0
    call = _CALLS.get(phase, phase or "the environment").format(step)
    if isinstance(error, WorkerHung):
        return Violation("hang", call, f"no answer for {timeout:g} s{_hung_at(error.traceback_text)}", "an answer")
    return Violation("crash", call, re.sub(r"^worker \d+", "its process", error.message), "an answer")


def _hung_at(stack: str) -> str:
    """Returns the innermost frame of the environment's thread in the output of faulthandler."""
    for path, line, function in re.findall(r'File "(.*?)", line (\d+) in (\S+)', stack):
        if not path.endswith(("threading.py", "processes/child.py")):
            return f" (in {function}, {path}:{line})"
    return ""
