"""R2D1, which learns the action values of an agent with a memory from sequences of time steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from headrace.agents.base import Agent
from headrace.agents.dqn.r2d1 import R2d1Agent
from headrace.algos.checks import require
from headrace.algos.dqn.base import QLearningAlgo, QLearningConfig, TransitionLosses
from headrace.buffers.samples import Samples
from headrace.buffers.tree import tree_map, tree_rows
from headrace.config import checked_names, settings_in
from headrace.replays.base import Sequences
from headrace.replays.make import sequence_replay_over
from headrace.replays.replay import Replay
from headrace.replays.ring import ReplayRing, ReplaySpec
from headrace.replays.sequence import mixed_priorities
from headrace.replays.sequences import SequenceShape
from headrace.types import BatchSpec, Tree

__all__ = ["R2D1", "ActingErrors", "R2D1Config", "rescaled", "unscaled"]


def rescaled(value: torch.Tensor, eps: float) -> torch.Tensor:
    """Returns `h(x) = sign(x) (√(|x| + 1) − 1) + ε x`, which makes large values smaller.

    Pohlen et al., "Observe and look further: achieving consistent performance on Atari", 2018, section 3.2.

    Args:
        value: x, float `[...]`.
        eps: ε, at least 0.
    """
    return value / ((value.abs() + 1.0).sqrt() + 1.0) + eps * value  # √(|x| + 1) − 1 without its rounding near 0


def unscaled(value: torch.Tensor, eps: float) -> torch.Tensor:
    """Returns h⁻¹(x), the inverse of `rescaled`::

        h⁻¹(x) = sign(x) (((√(1 + 4ε (|x| + 1 + ε)) − 1) / 2ε)² − 1)

    Pohlen et al., 2018, proposition A.2.

    Args:
        value: x, float `[...]`.
        eps: ε, at least 0.
    """
    size = value.abs() + (1.0 + eps)
    root = 2.0 * size / ((1.0 + 4.0 * eps * size).sqrt() + 1.0)  # the fraction, in a form without cancellation
    return value.sign() * (root + 1.0) * (root - 1.0)


@checked_names
@dataclass(frozen=True, kw_only=True)
class R2D1Config(QLearningConfig):
    """The settings of `R2D1`."""

    discount: float = 0.997
    """γ, the weight of the next step's reward."""
    batch_size: int = 32
    """Sequences in one update."""
    batch_T: int = 80
    """Time steps of a sequence that are learned from."""
    warmup_T: int = 40
    """Time steps before them, which bring the recurrent state up to date ("burn-in")."""
    replay_ratio: float = 1.0
    """How many times a step is learned from, on average: updates · batch_size · batch_T / environment steps."""
    min_steps_learn: int = 5_000
    """Environment steps in the replay before the first update."""
    learning_rate: float = 1e-4
    """Adam's step size, or its initial value if there is a schedule."""
    adam_eps: float = 1e-3
    """Adam's ε."""
    clip_grad_norm: float = 80.0
    """The gradient is scaled down to this norm."""
    prioritized_replay: bool = True
    """Sample sequences with large errors more often, with importance weights (Schaul et al., 2016)."""
    pri_alpha: float = 0.9
    """α, the exponent of priorities; 0 samples uniformly."""
    pri_beta_init: float = 0.6
    """β at the start, the exponent of importance weights."""
    pri_beta_final: float = 0.6
    """β at the end of training; in between it changes linearly."""
    pri_eta: float = 0.9
    """η, the part of a sequence's largest error in its priority; the rest is the part of its mean error."""
    input_priorities: bool = True
    """Give new sequences priorities from the values with which the agent acted; otherwise, the largest so far."""
    value_eps: float | None = 1e-3
    """ε of the rescaling of values; None: values are not rescaled."""
    stored_state: bool = True
    """Start sequences with the recurrent state that the sampler recorded; otherwise, without a memory."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("batch_T", 1), ("warmup_T", 0)):
            require(name, getattr(self, name), least, math.inf)
        require("pri_eta", self.pri_eta, 0.0, 1.0)
        if self.value_eps is not None:
            require("value_eps", self.value_eps, 0.0, math.inf)

    @property
    def shape(self) -> SequenceShape:
        """Lengths of the parts of a sequence."""
        return SequenceShape(self.warmup_T, self.batch_T, self.n_step)

    def scaled(self, value: torch.Tensor) -> torch.Tensor:
        """Returns returns on the scale of the network's values."""
        return value if self.value_eps is None else rescaled(value, self.value_eps)

    def unscaled(self, value: torch.Tensor) -> torch.Tensor:
        """Returns values of the network on the scale of returns."""
        return value if self.value_eps is None else unscaled(value, self.value_eps)


