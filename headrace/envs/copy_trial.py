"""Whether pickled environments, loaded elsewhere, go on as the originals do."""

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

#: Environments of a sampler whose copies are tried: they are all made alike.
N_TRIED = 8

_PATIENCE = 30.0  # seconds after its start for which a verdict is waited for
_LIFETIME = 200.0  # seconds after which an interpreter without a verdict ends
_ENOUGH = 5.0  # seconds of stepping after which copies have shown what they can do
_LARGEST_RECORD = 64 * 2**20


@dataclass(frozen=True)
class Recorded:
    """What environments did in some rows: trees of arrays `[T, n, ...]`, observation `[T + 1, n, ...]`.

    begins: whether row 0 came from a reset of all; resets: how often each may reset itself afterwards, None: always.
    """

    action: Tree
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    observation: Tree
    begins: bool
    resets: int | None

    def cut(self, n: int) -> Recorded:
        """Of the first `n` environments, as many rows as are not too large to hand over."""
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
    """Pickled copies of environments do what the originals did, in an interpreter of their own, or `why_not` says why.

    A pickle may lose what an environment is about and say nothing: its generator, its simulator's state. It may hold
    the number of a simulator that is elsewhere, and a copy here would step, or close, that of the original. So copies
    are loaded where nothing of this process is, as those of a resumed run would be, and stepped with the recorded
    actions; they must do what is recorded, bit for bit. Meanwhile the run goes on.

    `take` before rows are collected, `play` after them, `decide` when the verdict is needed.
    """

    def __init__(self, name: str) -> None:
        """name: the factory's."""
        self._name = name
        self._pickles: list[bytes] = []
        self._interpreter: FreshInterpreter | None = None
        self._began = 0.0
        self.due = True
        self.why_not = f"copies of {name} were not tried yet"

    @property
    def taken(self) -> bool:
        """Whether there are copies that wait for what they are to do."""
        return bool(self._pickles)

    def take(self, env_ids: Sequence[int], states: Sequence[EnvState], status: Status) -> None:
        """Pickles environments as they stand, which is all that is ever done with them."""
        self.due = False
        try:
            self._pickles = list(dumped(env_ids, states, status).values())
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self.why_not = not_pickled(self._name, error)

    def play(self, recorded: Recorded | None) -> None:
        """Has the copies do what the originals have done since; None: only load them, and reset them."""
        if not self._pickles:
            return
        pickles, self._pickles = self._pickles, []
        part = None if recorded is None else recorded.cut(len(pickles))
        self._began = time.monotonic()
        try:
            job = pickle.dumps((self._name, pickles, part), pickle.HIGHEST_PROTOCOL)
            self._interpreter = FreshInterpreter("headrace.envs.copy_trial:run_trial", job, _LIFETIME)
            self.why_not = f"a pickled copy of {self._name} is still being tried"
        except (OSError, SamplerError) as error:
            self.why_not = f"pickled copies of {self._name} could not be tried ({headline(error)})".split("\n")[0]

    def decide(self, status: Status) -> None:
        """Waits for the verdict, if there is none yet, but not for long."""
        interpreter = self._interpreter
        if interpreter is None:
            return
        wait = max(0.0, self._began + _PATIENCE - time.monotonic())
        if not interpreter.ended(wait, lambda: status.enter(Phase.SAVING)):
            return
        self._interpreter = None
        if interpreter.answer is not None:
            self.why_not = interpreter.answer
        elif interpreter.exitcode == -signal.SIGALRM:
            self.why_not = f"a pickled copy of {self._name} came to no end in {_LIFETIME:g} s"
        else:
            process = f"the process that tried a pickled copy of {self._name}"
            self.why_not = cause_of_death(interpreter.exitcode, process, Phase.SAVING.words, ended=True)

    def close(self) -> None:
        """Ends what still runs."""
        if self._interpreter is not None:
            self._interpreter.close()


# ---- in the other interpreter ----


def run_trial(job: bytes) -> str:
    """What copies did that the originals did not, in a sentence; empty: nothing."""
    name, pickles, recorded = pickle.loads(job)
    what = "loaded"
    try:
        states = [loads(content) for content in pickles]
        what = "stepped"
        return _difference(name, states, recorded)
    except BaseException as error:
        came = (error.message if isinstance(error, SamplerError) else headline(error)).split("\n")[0]
        return f"a pickled copy of {name} failed where the original did not: {what} in a process of its own, {came}"


def _difference(name: str, states: Sequence[EnvState], recorded: Recorded | None) -> str:
    n = len(states)
    envs = ScalarEnvs(
        [state.env for state in states], range(n), [(state.seed, None) for state in states], name=name, status=Status()
    )
    row = allocate_like(null_value(envs.spaces.observation), (n,), np.zeros)
    if recorded is None or recorded.begins:
        envs.reset(None, row)
    if recorded is None:
        return ""
    if recorded.begins and not _same(row, tree_rows(recorded.observation, 0), np.ones(n, np.bool_)):
        return f"a pickled copy of {name} gave another first observation than the original"
    envs.allow(recorded.resets)
    enough = time.monotonic() + _ENOUGH
    for t in range(len(recorded.reward)):
        wrong = _step(envs, recorded, t, row)
        if wrong:
            return f"a pickled copy of {name} gave another {wrong} than the original in step {t}"
        if time.monotonic() > enough:
            break
    return ""


def _step(envs: ScalarEnvs, recorded: Recorded, t: int, observation: Tree) -> str:
    """Takes step t; names what is different."""
    n = len(envs.env_ids)
    out = StepRow(observation, np.zeros(n, np.float32), np.zeros(n, np.bool_), np.zeros(n, np.bool_), None)
    stepped = ~envs.waiting
    envs.step(tree_rows(recorded.action, t), out)
    for name, came, expected, rows in (
        ("reward", out.reward, recorded.reward[t], stepped),
        ("end", out.terminated, recorded.terminated[t], stepped),
        ("end", out.truncated, recorded.truncated[t], stepped),
        ("observation", observation, tree_rows(recorded.observation, t + 1), ~envs.waiting),  # else it is blanked
    ):
        if not _same(came, expected, rows):
            return name
    return ""


def _same(came: Tree, expected: Tree, rows: Any) -> bool:
    pairs = zip(tree_leaves(came), tree_leaves(expected), strict=True)
    return all(np.array_equal(one[rows], other[rows]) for one, other in pairs)
