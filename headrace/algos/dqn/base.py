"""What DQN algorithms share: batches into a replay, sampled transitions into steps of the optimizer, and a target."""

from __future__ import annotations

import copy
import logging
import math
from abc import abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from gymnasium.spaces import Discrete

from headrace.agents.base import Agent
from headrace.agents.dqn.dqn import DqnAgent
from headrace.algos.adam import AdamConfig, adam_for, load_adam, set_learning_rate
from headrace.algos.base import Algo, OptInfo
from headrace.algos.checks import not_finite, require
from headrace.algos.flat import FlatParameters
from headrace.buffers.samples import Samples
from headrace.buffers.tree import tree_map
from headrace.config import checked_names
from headrace.envs.spaces import null_value
from headrace.errors import CheckpointError
from headrace.replays.base import Transitions
from headrace.replays.file import ReplayFile
from headrace.replays.make import replay_over, replay_spec, shared_ring
from headrace.replays.prioritized import PrioritizedReplay
from headrace.replays.ring import ReplayWriter
from headrace.replays.sink import ReplaySink
from headrace.schema import anything, fields, whole
from headrace.types import BatchSpec, Tree

__all__ = ["QLearningAlgo", "QLearningConfig", "TransitionLosses"]

_log = logging.getLogger("headrace.algos")

_STATE = fields(
    {
        "optimizer": anything,
        "target": fields({}, more=True),
        "replay": anything,
        "n_steps": whole(),
        "n_rows": whole(),
        "n_updates": whole(),
    }
)
#: Batches whose updates may be still to come: each one that Ctrl-C cut adds its own.
_MOST_CUT = 100


@dataclass
class TransitionLosses:
    """Of `N` transitions. loss: `[N]`, with gradient; priority: `[N]`, how surprising each was, without; info: scalars
    without gradient, to log by name.
    """

    loss: torch.Tensor
    priority: torch.Tensor
    info: dict[str, torch.Tensor]


