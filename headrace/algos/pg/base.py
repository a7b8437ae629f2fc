"""What policy-gradient algorithms share: from a batch to advantages, and from a loss to a step."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from headrace.agents.base import Agent
from headrace.algos.adam import AdamConfig, adam_for, load_adam, set_learning_rate
from headrace.algos.base import Algo, OptInfo
from headrace.algos.checks import not_finite, require
from headrace.algos.flat import FlatParameters
from headrace.algos.returns import final_values, generalized_advantages
from headrace.algos.reward_scaling import RewardScaling
from headrace.buffers.samples import Samples
from headrace.buffers.tree import tree_map, tree_rows
from headrace.config import checked_names
from headrace.rng import Stream
from headrace.schema import anything, fields
from headrace.types import BatchSpec, StepInputs, Tree

__all__ = ["Losses", "PgBatch", "PgConfig", "PolicyGradientAlgo", "mean_of"]


@dataclass
class PgBatch:
    """What a loss is computed from; leading dims `[N]` (the valid rows of a batch) or `[T, B]` (recurrent agents).

    state: `[B, ...]`, entering row 0, or None; valid: bool `[T, B]`, None where all rows are; the others are as
    recorded, `advantage` perhaps normalized.
    """

    inputs: StepInputs
    action: Tree
    log_prob: torch.Tensor
    value: torch.Tensor
    advantage: torch.Tensor
    returns: torch.Tensor
    state: Tree = None
    valid: torch.Tensor | None = None


@dataclass
class Losses:
    """Scalars with gradients, whose weighted sum is the loss, and `info`, scalars without, to log by name."""

    policy: torch.Tensor
    value: torch.Tensor
    entropy: torch.Tensor
    info: dict[str, torch.Tensor]


@checked_names
@dataclass(frozen=True, kw_only=True)
class PgConfig(AdamConfig):
    """The settings all policy-gradient algorithms have."""

    discount: float = 0.99
    """γ, the weight of the next step's reward."""
    gae_lambda: float = 0.95
    """λ of generalized advantage estimation; 1: discounted returns, 0: one-step temporal differences."""
    value_loss_coeff: float = 0.5
    """Weight of the value loss."""
    entropy_loss_coeff: float = 0.01
    """Weight of the entropy bonus."""
    clip_grad_norm: float = 0.5
    """The gradient is scaled down to this norm."""
    normalize_advantage: bool = True
    """Give the advantages of a batch mean 0 and standard deviation 1."""
    normalize_reward: bool = True
    """Learn from rewards divided by the running standard deviation of discounted returns (see `RewardScaling`).
    Without, large returns drown the policy's gradient in the value's, and the value is long in reaching them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("discount", "gae_lambda"):
            require(name, getattr(self, name), 0.0, 1.0)
        for name in ("value_loss_coeff", "entropy_loss_coeff", "clip_grad_norm"):
            require(name, getattr(self, name), 0.0, math.inf)


class PolicyGradientAlgo(Algo):
    """Advantage actor-critic: `loss = policy + value_loss_coeff · value − entropy_loss_coeff · entropy`, by Adam.

    Works with agents whose training forward returns `dist` and `value`, and that record both as their `agent_info`.
    Feed-forward agents learn from the valid rows in any order; recurrent ones (`initial_state` is not None) from whole
    columns.

    Two numbers of `optimize_agent` tell how well the values V that were recorded while the batch was collected, hence
    before it was learned from, foretell the returns R they are to become (λ-returns, or V-trace's targets), over valid
    rows:

    - `explainedVariance`: 1 − Var(R − V) / Var(R); 1: exactly but for a constant, 0: no better than a constant, below
      0: worse. NaN where all R are equal.
    - `valueRMSE`: √mean((R − V)²), in the environment's rewards, also with `normalize_reward`.

    Where R hardly varies, explained variance compares small errors with smaller differences: read valueRMSE there.
    """

    bootstrap_value = True
    config: PgConfig

    def __init__(self, config: PgConfig) -> None:
        self.config = config
        self.discount = config.discount

    def initialize(self, agent: Agent, n_itr: int, batch_spec: BatchSpec, seed: int = 0) -> None:
        """See `Algo`."""
        self._agent = agent
        self._n_itr = n_itr
        self._seed = seed
        self._B = batch_spec.B
        self._reward_scaling = RewardScaling(self.discount) if self.config.normalize_reward else None
        self._flat = FlatParameters(agent.parameters())
        self._optimizer = adam_for(self._flat.vector, self.config)

    def optimize_agent(self, itr: int, samples: Samples) -> OptInfo:
        """See `Algo`."""
        agent, device = self._agent, self._flat.vector.device
        if not samples.env.valid.any():
            return {}
        samples = tree_map(lambda leaf: leaf.to(device), samples)  # the same tensors where they are there already
        agent.sample_mode(itr)  # V(final) is to come from the same function as the recorded values
        batch = self._process(samples)
        agent.train_mode(itr)
        learning_rate = set_learning_rate(self._optimizer, self.config, self._progress(itr))
        infos = [self._update(itr, number, part) for number, part in enumerate(self.parts(itr, batch))]
        observation = batch.inputs.observation  # valid rows side by side already, but for recurrent agents
        agent.update_statistics(observation if batch.state is None else _valid_rows(observation, samples.env.valid))
        opt_info = {name: math.fsum(info[name] for info in infos) / len(infos) for name in infos[0]}
        opt_info["learningRate"] = learning_rate
        scaling = self._reward_scaling
        return opt_info | _value_fit(batch, 1.0 if scaling is None else scaling.deviation)

    def advantages(
        self, samples: Samples, reward: torch.Tensor, valid: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Advantages, and what values are to become, both `[T, B]`; by generalized advantage estimation.

        reward `[T, B]`: scaled; valid: bool `[T, B]`, None where all rows are.
        """
        env, agent = samples.env, samples.agent
        if agent.bootstrap_value is None:
            raise ValueError(
                f"{type(self).__name__} needs the value of the row after a batch, and this batch has none; "
                "call sampler.initialize(agent, bootstrap_value=True)"
            )
        return generalized_advantages(
            reward,
            agent.agent_info.value,
            env.terminated,
            env.truncated,
            agent.bootstrap_value,
            final_values(self._agent, samples),
            self.discount,
            self.config.gae_lambda,
            valid,
        )

    @abstractmethod
    def parts(self, itr: int, batch: PgBatch) -> Iterator[PgBatch]:
        """What each update learns from: the whole batch, or minibatches of it."""

    @abstractmethod
    def losses(self, itr: int, part: PgBatch) -> Losses:
        """The losses of one part."""

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's, and the statistics of rewards."""
        state = {"optimizer": self._optimizer.state_dict()}
        if self._reward_scaling is not None:
            state["reward_scaling"] = self._reward_scaling.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`; raises ValueError for what it cannot have answered."""
        scaling = {} if self._reward_scaling is None else {"reward_scaling": self._reward_scaling.kind(self._B)}
        fields({"optimizer": anything, **scaling})(state, "algo")
        load_adam(self._optimizer, state["optimizer"])
        if self._reward_scaling is not None:
            self._reward_scaling.load_state_dict(state["reward_scaling"])

    def cut(self) -> None:
        """See `Algo.cut`."""
        if self._reward_scaling is not None:
            self._reward_scaling.cut()

    def actor_critic_losses(self, part: PgBatch) -> Losses:
        """The policy gradient `−mean(log π(a|s) · A)`, half the squared error of the value, entropy."""
        dist, value = self.forward(part)
        return Losses(
            policy=-mean_of(dist.log_prob(part.action) * part.advantage, part.valid),
            value=0.5 * mean_of((value - part.returns).square(), part.valid),
            entropy=mean_of(dist.entropy(), part.valid),
            info={},
        )

    def forward(self, part: PgBatch) -> tuple[Any, torch.Tensor]:
        """The agent's distribution and value now, for the rows of a part."""
        outputs = self._agent(part.inputs, part.state)
        return outputs.dist, outputs.value

    def permutation(self, itr: int, epoch: int, n: int) -> torch.Tensor:
        """The numbers 0 to n − 1 in random order, a function of (seed, itr, epoch): int64 `[n]`."""
        sequence = np.random.SeedSequence(self._seed, spawn_key=(int(Stream.MINIBATCH), itr, epoch))
        return torch.from_numpy(np.random.default_rng(sequence).permutation(n))

    def _progress(self, itr: int) -> float:
        """0 in the first iteration, rising linearly towards 1."""
        return min(1.0, itr / self._n_itr)

    def _process(self, samples: Samples) -> PgBatch:
        """Advantages and returns; then, for feed-forward agents, the valid rows side by side."""
        env, agent = samples.env, samples.agent
        all_valid = bool(env.valid.all())
        valid = None if all_valid else env.valid
        with torch.no_grad():
            reward = env.reward
            if self._reward_scaling is not None:
                reward = self._reward_scaling(reward, env.done, valid)
            advantage, returns = self.advantages(samples, reward, valid)
            if self.config.normalize_advantage:
                real = advantage if valid is None else advantage[valid]
                advantage = (advantage - real.mean()) / (real.std(correction=0) + 1e-6)
            batch = PgBatch(
                inputs=StepInputs(env.observation, agent.prev_action, env.prev_reward, env.is_first),
                action=agent.action,
                log_prob=agent.agent_info.dist.log_prob(agent.action),
                value=agent.agent_info.value,
                advantage=advantage,
                returns=returns,
            )
        if agent.first_state is not None:
            batch.state, batch.valid = tree_rows(agent.first_state, 0), valid
            return batch
        side_by_side: PgBatch = _valid_rows(batch, env.valid)
        return side_by_side

    def _update(self, itr: int, number: int, part: PgBatch) -> OptInfo:
        """One step of the optimizer; the parameters stay as they are if a loss or a gradient is not finite."""
        losses = self.losses(itr, part)
        loss = (
            losses.policy
            + self.config.value_loss_coeff * losses.value
            - self.config.entropy_loss_coeff * losses.entropy
        )
        self._flat.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        grad_norm = self._flat.clip_grad_norm(self.config.clip_grad_norm)
        scalars = {
            "loss": loss,
            "policyLoss": losses.policy,
            "valueLoss": losses.value,
            "entropy": losses.entropy,
            "gradNorm": grad_norm,
            **losses.info,
        }
        info = dict(zip(scalars, torch.stack([scalar.detach() for scalar in scalars.values()]).tolist(), strict=True))
        if not (math.isfinite(info["loss"]) and math.isfinite(info["gradNorm"])):
            where = f"itr {itr}, update {number}"
            raise not_finite(type(self).__name__, where, info, part, self._agent.model)
        self._optimizer.step()
        info["perplexity"] = math.exp(min(info["entropy"], 700.0))  # of many bits it is no float any more
        return info


def _valid_rows(tree: Tree, valid: torch.Tensor) -> Tree:
    """The valid rows of a tree of `[T, B, ...]` side by side, `[N, ...]`; views where all are."""
    flat = tree_map(lambda leaf: leaf.flatten(0, 1), tree)
    return flat if bool(valid.all()) else tree_rows(flat, valid.flatten().nonzero()[:, 0])


def mean_of(rows: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """The mean over valid rows, a scalar."""
    return rows.mean() if valid is None else rows[valid].mean()


def _value_fit(batch: PgBatch, unit: float) -> OptInfo:
    """How well values foretell what they are to become, over valid rows; see `PolicyGradientAlgo`.

    unit: what the batch's returns are measured in, in the environment's rewards.
    """
    returns, value = batch.returns, batch.value
    if batch.valid is not None:
        returns, value = returns[batch.valid], value[batch.valid]
    error = returns - value
    variance, rounding = float(returns.var(correction=0)), torch.finfo(returns.dtype).eps * float(returns.abs().max())
    explained = 1.0 - float(error.var(correction=0)) / variance if variance > rounding**2 else math.nan
    return {"explainedVariance": explained, "valueRMSE": unit * float(error.square().mean().sqrt())}