@dataclass(frozen=True)
class ActingErrors:
    """Returns the errors `|δ|` of a batch's steps from the values with which the agent acted, for new priorities.

    Where a batch ends or an episode is truncated before n steps, the error is that of fewer steps; it is not known
    (NaN) where not even one step can be valued.

    Args:
        config: the settings of the algorithm.
    """

    config: R2D1Config

    def __call__(self, samples: Samples) -> np.ndarray:
        """Returns float32 `[T, B]`.

        Args:
            samples: a batch whose `agent_info` is a `DqnInfo`.
        """
        config, env = self.config, samples.env
        q = samples.agent.agent_info.q
        best = config.unscaled(q.max(dim=-1).values)
        following = torch.cat([best[1:], torch.full_like(best[:1], math.nan)]).masked_fill(env.terminated, 0.0)
        # Whether what follows a step has a value: the row after it, or nothing, after a terminated episode.
        valued = env.valid & (env.terminated | ~(env.truncated | following.isnan()))
        total, value, goes_on = env.reward.clone(), config.discount * following, env.valid & ~env.done
        for k in range(1, config.n_step):
            ahead = [torch.cat([leaf[k:], torch.zeros_like(leaf[:k])]) for leaf in (valued, env.reward, following)]
            goes_on = goes_on & ahead[0]
            total = torch.where(goes_on, total + config.discount**k * ahead[1], total)
            value = torch.where(goes_on, config.discount ** (k + 1) * ahead[2], value)
            goes_on = goes_on & ~torch.cat([env.done[k:], torch.ones_like(env.done[:k])])
        chosen = q.gather(-1, samples.agent.action.long()[..., None])[..., 0]
        errors = (config.scaled(total + value) - chosen).abs()
        found: np.ndarray = torch.where(valued, errors, math.nan).numpy(force=True)
        return found