@checked_names
@dataclass(frozen=True, kw_only=True)
class QLearningConfig(AdamConfig):
    """The settings all DQN algorithms have."""

    discount: float = 0.99
    """γ, the weight of the next step's reward."""
    batch_size: int = 128
    """Transitions of one update."""
    replay_ratio: float = 32.0
    """How many times a step is learned from, on average: updates · batch_size / environment steps."""
    replay_size: int = 100_000
    """Environment steps the replay has room for."""
    min_steps_learn: int = 1_000
    """Environment steps in the replay before the first update."""
    n_step: int = 5
    """Steps whose rewards are in a target before it bootstraps."""
    double_dqn: bool = True
    """Let the learning network choose the action whose value the target network gives (van Hasselt et al., 2016)."""
    target_update_interval: int = 100
    """Updates between two updates of the target network."""
    target_update_tau: float = 1.0
    """How far each of them moves the target towards the learning network: 1 is a copy."""
    clip_grad_norm: float = 10.0
    """The gradient is scaled down to this norm."""
    prioritized_replay: bool = False
    """Sample transitions by how surprising they were, and weigh them accordingly (Schaul et al., 2016)."""
    pri_alpha: float = 0.6
    """α, the exponent of priorities; 0 is uniform."""
    pri_beta_init: float = 0.4
    """β at the start, the exponent of importance weights."""
    pri_beta_final: float = 1.0
    """β at the end of training; in between it changes linearly."""
    frames: int = 0
    """Number of frames that observations stack along their first axis, to store each frame once; 0: store observations
    as they come."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("discount", "target_update_tau"):
            require(name, getattr(self, name), 0.0, 1.0)
        for name in ("replay_ratio", "clip_grad_norm", "pri_alpha", "pri_beta_init", "pri_beta_final", "frames"):
            require(name, getattr(self, name), 0.0, math.inf)
        for name in ("batch_size", "min_steps_learn", "n_step", "target_update_interval"):
            require(name, getattr(self, name), 1, math.inf)
        require("replay_size", self.replay_size, self.min_steps_learn, math.inf)


class QLearningAlgo(Algo):
    """Off-policy learning of action values from a replay, with a target network, by Adam.

    Each batch is appended to the replay; then as many updates follow as `replay_ratio` asks for, fractions carried over
    to the next batch. A transition's target bootstraps from the final observation where its episode was truncated, and
    from nothing where it terminated. Rows of padding are not stored.
    """

    #: The agents it improves.
    AgentCls: ClassVar[type[DqnAgent]] = DqnAgent
    config: QLearningConfig

    def __init__(self, config: QLearningConfig) -> None:
        self.config = config
        self.discount = config.discount
        self._sink: ReplaySink | None = None

    def sink(self) -> ReplaySink:
        """See `Algo.sink`: the replay is then a ring that the sampler process fills."""
        self._sink = ReplaySink(self.config.replay_size, frames=self.config.frames)
        return self._sink

    def initialize(self, agent: Agent, n_itr: int, batch_spec: BatchSpec, seed: int = 0) -> None:
        """See `Algo`.

        Raises TypeError for agents of another family, NotEnoughMemory if the replay does not fit, ValueError if it is
        too small for a batch.
        """
        config, spaces = self.config, agent.spaces
        if not isinstance(agent, self.AgentCls):
            raise TypeError(f"{type(self).__name__} improves a {self.AgentCls.__name__}, got a {type(agent).__name__}")
        if spaces is None:
            raise ValueError("the agent has no model yet; initialize the sampler first, which builds it")
        self._agent = agent
        self._n_itr = n_itr
        self._target = copy.deepcopy(agent)
        self._target.eval_mode(0)
        self._flat = FlatParameters(agent.parameters())
        self._target_flat = FlatParameters(self._target.parameters())
        self._optimizer = adam_for(self._flat.vector, config)
        self._writer: ReplayWriter | None = None
        if self._sink is not None:
            self._spec, self._ring = self._sink.spec, self._sink.ring
        else:
            examples = null_value(spaces.observation), null_value(spaces.action)
            self._spec = replay_spec(batch_spec, *examples, config.replay_size, frames=config.frames)
            arena, self._ring = shared_ring(self._spec)
            arena.close_fd()
            self._writer = ReplayWriter(self._spec, self._ring)
        self._replay = replay_over(
            self._spec,
            self._ring,
            prioritized=config.prioritized_replay,
            n_step=config.n_step,
            discount=config.discount,
            seed=seed,
            alpha=config.pri_alpha,
            beta=config.pri_beta_init,
        )
        self._file: ReplayFile | None = None
        self._n_collected = 0
        self._n_steps = 0  # of these, since learning began
        self._n_updates = 0

    def optimize_agent(self, itr: int, samples: Samples) -> OptInfo:
        """See `Algo`. Empty until `min_steps_learn` steps are in the replay."""
        replay, infos = self._replay, []
        if self._writer is not None:
            self._writer.append(samples)
        # Counted here and not in the ring, which a sampler process may be ahead in.
        n_steps = int(samples.env.valid.sum())
        self._n_collected += n_steps
        if self._n_collected >= self.config.min_steps_learn and len(replay):
            self._n_steps += n_steps
            learning_rate = self._schedule(itr)
            self._agent.train_mode(itr)
            infos = [self._update(itr) for _ in range(self._asked(self._n_steps) - self._n_updates)]
        self._gather_statistics(samples)
        if not infos:
            return {}
        opt_info = {name: math.fsum(info[name] for info in infos) / len(infos) for name in infos[0]}
        return {**opt_info, "learningRate": learning_rate}

    @abstractmethod
    def losses(self, transitions: Transitions) -> TransitionLosses:
        """The losses of sampled transitions, on the agent's device."""

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's, the target network, counters, and what the replay samples by; not what is in the replay."""
        return {
            "optimizer": self._optimizer.state_dict(),
            "target": self._target.state_dict(),
            "replay": self._replay.state_dict(),
            "n_steps": self._n_steps,
            "n_rows": int(self._ring.cursor[0]),
            "n_updates": self._n_updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`. Without the contents of the replay (`load_contents`), learning goes on once
        `min_steps_learn` new steps are in it. Raises ValueError for what `state_dict` cannot have answered.
        """
        _STATE(state, "algo")
        load_adam(self._optimizer, state["optimizer"])
        self._target.load_state_dict(state["target"])
        self._replay.load_state_dict(state["replay"])
        self._n_steps, self._n_updates = state["n_steps"], state["n_updates"]
        # Else the next batch is followed by as many updates as those numbers say, or none are for as long.
        due = self._asked(self._n_steps) - self._n_updates
        whole(0, 1 + self._asked(_MOST_CUT * self._spec.batch.size))(due, "algo: the updates that are due")

    def cut(self) -> None:
        """See `Algo.cut`. What a sampler process fills has all of its batches."""
        if self._writer is not None:
            self._writer.cut()

    def save_contents(self, folder: Path) -> None:
        """See `Algo.save_contents`: what was appended to the replay since the last time."""
        if self._file is None:
            self._file = ReplayFile(folder, self._spec)
        self._file.save(self._ring)

    def load_contents(self, folder: Path, state: dict[str, Any]) -> None:
        """See `Algo.load_contents`. What is missing of the replay is said in the log, and learning goes on once
        `min_steps_learn` steps are in it.
        """
        n_rows = state["n_rows"]
        whole()(n_rows, "algo.n_rows")
        self._file = ReplayFile(folder, self._spec)
        try:
            self._file.load(self._ring, until=n_rows)
        except FileNotFoundError:
            if n_rows:
                _log.warning(
                    "%s holds no replay, and the checkpoint was saved with one of %d rows; it begins anew, learning "
                    "goes on once %d steps are in it",
                    folder,
                    n_rows,
                    self.config.min_steps_learn,
                )
        assert self._agent.spaces is not None
        n_actions = int(cast(Discrete, self._agent.spaces.action).n)
        actions = self._ring.action
        if actions.min() < 0 or actions.max() >= n_actions:
            raise CheckpointError(
                f"{folder} holds actions from {actions.min()} to {actions.max()}, and the environment has {n_actions}; "
                "it is of another run"
            )
        self._n_collected = self._replay.n_appended

    def best_next(self, values: torch.Tensor, transitions: Transitions) -> torch.Tensor:
        """The action after each transition, int64 `[N]`, by the target's values `[N, n_actions]` or, for double DQN, by
        the agent's.
        """
        if self.config.double_dqn:
            values = self._agent(transitions.next_inputs).q
        return values.argmax(dim=-1)

    def _asked(self, n_steps: int) -> int:
        """Updates that `replay_ratio` asks for: exactly, in fractions, so that none is lost over many batches."""
        return math.floor(Fraction(self.config.replay_ratio) * n_steps / self.config.batch_size)

    def _schedule(self, itr: int) -> float:
        """What changes over training: the learning rate, which is returned, and how much importance weights correct."""
        config, done = self.config, min(1.0, itr / self._n_itr)
        if isinstance(self._replay, PrioritizedReplay):
            self._replay.beta = config.pri_beta_init + done * (config.pri_beta_final - config.pri_beta_init)
        return set_learning_rate(self._optimizer, config, done)

    def _update(self, itr: int) -> OptInfo:
        """One step of the optimizer; everything stays as it is if a loss or a gradient is not finite."""
        sampled = self._replay.sample(self.config.batch_size)
        indices, sampled.indices = sampled.indices, None
        device = self._flat.vector.device
        transitions: Transitions = tree_map(lambda leaf: leaf.to(device), sampled)
        losses = self.losses(transitions)
        loss = (transitions.weights * losses.loss).mean()
        self._flat.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        grad_norm = self._flat.clip_grad_norm(self.config.clip_grad_norm)
        scalars = {"loss": loss, "gradNorm": grad_norm, **losses.info}
        info = dict(zip(scalars, torch.stack([scalar.detach() for scalar in scalars.values()]).tolist(), strict=True))
        if not (math.isfinite(info["loss"]) and math.isfinite(info["gradNorm"])):
            where = f"itr {itr}, update {self._n_updates}"
            raise not_finite(type(self).__name__, where, info, transitions, self._agent.model)
        self._optimizer.step()
        self._n_updates += 1
        self._replay.update_priorities(indices, losses.priority)
        if self._n_updates % self.config.target_update_interval == 0:
            self._update_target()
        return info

    @torch.no_grad()
    def _update_target(self) -> None:
        """Moves the target's parameters towards the agent's, and copies its buffers, which are statistics."""
        self._target_flat.vector.lerp_(self._flat.vector, self.config.target_update_tau)
        for to, value in zip(self._target.model.buffers(), self._agent.model.buffers(), strict=True):
            to.copy_(value)

    def _gather_statistics(self, samples: Samples) -> None:
        """After learning: the observations of a batch, for models that normalize."""
        valid = samples.env.valid

        def rows(leaf: torch.Tensor) -> torch.Tensor:
            return leaf[valid].to(self._flat.vector.device)

        observation: Tree = tree_map(rows, samples.env.observation)
        self._agent.update_statistics(observation)
