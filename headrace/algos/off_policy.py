"""Base class of algorithms that learn from a replay: fills it, samples transitions and maintains target networks."""

from __future__ import annotations

import copy
import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium.spaces import Discrete

from headrace.agents.base import Agent
from headrace.algos.adam import FlatAdam
from headrace.algos.base import Algo, OptInfo, mean_info
from headrace.algos.checks import finite
from headrace.algos.flat import FlatParameters
from headrace.algos.off_policy_config import OffPolicyConfig
from headrace.algos.ranks import least_of
from headrace.buffers.samples import Samples
from headrace.buffers.tree import tree_map
from headrace.envs.spaces import null_value
from headrace.errors import CheckpointError
from headrace.replays.make import replay_over, replay_spec, shared_ring
from headrace.replays.prioritized import Prioritized
from headrace.replays.replay import Replay
from headrace.replays.ring import ReplayRing, ReplaySpec
from headrace.replays.sink import ReplaySink
from headrace.replays.storage import ReplayFile
from headrace.replays.writer import ReplayWriter
from headrace.schema import anything, fields, whole
from headrace.types import BatchSpec, EnvSpaces, Tree

__all__ = ["OffPolicyAlgo", "OffPolicyConfig"]

_log = logging.getLogger("headrace.algos")

_STATE = fields(
    {
        "optimizer": fields({}, more=True),
        "target": fields({}, more=True),
        "replay": anything,
        "n_steps": whole(),
        "n_rows": whole(),
        "n_updates": whole(),
    }
)
#: Maximum number of batches whose updates may be due in a checkpoint: Ctrl-C in a batch leaves its updates undone.
_MOST_CUT = 100


