"""Steps the environments of one worker with an agent, and cuts what they return into episodes."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from headrace.agents.base import Agent
from headrace.buffers.samples import FinalRegion, build_slot
from headrace.buffers.tree import tree_leaves, tree_map, tree_rows
from headrace.envs.scalar import EnvInfoKeys
from headrace.processes.status import Phase, Status
from headrace.rng import Stream
from headrace.samplers.collection.loop import CollectionLoop, private_array
from headrace.samplers.collection.make_envs import Envs
from headrace.samplers.collection.resets import RESET_MODES, ResetMode
from headrace.samplers.collection.slot_view import SlotView
from headrace.samplers.episodes.batch import EpisodeBatch
from headrace.samplers.episodes.cutting import Counts, EpisodeCutter
from headrace.samplers.episodes.started import order_of_starts
from headrace.samplers.episodes.steps import EnvSpec
from headrace.samplers.inference.actor import actor_for
from headrace.samplers.inference.spec import slot_spec
from headrace.samplers.traj_info import TrajInfo
from headrace.types import BatchSpec, Tree

__all__ = ["EpisodeCollector"]

_MOST_ROWS = 128
_SLOT_BYTES = 2**24  # the slot of environments with large observations has fewer rows
_FEWEST_ROWS = 8


class EpisodeCollector:
    """Runs episodes in the environments of one worker.

    All environments step together, row by row, in a slot that is overwritten repeatedly. The noise of an environment is
    addressed by the number of steps that it has taken, so its episodes do not depend on those of the others.

    Args:
        envs: the environments.
        agent: the agent that acts, initialized, on the CPU.
        env_spec: of the batches.
        seed: seed of all randomness.
        deterministic: see `SamplerOptions`.
        env_info_keys: see `SamplerOptions`.
        new_infos: see `EpisodeCutter`.
        counts: see `EpisodeCutter`.
        status: where this process records what it is doing.
    """

    def __init__(
        self,
        envs: Envs,
        agent: Agent,
        env_spec: EnvSpec,
        *,
        seed: int,
        deterministic: bool,
        env_info_keys: EnvInfoKeys,
        new_infos: Sequence[list[dict[str, Any]]],
        counts: Counts,
        status: Status,
    ) -> None:
        n = len(envs.env_ids)
        spec = slot_spec(agent, envs.spaces, BatchSpec(1, n), (n,), env_info_keys, False)
        row_bytes = n * sum(leaf.nbytes for leaf in tree_leaves(spec.observation))
        self._most_rows = max(_FEWEST_ROWS, min(_MOST_ROWS, _SLOT_BYTES // max(row_bytes, 1)))
        spec = replace(spec, batch=BatchSpec(self._most_rows, n))
        self._slot = slot = build_slot(spec, private_array)
        self._view = SlotView(slot, 0)
        self._envs = envs
        self._status = status
        self._loop = CollectionLoop(
            envs, spec, status=status, traj_info=(TrajInfo, {}), reset_mode=RESET_MODES["mid_batch"]
        )
        self._actor = actor_for(
            agent,
            [slot],
            envs.env_ids,
            (n,),
            seed=seed,
            stream=Stream.ACTION,
            deterministic=deterministic,
            status=status,
        )
        self._cutter = EpisodeCutter(slot, envs.env_ids, env_spec, new_infos, counts)
        self._counts = counts
        self._rows: Generator[int, bool | None, None] | None = None  # of the slot that is being filled
        self._row: int | None = None
        self._finished: list[EpisodeBatch] = []
        self._waits = False
        self._started = False
        #: Version of the parameters, recorded with every step.
        self.version = 0

    @property
    def row(self) -> int:
        """Number of the next row, counted from 0 over the life of the worker."""
        return self._counts.row

    @property
    def running(self) -> np.ndarray:
        """Rows in which the running episodes started, int64 `[n]`; -1 for environments without one."""
        starts = self._cutter.starts.copy()
        starts[self._envs.waiting if self._started else slice(None)] = -1
        return starts

    def running_order(self) -> np.ndarray:
        """Returns the `order_of_starts` of the running episodes, int64 `[k]`."""
        starts = self.running
        return order_of_starts(starts, np.asarray(self._envs.env_ids))[starts >= 0]

    @property
    def is_idle(self) -> bool:
        """Whether no environment runs an episode."""
        return not self._started or bool(self._envs.waiting.all())

    def restart(self, episodes: Sequence[int] | None = None) -> int:
        """Starts a new episode in every environment, and drops what the running ones have collected.

        Args:
            episodes: number of episodes that each environment runs; None: without limit.

        Returns:
            The number of steps that were dropped.
        """
        dropped = self.n_running()
        self._waits = episodes is not None
        mode = RESET_MODES["mid_batch"] if episodes is None else ResetMode.episodes(episodes)
        self._loop.restart(mode)
        self._actor.restart()
        self._cutter.restart(self._envs.waiting)
        self._started = True
        return dropped

    def n_running(self) -> int:
        """Returns the number of steps that running episodes have collected."""
        self.finish()
        return self._cutter.n_open

    def skip_to(self, row: int) -> None:
        """Numbers the next row at least `row`. Workers number rows alike, so one without episodes leaves some out."""
        assert self._counts.row >= row or self.is_idle
        self._counts.row = max(self._counts.row, row)

    def advance(self, n_rows: int) -> None:
        """Takes `n_rows` rows, or fewer if no environment has an episode left."""
        self.finish()
        while n_rows > 0 and not self.is_idle:
            rows = self._begin(min(n_rows, self._most_rows))
            actor = self._actor
            for t in rows:
                actor.act(t)
                actor.record(t)
            n_rows -= self._end()

    def step(self) -> bool:
        """Takes one row; returns whether an episode ended in it."""
        if self._rows is None:
            self._row = next(self._begin(self._most_rows), None)
        assert self._rows is not None
        assert self._row is not None, "no environment has an episode left"
        t = self._row
        self._actor.act(t)
        self._actor.record(t)
        self._row = next(self._rows, None)
        ended = bool((self._slot.terminated[t] | self._slot.truncated[t]).any())
        if self._row is None:
            self._end()
        return ended

    def finish(self) -> None:
        """Takes the rows so far out of the slot; called before parameters or environments change."""
        if self._rows is not None:
            with suppress(StopIteration):
                self._rows.send(True)
            self._end()

    def take(self, fragments: bool = False) -> list[EpisodeBatch]:
        """Returns the episodes that ended since the last call.

        Args:
            fragments: whether to return the steps of running episodes as well.
        """
        self.finish()
        if fragments:
            part = self._cutter.fragments(self._current)
            self._finished += [] if part is None else [part]
        taken, self._finished = self._finished, []
        return taken

    def notes(self) -> list[tuple[int, str]]:
        """Returns and clears the environments' log messages."""
        notes, self._envs.notes = self._envs.notes, []
        return notes

    def _begin(self, n_rows: int) -> Generator[int, bool | None, None]:
        reads_previous = self._actor.load()
        self._actor.begin(self.version, self._counts.steps.tolist())
        self._rows = self._loop.collect(
            self._view, n_rows, until_idle=self._waits, reads_previous=reads_previous or self._waits
        )
        self._rows_before = self._loop.timing.rows
        return self._rows

    def _end(self) -> int:
        """Cuts the rows that the loop has collected; returns their number."""
        loop, slot, n_rows = self._loop, self._slot, self._loop.timing.rows - self._rows_before
        self._rows = None
        final: FinalRegion = tree_rows(slot.final[0], slice(0, loop.n_final))
        if loop.overflow is not None:
            final.state = None
            final = tree_map(lambda one, other: np.concatenate([one, other]), final, loop.overflow)
        gap = int(self._envs.resetting is not None)
        part = self._cutter.cut(n_rows, loop.finished, final, gap, self._envs.waiting)
        self._finished += [] if part is None else [part]
        self._current: Tree = tree_rows(slot.observation, n_rows)
        self._status.enter(Phase.WAITING)
        return n_rows
