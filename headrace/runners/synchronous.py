"""`SyncRl` and `SyncRlEval`: several learners, each with a sampler of its own, that average their gradients."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from headrace.checkpoints.resume import Resumed, resumed
from headrace.checkpoints.store import CheckpointStore
from headrace.errors import CheckpointError
from headrace.processes.affinity import Affinity, AffinityLike
from headrace.processes.status import Status
from headrace.rng import draw_seed
from headrace.runners.base import Runner
from headrace.runners.launch import Learned, on_cpu, train_on_ranks
from headrace.runners.minibatch import MinibatchRl, MinibatchRlEval
from headrace.runners.ranks import values_of
from headrace.runners.team import Team, connected, ending_by_signal, pinned, store_of_launcher
from headrace.samplers.traj_info import TrajInfo

__all__ = ["SyncRl", "SyncRlEval", "SynchronousRunner"]


class SynchronousRunner(Runner):
    """Base of runners with several learners, the ranks, which each have a copy of agent, algorithm and sampler.

    In every update, all ranks step along the mean of their gradients, so that their parameters stay equal. Batch sizes
    are those of one rank: `world_size` ranks with B environments learn from `world_size · B` environments. Environment
    `k` of rank `r` has the env id `r · B + k`. Statistics for normalization include the batches of all ranks.

    `train` starts the ranks as processes of this machine, watches them, and ends all of them if one fails, dies or
    hangs. Afterwards, the agent has the parameters that were learned. If `torchrun` or another launcher that sets RANK,
    WORLD_SIZE, MASTER_ADDR and MASTER_PORT started this program, this process is one of the ranks.

    Rank 0 writes the folder of the run and calls logger and callbacks, in its own process: what a callback stores in
    itself does not come back. `log_dir/rank-1` and so on contain the checkpoints of the other ranks, with their
    environments and replays. After Ctrl-C and SIGTERM, the ranks finish their batch, save and end. After an error
    there is no checkpoint but the last regular one.

    With a `SyncConfig` as `config`, `world_size` and `devices` say how many ranks there are, and where. As in rlpyt,
    `affinity` may be a list with one entry for each; without it, every rank gets its share of the cores.
    """

    _team: Team
    _stops: Callable[[], bool] | None = None  # whether the process that watches this one asks it to stop

    def train(self) -> list[TrajInfo]:
        """See `Runner`.

        Raises:
            SamplerError: if a rank fails, dies or hangs; the message names it.
            KeyboardInterrupt: after Ctrl-C, when all ranks have saved.
            Exception: what the sampler or the algorithm of a rank raises.
        """
        if self._team.launched:
            return self._train_as_launched()
        if self.world_size == 1:
            return super().train()
        learned, interrupted = train_on_ranks(self, self._team, lambda: self._stopping)
        self.seed, self.counters = learned.seed, learned.counters
        self.agent.initialize(learned.spaces, seed=learned.seed)
        self.agent.load_state_dict(dict(learned.agent))
        if interrupted:
            raise KeyboardInterrupt(learned.sentence)
        return [self.sampler.traj_info(values) for values in learned.traj_infos]

    def train_here(self, stops: Callable[[], bool]) -> Learned:
        """Trains in this process, after `become_rank`.

        Args:
            stops: says whether training is to end after the current batch.
        """
        self._stops = stops
        infos = super().train()
        assert self.seed is not None
        assert self.agent.spaces is not None
        return Learned(
            seed=self.seed,
            spaces=self.agent.spaces,
            agent=on_cpu(self.agent.state_dict()),
            traj_infos=[values_of(info) for info in infos],
            counters=self.counters,
            sentence=self._interrupted(),
        )

    @property
    def world_size(self) -> int:
        """Number of learners, each with a sampler of its own."""
        return self._team.world_size

    def _train_as_launched(self) -> list[TrajInfo]:
        """Trains as the rank that the program which started this process says."""
        team, status = self._team, Status()
        store, rank = store_of_launcher(team.config.rank_timeout)
        part, n_parts = (int(os.environ.get(f"LOCAL_{name}", os.environ[name])) for name in ("RANK", "WORLD_SIZE"))
        with (
            ending_by_signal(self.stop, [signal.SIGINT, signal.SIGTERM]) as came,
            pinned(team, part, n_parts),
            connected(store, rank, team, status) as ranks,
        ):
            self.become_rank(ranks, team.placed(rank, part), status)
            infos = super().train()
        if signal.SIGINT in came:
            raise KeyboardInterrupt(self._interrupted())
        return infos

    def _placed(self, affinity: AffinityLike) -> Affinity:
        self._team = Team.of(self.config, affinity)
        return Affinity()

    def _asked_to_stop(self) -> bool:
        return self._stopping or (self._stops is not None and self._stops())

    def _before_start(self) -> None:
        if self.seed is None:
            self.seed = int(self._ranks.gather(torch.tensor(draw_seed()))[0])

    def _checkpoint(self, path: Path) -> Resumed:
        """Returns the checkpoint of this rank that belongs to that of rank 0."""
        ranks, store = self._ranks, self._store
        assert store is not None
        if ranks.rank == 0:
            first = super()._checkpoint(path)
            ranks.gather(torch.tensor(first.state["itr"]))
            return first
        itr = int(ranks.gather(torch.tensor(-1))[0])
        for own in (store.newest, store.previous):
            try:
                found = resumed(store, own)
            except (FileNotFoundError, CheckpointError):
                continue
            if found.state["itr"] == itr:
                return found
        # The parameters are those of every rank; this one begins new episodes.
        first = resumed(CheckpointStore(store.folder.parent), path)
        why_not = f"{store.folder} has no checkpoint of batch {itr}"
        return replace(first, sampler=replace(first.sampler, train={}, evaluation={}, memory={}, why_not=why_not))


class SyncRl(SynchronousRunner, MinibatchRl):
    """`MinibatchRl` with several learners; logs the last training episodes of all of them. See `SynchronousRunner`."""


class SyncRlEval(SynchronousRunner, MinibatchRlEval):
    """`MinibatchRlEval` with several learners, which evaluate at the same time: `eval_n_envs` environments each.

    A log row is about the episodes of all of them. See `SynchronousRunner`.
    """