class OffPolicyAlgo(Algo):
    """Learns from transitions that are sampled from a replay, with a target network.

    Each batch is appended to the replay, and then as many updates follow as `replay_ratio` requires; fractions carry
    over to the next batch. Padding is not stored. A subclass defines what an update is::

        class ActorCritic(OffPolicyAlgo):
            def trained(self, agent):                       # an optimizer for each
                actor, critic = agent.model.actor, agent.model.critic
                return {"actor": (actor.parameters(), 1e-4), "critic": (critic.parameters(), 1e-3)}

            def update(self, itr, transitions):             # losses, gradients, steps
                ...

    Args:
        config: the settings.
    """

    #: Class of the agents that the algorithm can train.
    AgentCls: ClassVar[type[Agent]]
    #: Names of the optimizers whose networks have target networks; None: all.
    with_target: ClassVar[Sequence[str] | None] = None
    config: OffPolicyConfig
    _agent: Agent
    _target: Agent

    def __init__(self, config: OffPolicyConfig) -> None:
        self.config = config
        self.discount = config.discount
        self._sink: ReplaySink | None = None

    def sink(self) -> ReplaySink:
        """Returns a sink, so that the sampler process fills the replay, a ring buffer; see `Algo.sink`."""
        config = self.config
        self._sink = ReplaySink(
            config.replay_size,
            frames=config.frames,
            all_finals=config.hindsight is not None,
            states=self.stores_states,
            errors=self.first_errors,
        )
        return self._sink

    @property
    def steps_per_update(self) -> int:
        """Number of time steps that one update learns from."""
        return self.config.batch_size

    @property
    def stores_states(self) -> bool:
        """Whether the replay stores the recurrent states that the sampler records."""
        return False

    @property
    def first_errors(self) -> Callable[[Samples], np.ndarray] | None:
        """Computes the errors from which new entries of the replay get their priorities; see `ReplaySpec.errors`."""
        return None

    def require_agent(self, agent: Agent) -> None:
        """See `Algo`."""
        super().require_agent(agent)
        if not isinstance(agent, self.AgentCls):
            raise TypeError(
                f"{type(self).__name__} trains a {self.AgentCls.__name__}, got a {type(agent).__name__}; give the "
                f"runner and the sampler a {self.AgentCls.__name__}, or use the algorithm of your agent"
            )

    def require_built(self, agent: Agent) -> EnvSpaces:
        """Returns the agent's spaces.

        Raises:
            TypeError: if the agent is not an `AgentCls`.
            ValueError: if it is not initialized.
        """
        self.require_agent(agent)
        if agent.spaces is None:
            raise ValueError("the agent has no model yet; initialize the sampler first, which builds it")
        return agent.spaces

    def initialize(self, agent: Agent, n_itr: int, batch_spec: BatchSpec, seed: int = 0) -> None:
        """See `Algo`.

        Raises:
            TypeError: if the agent is not an `AgentCls`.
            NotEnoughMemory: if the replay does not fit in memory.
            ValueError: if the agent is not initialized, the replay is too small for a batch, or observations have no
                goals for `hindsight`.
        """
        spaces = self.require_built(agent)
        self.require_batch(batch_spec)
        self._agent = agent
        self._device = agent.device
        self._n_itr = n_itr
        self._target = copy.deepcopy(agent)
        self._target.eval_mode(0)
        self.optimizers = {
            name: FlatAdam(parameters, self.config, learning_rate)
            for name, (parameters, learning_rate) in self.trained(agent).items()
        }
        of_target = self.trained(self._target)
        names = self.optimizers if self.with_target is None else self.with_target
        self._target_vectors = {name: FlatParameters(of_target[name][0]).vector for name in names}
        self._writer: ReplayWriter | None = None
        self._spec, self._ring = self._ring_of(agent, spaces, batch_spec)
        self._replay = self.make_replay(self._spec, self._ring, seed)
        self._file: ReplayFile | None = None
        self._n_collected = 0
        self._n_steps = 0  # those of `_n_collected` since learning began
        self._n_updates = 0

    def optimize_agent(self, itr: int, samples: Samples) -> OptInfo:
        """See `Algo`. The result is empty until `min_steps_learn` steps are in the replay."""
        self.require_initialized()
        infos: list[OptInfo] = []
        rates: OptInfo = {}
        if self._writer is not None:
            self._writer.append(samples)
        # The number is not read from the ring, because a sampler process may have appended later batches already.
        own = int(samples.env.valid.sum())
        # The least of all ranks, which must take the same number of updates.
        n_steps, self._n_collected, n_stored = least_of(self.ranks, own, self._n_collected + own, len(self._replay))
        if self._n_collected >= self.config.min_steps_learn and n_stored:
            self._n_steps += n_steps
            rates = self._schedule(itr)
            self._agent.train_mode(itr)
            infos = [self._update(itr) for _ in range(self._asked(self._n_steps) - self._n_updates)]
        self._gather_statistics(samples)
        return mean_info(infos) | rates if infos else {}

    def trained(self, agent: Agent) -> Mapping[str, tuple[Iterable[torch.nn.Parameter], float]]:
        """Returns the parameters and the initial learning rate of each optimizer, by the optimizer's name.

        Args:
            agent: the agent, or its copy with the target networks.
        """
        return {"agent": (agent.parameters(), self.config.learning_rate)}

    def make_replay(self, spec: ReplaySpec, ring: ReplayRing, seed: int) -> Replay[Any]:
        """Returns the replay to sample from, over a ring that this or a sampler process fills."""
        config = self.config
        return replay_over(
            spec,
            ring,
            prioritized=config.prioritized_replay,
            n_step=config.n_step,
            discount=config.discount,
            seed=seed,
            alpha=config.pri_alpha,
            beta=config.pri_beta_init,
            hindsight=config.hindsight,
        )

    @abstractmethod
    def update(self, itr: int, transitions: Any) -> tuple[OptInfo, torch.Tensor]:
        """Computes losses and takes a step of the optimizers.

        Args:
            itr: number of the batch.
            transitions: what was sampled from the replay, on the agent's device: `Transitions`, unless `make_replay`
                returned another replay.

        Returns:
            Diagnostics, and the size of the error of each transition, float `[N]`, which becomes its priority.

        Raises:
            FloatingPointError: if a loss or a gradient is not finite (see `finite`), before the step it is for.
        """

    def finite(
        self,
        itr: int,
        transitions: Tree,
        scalars: Mapping[str, torch.Tensor],
        info: Mapping[str, torch.Tensor],
    ) -> OptInfo:
        """Returns the scalars of an update as numbers; raises FloatingPointError if one of `scalars` is not finite."""
        where = f"itr {itr}, update {self._n_updates}"
        return finite(type(self).__name__, where, scalars, info, transitions, self._agent.model)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of optimizers, target network, counters and replay sampling, not the stored transitions."""
        return {
            "optimizer": self.optim_state_dict(),
            "target": self._target.state_dict(),
            "replay": self._replay.state_dict(),
            "n_steps": self._n_steps,
            "n_rows": int(self._ring.cursor[0]),
            "n_updates": self._n_updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the result of `state_dict`. Raises ValueError for an invalid state.

        Without the contents of the replay (`load_contents`), learning resumes once it holds `min_steps_learn` new
        steps.
        """
        _STATE(state, "algo")
        self.load_optim_state_dict(state["optimizer"])
        self._target.load_state_dict(state["target"])
        self._replay.load_state_dict(state["replay"])
        self._n_steps, self._n_updates = state["n_steps"], state["n_updates"]
        # Wrong counters could make the next batch run an arbitrary number of updates, or stop updates for as long.
        due = self._asked(self._n_steps) - self._n_updates
        whole(0, 1 + self._asked(_MOST_CUT * self._spec.batch.size))(due, "algo: the updates that are due")

    def cut(self, returns: torch.Tensor | None = None) -> None:
        """See `Algo.cut`. A replay that a sampler process fills contains every batch and is not marked."""
        if self._writer is not None:
            self._writer.cut()

    def save_contents(self, folder: Path) -> None:
        """Writes the rows appended to the replay since the last call; see `Algo.save_contents`."""
        if self._file is None:
            self._file = ReplayFile(folder, self._spec)
        self._file.save(self._ring)

    def load_contents(self, folder: Path, state: dict[str, Any]) -> None:
        """Loads the replay; see `Algo.load_contents`.

        Missing parts are logged as a warning; learning resumes once the replay holds `min_steps_learn` steps.

        Raises:
            CheckpointError: if the replay holds actions that the environment does not have.
        """
        n_rows = state["n_rows"]
        whole()(n_rows, "algo.n_rows")
        self._file = ReplayFile(folder, self._spec)
        try:
            self._file.load(self._ring, until=n_rows)
        except FileNotFoundError:
            if n_rows:
                _log.warning(
                    "%s holds no replay, but the checkpoint was saved with one of %d rows; the replay starts empty, "
                    "and learning continues once it holds %d steps",
                    folder,
                    n_rows,
                    self.config.min_steps_learn,
                )
        assert self._agent.spaces is not None
        if isinstance(space := self._agent.spaces.action, Discrete):  # an index that is too large fails in a gather
            actions = self._ring.action
            if actions.min() < 0 or actions.max() >= space.n:
                raise CheckpointError(
                    f"{folder} holds actions from {actions.min()} to {actions.max()}, and the environment has "
                    f"{space.n}; it is of another run"
                )
        self._n_collected = self._replay.n_appended

    def _ring_of(self, agent: Agent, spaces: EnvSpaces, batch_spec: BatchSpec) -> tuple[ReplaySpec, ReplayRing]:
        """Returns the ring that the sampler process fills, or a new one that this process fills."""
        if self._sink is not None:
            return self._sink.spec, self._sink.ring
        config, examples = self.config, (null_value(spaces.observation), null_value(spaces.action))
        state = tree_map(lambda leaf: leaf[0].numpy(force=True), agent.initial_state(1)) if self.stores_states else None
        spec = replay_spec(
            batch_spec,
            *examples,
            config.replay_size,
            frames=config.frames,
            all_finals=config.hindsight is not None,
            state=state,
            errors=self.first_errors,
        )
        arena, ring = shared_ring(spec)
        arena.close_fd()
        self._writer = ReplayWriter(spec, ring)
        return spec, ring

    def _asked(self, n_steps: int) -> int:
        """Returns the updates that `replay_ratio` requires, by exact fractions, so that rounding loses none."""
        return math.floor(Fraction(self.config.replay_ratio) * n_steps / self.steps_per_update)

    def _schedule(self, itr: int) -> OptInfo:
        """Sets the exponent β of importance weights and the learning rates for batch `itr`; returns the latter."""
        config, progress = self.config, min(1.0, itr / self._n_itr)
        if isinstance(self._replay, Prioritized):
            self._replay.beta = config.pri_beta_init + progress * (config.pri_beta_final - config.pri_beta_init)
        return self.set_progress(progress)

    def _update(self, itr: int) -> OptInfo:
        """Samples transitions, updates the agent from them, and updates their priorities and the target network."""
        sampled = self._replay.sample(self.config.batch_size)
        indices, sampled.indices = sampled.indices, None
        transitions = tree_map(lambda leaf: leaf.to(self._device), sampled)
        info, priorities = self.update(itr, transitions)
        self._n_updates += 1
        self._replay.update_priorities(indices, priorities)
        if self._n_updates % self.config.target_update_interval == 0:
            self._update_target()
        return info

    @torch.no_grad()
    def _update_target(self) -> None:
        """Moves the target's parameters towards the agent's, and copies the agent's buffers, which are statistics."""
        for name, vector in self._target_vectors.items():
            vector.lerp_(self.optimizers[name].vector, self.config.target_update_tau)
        for to, value in zip(self._target.model.buffers(), self._agent.model.buffers(), strict=True):
            to.copy_(value)

    def _gather_statistics(self, samples: Samples) -> None:
        """Updates the normalization statistics with the observations of a batch, after learning from it."""
        valid = samples.env.valid
        observation = tree_map(lambda leaf: leaf[valid].to(self._device), samples.env.observation)
        self._agent.update_statistics(observation)
