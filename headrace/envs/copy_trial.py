"""Tests whether pickled environments, loaded in another process, continue as the originals do."""

from __future__ import annotations

import pickle
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headrace.buffers.tree import allocate_like, tree_leaves, tree_map, tree_rows
from headrace.envs.pickling import EnvState, dumped, loads, not_pickled
from headrace.envs.scalar import ScalarEnvs
from headrace.envs.spaces import null_value
from headrace.errors import SamplerError, headline
from headrace.processes.causes import cause_of_death
from headrace.processes.fresh import FreshInterpreter
from headrace.processes.status import Phase, Status
from headrace.types import StepRow, Tree

__all__ = ["N_TRIED", "CopyTrial", "Recorded", "run_trial"]

#: How many environments of a sampler have their copies tested; they are all made by the same factory.
N_TRIED = 8

_WAIT_SECONDS = 30.0  # seconds after the start of a test for which its result is awaited
_MAX_SECONDS = 200.0  # seconds after which an interpreter without a result ends
_STEPPING_SECONDS = 5.0  # seconds of stepping after which copies are considered tested
_LARGEST_RECORD = 64 * 2**20


@dataclass(frozen=True)
class Recorded:
    """What environments did in some time steps: trees of arrays `[T, n, ...]`, observation `[T + 1, n, ...]`.

    Args:
        action: recorded actions.
        reward: float32 `[T, n]`.
        terminated: bool `[T, n]`.
        truncated: bool `[T, n]`.
        observation: before each step, and after the last.
        begins: whether time step 0 follows a reset of all environments.
        resets: how often each environment may be reset afterwards; None: without limit.
    """

    action: Tree
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    observation: Tree
    begins: bool
    resets: int | tuple[int, ...] | None

    def cut(self, n: int) -> Recorded:
        """Returns the part of the first `n` environments, with as many time steps as fit into 64 MiB."""
        bytes_per_row = sum(leaf[0, :n].nbytes for leaf in (*tree_leaves(self.observation), *tree_leaves(self.action)))
        T = max(1, min(len(self.reward), _LARGEST_RECORD // max(1, bytes_per_row)))

        def part(leaf: np.ndarray) -> np.ndarray:
            return leaf[:T, :n]

        return Recorded(
            tree_map(part, self.action),
            part(self.reward),
            part(self.terminated),
            part(self.truncated),
            tree_map(lambda leaf: leaf[: T + 1, :n], self.observation),
            self.begins,
            self.resets,
        )


class CopyTrial:
    """Tests whether pickled copies of environments do what the originals did, in a separate interpreter.

    `why_not` is empty if they do, and otherwise says why not. A pickle may silently omit essential state, such as the
    generator or the state of a simulator. It may also hold the number of a simulator in another process, and a copy
    loaded here would step or close the original's. So copies are loaded in an interpreter that shares nothing with this
    process, as those of a resumed run would be, and are stepped with the recorded actions; they must reproduce the
    recording bit for bit. The run continues meanwhile.

    Call `take` before time steps are collected, `play` after them, and `decide` when the result is needed.

    Args:
        name: name of the factory.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._pickles: list[bytes] = []
        self._interpreter: FreshInterpreter | None = None
        self._began = 0.0
        self.due = True
        self.why_not = f"pickled copies of {name} were not tested yet"

    @property
    def taken(self) -> bool:
        """Whether copies were taken that have not been played yet."""
        return bool(self._pickles)

    def take(self, env_ids: Sequence[int], states: Sequence[EnvState], status: Status) -> None:
        """Pickles environments in their current state, without changing them."""
        self.due = False
        try:
            self._pickles = list(dumped(env_ids, states, status).values())
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self.why_not = not_pickled(self._name, error)

    def play(self, recorded: Recorded | None) -> None:
        """Has the copies repeat what the originals did since `take`; None: the copies are only loaded and reset."""
        if not self._pickles:
            return
        pickles, self._pickles = self._pickles, []
        part = None if recorded is None else recorded.cut(len(pickles))
        self._began = time.monotonic()
        try:
            job = pickle.dumps((self._name, pickles, part), pickle.HIGHEST_PROTOCOL)
            self._interpreter = FreshInterpreter("headrace.envs.copy_trial:run_trial", job, _MAX_SECONDS)
            self.why_not = f"pickled copies of {self._name} are still being tested"
        except (OSError, SamplerError) as error:
            self.why_not = f"pickled copies of {self._name} could not be tested ({headline(error)})".split("\n")[0]

    def decide(self, status: Status) -> None:
        """Waits for the result, if there is none yet, for 30 s after the start at most."""
        interpreter = self._interpreter
        if interpreter is None:
            return
        wait = max(0.0, self._began + _WAIT_SECONDS - time.monotonic())
        if not interpreter.ended(wait, lambda: status.enter(Phase.SAVING)):
            return
        self._interpreter = None
        if interpreter.answer is not None:
            self.why_not = interpreter.answer
        elif interpreter.exitcode == -signal.SIGALRM:
            self.why_not = f"the test of pickled copies of {self._name} did not end within {_MAX_SECONDS:g} s"
        else:
            process = f"the process that tested pickled copies of {self._name}"
            self.why_not = cause_of_death(interpreter.exitcode, process, Phase.SAVING.words, ended=True)

    def close(self) -> None:
        """Ends the interpreter if it still runs."""
        if self._interpreter is not None:
            self._interpreter.close()


# ---- in the other interpreter ----


def run_trial(job: bytes) -> str:
    """Returns what the copies did differently from the originals, in a sentence; empty if nothing."""
    name, pickles, recorded = pickle.loads(job)
    what = "loaded"
    try:
        states = [loads(content) for content in pickles]
        what = "stepped"
        return _difference(name, states, recorded)
    except BaseException as error:
        came = (error.message if isinstance(error, SamplerError) else headline(error)).split("\n")[0]
        return f"a pickled copy of {name} failed where the original did not: {what} in a separate process, {came}"


def _difference(name: str, states: Sequence[EnvState], recorded: Recorded | None) -> str:
    n = len(states)
    envs = ScalarEnvs(
        [state.env for state in states], range(n), [(state.seed, None) for state in states], name=name, status=Status()
    )
    observation = allocate_like(null_value(envs.spaces.observation), (n,), np.zeros)
    if recorded is None or recorded.begins:
        envs.reset(None, observation)
    if recorded is None:
        return ""
    if recorded.begins and not _same(observation, tree_rows(recorded.observation, 0), np.ones(n, np.bool_)):
        return f"a pickled copy of {name} gave a different first observation than the original"
    envs.allow(recorded.resets)
    deadline = time.monotonic() + _STEPPING_SECONDS
    for t in range(len(recorded.reward)):
        wrong = _step(envs, recorded, t, observation)
        if wrong:
            return f"a pickled copy of {name} gave a different {wrong} than the original in step {t}"
        if time.monotonic() > deadline:
            break
    return ""


def _step(envs: ScalarEnvs, recorded: Recorded, t: int, observation: Tree) -> str:
    """Takes step t; returns the name of what differs, empty if nothing does."""
    n = len(envs.env_ids)
    out = StepRow(observation, np.zeros(n, np.float32), np.zeros(n, np.bool_), np.zeros(n, np.bool_), None)
    stepped = ~envs.waiting
    envs.step(tree_rows(recorded.action, t), out)
    for name, came, expected, columns in (
        ("reward", out.reward, recorded.reward[t], stepped),
        ("end", out.terminated, recorded.terminated[t], stepped),
        ("end", out.truncated, recorded.truncated[t], stepped),
        ("observation", observation, tree_rows(recorded.observation, t + 1), ~envs.waiting),  # waiting ones are blanked
    ):
        if not _same(came, expected, columns):
            return name
    return ""


def _same(came: Tree, expected: Tree, columns: Any) -> bool:
    pairs = zip(tree_leaves(came), tree_leaves(expected), strict=True)
    return all(np.array_equal(one[columns], other[columns]) for one, other in pairs)
