"""`Probe`: the wrapper between an environment under check and the sampler code that steps it."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import gymnasium

from headrace.envs.checking.rules import Violation
from headrace.envs.spaces import Mismatch
from headrace.errors import EnvContractError, SamplerError, headline
from headrace.processes.status import Phase, Status

__all__ = ["Probe", "headline_at", "violation_of"]


class Probe(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Wraps an environment below `ScalarEnvs`: counts calls, and checks what they return before it is unpacked.

    `place` is the last call, `stepped` the last call of `step`, and `steps_of_last` the number of steps in its episode.

    Args:
        env: the environment.
        status: marks the call in progress.
        note_randomness: called after each call, with its name.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], status: Status, note_randomness: Callable[[str], None]) -> None:
        super().__init__(env)
        self._status = status
        self._note_randomness = note_randomness
        self.place = self.stepped = ""
        self.episode = self.step_number = self.steps_of_last = 0
        self.max_steps = None if env.spec is None else env.spec.max_episode_steps

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Resets with exactly the arguments that `ScalarEnvs` gave."""
        self.episode, self.step_number = self.episode + 1, 0
        self.place = f"reset({'' if seed is None else 'seed=...'}) of episode {self.episode}"
        self._status.enter(Phase.RESETTING, 0, self.episode)
        answer: Any = self.env.reset() if seed is None else self.env.reset(seed=seed)
        self._note_randomness(self.place)
        _require_tuple(answer, 2, "reset-answer", "(observation, info)")
        _require_dict(answer[1])
        return answer[0], answer[1]

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Steps the environment and checks what it returns."""
        self.step_number += 1
        self.place = self.stepped = f"step() {self.step_number} of episode {self.episode}"
        self.steps_of_last = self.step_number
        self._status.enter(Phase.STEPPING, 0, self.step_number)
        answer: Any = self.env.step(action)
        self._note_randomness(self.place)
        _require_tuple(answer, 5, "step-answer", "(observation, reward, terminated, truncated, info)")
        _require_dict(answer[4])
        return answer[0], answer[1], answer[2], answer[3], answer[4]


def _require_tuple(answer: Any, size: int, clause: str, expected: str) -> None:
    if not isinstance(answer, tuple) or len(answer) != size:
        text = " ".join(repr(answer).split())
        text = text if len(text) <= 60 else text[:57] + "..."
        raise Mismatch(clause, f"{type(answer).__name__}{_size(answer)} {text}", expected)


def _size(answer: Any) -> str:
    return f" of {len(answer)}" if isinstance(answer, tuple | list) else ""


def _require_dict(info: Any) -> None:
    if not isinstance(info, dict):
        raise Mismatch("info", f"{type(info).__name__} {info!r}"[:80], "a dict")


def violation_of(error: SamplerError, place: str) -> Violation:
    """Returns the violation that an error of `ScalarEnvs` in the call `place` stands for."""
    cause = error.__cause__
    if isinstance(cause, Mismatch):
        clause = cause.path.partition("[")[0]
        came = f"{cause.path} = {cause.came}" if clause in ("observation", "info") else cause.came
        return Violation(clause, place, came, cause.expected)
    if isinstance(cause, EnvContractError):  # the adapter for old gym found a wrong form of answer
        came, _, expected = cause.message.partition(", expected ")
        return Violation(f"{place.partition('(')[0]}-answer", place, came, expected.partition(";")[0])
    if cause is None:
        return Violation("raises", place, error.message, "no exception")
    return Violation("raises", place, f"raised {headline_at(cause)}", "no exception")


def headline_at(error: BaseException) -> str:
    """Returns the headline of an exception and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return headline(error) + (f" (in {frames[-1].name}, {frames[-1].filename}:{frames[-1].lineno})" if frames else "")