@settings_in(R2D1Config)
class R2D1(QLearningAlgo):
    """Learns action values by an LSTM or GRU from sequences of time steps; R2D2 with one learner.

    Kapturowski et al., "Recurrent experience replay in distributed reinforcement learning", 2019. Sequences are sampled
    from a prioritized replay. The networks first run through `warmup_T` time steps, from the
    recurrent state that the agent had there; then the loss of the next `batch_T` is the mean of ½δ² over their valid
    time steps, with::

        δ_t = h(Σ_{k<m} γ^k r_{t+k} + γ^m h⁻¹(Q_target(s_{t+m}, a*))) − Q(s_t, a_t)

    h is `rescaled`; m is `n_step`, or less at the end of an episode: a truncated one bootstraps from its final
    observation. a* is the best action of the online network, for double DQN, or of the target network. The priority of
    a sequence is `η max |δ| + (1 − η) mean |δ|` (section 2.3).

    The sampler needs a `state_interval`, the distance between the starts of sequences.

    Args:
        config: the settings; None: the defaults.
    """

    AgentCls: ClassVar[type[Agent]] = R2d1Agent
    config: R2D1Config
    _agent: R2d1Agent
    _target: R2d1Agent

    def __init__(self, config: R2D1Config | None = None) -> None:
        super().__init__(R2D1Config() if config is None else config)

    @property
    def steps_per_update(self) -> int:
        """See `OffPolicyAlgo`."""
        return self.config.batch_size * self.config.batch_T

    @property
    def stores_states(self) -> bool:
        """See `OffPolicyAlgo`."""
        return self.config.stored_state

    @property
    def first_errors(self) -> Callable[[Samples], np.ndarray] | None:
        """See `OffPolicyAlgo`."""
        wanted = self.config.prioritized_replay and self.config.input_priorities
        return ActingErrors(self.config) if wanted else None

    def require_batch(self, batch_spec: BatchSpec) -> None:
        """See `Algo`."""
        config = self.config
        if batch_spec.state_interval is None:
            raise ValueError(
                f"R2D1 learns from sequences of {config.warmup_T} + {config.batch_T} + {config.n_step} time steps that "
                "start where the sampler records recurrent states, but the sampler's state_interval is None; give it "
                f"one that divides its batch_T={batch_spec.T}"
            )
        least = batch_spec.T + config.shape.length
        n_rows = config.replay_size // batch_spec.B
        if n_rows < least:
            raise ValueError(
                f"replay_size={config.replay_size} is {n_rows} time steps of the sampler's batch_B={batch_spec.B} "
                f"environments, but batches of batch_T={batch_spec.T} and sequences of {config.shape.length} time "
                f"steps (warmup_T={config.warmup_T}, batch_T={config.batch_T}, n_step={config.n_step}) need {least}; "
                f"make it at least {least * batch_spec.B}"
            )

    def make_replay(self, spec: ReplaySpec, ring: ReplayRing, seed: int) -> Replay[Any]:
        """See `OffPolicyAlgo`."""
        config = self.config
        return sequence_replay_over(
            spec,
            ring,
            config.shape,
            prioritized=config.prioritized_replay,
            discount=config.discount,
            seed=seed,
            alpha=config.pri_alpha,
            beta=config.pri_beta_init,
            eta=config.pri_eta,
        )

    def losses(self, transitions: Sequences) -> TransitionLosses:
        """See `QLearningAlgo`; the losses and priorities are those of `N` sequences."""
        config, W, sequences = self.config, self.config.warmup_T, transitions
        learned = tree_map(lambda leaf: leaf[W:], sequences.inputs)
        with torch.no_grad():
            target_q = self._target.unroll(learned, self._warm(self._target, sequences))[0].q
            state = self._warm(self._agent, sequences)
        q = self._agent.unroll(learned, state)[0].q
        with torch.no_grad():
            best = (q if config.double_dqn else target_q).argmax(dim=-1, keepdim=True)
            following = config.unscaled(target_q.gather(-1, best)[..., 0]).gather(0, sequences.next_row - W)
            # Not `discount · following`: the values of padding may be infinite, where all of its actions are masked.
            rest = torch.where(sequences.discount > 0, sequences.discount * following, 0.0)
            target = config.scaled(sequences.return_ + rest)
        rows = (sequences.row - W)[..., None].expand(-1, -1, q.shape[-1])
        chosen = q.gather(0, rows).gather(-1, sequences.action.long()[..., None])[..., 0]
        valid, n_valid = sequences.valid, sequences.valid.sum(dim=0)
        delta = torch.where(valid, target - chosen, 0.0)
        error = delta.detach().abs()
        known = torch.where(valid, error, math.nan).cpu().numpy()
        priority = torch.from_numpy(mixed_priorities(known, config.pri_eta))
        info = {
            "tdAbsErr": error.sum() / n_valid.sum(),
            "q": torch.where(valid, chosen.detach(), 0.0).sum() / n_valid.sum(),
        }
        return TransitionLosses(0.5 * delta.square().sum(dim=0) / n_valid, priority, info)

    def _warm(self, agent: R2d1Agent, sequences: Sequences) -> Tree:
        """Returns the recurrent state after the time steps that are not learned from, tree of `[N, ...]`."""
        if not self.config.warmup_T:
            return sequences.state
        return agent.unroll(tree_rows(sequences.inputs, slice(0, self.config.warmup_T)), sequences.state)[1]
