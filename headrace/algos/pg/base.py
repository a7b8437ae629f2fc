"""Base class of policy-gradient algorithms: computes advantages from a batch and takes gradient steps on a loss."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from headrace.agents.base import Agent
from headrace.agents.dqn.dqn import DqnAgent
from headrace.algos.adam import AdamConfig, FlatAdam
from headrace.algos.base import Algo, OptInfo, mean_info
from headrace.algos.checks import finite, require
from headrace.algos.ranks import least_of, moments
from headrace.algos.returns import bootstrap_values, final_values, first_state, generalized_advantages
from headrace.algos.reward_scaling import RewardScaling
from headrace.buffers.samples import Samples
from headrace.buffers.tree import tree_map, tree_rows
from headrace.config import checked_names
from headrace.rng import Stream
from headrace.schema import fields
from headrace.types import BatchSpec, StepInputs, Tree

__all__ = ["Losses", "PgBatch", "PgConfig", "PolicyGradientAlgo", "mean_of"]


@dataclass
class PgBatch:
    """The data of a loss, with leading dims `[N]` (the valid steps of a batch) or `[T, B]` (recurrent agents).

    Args:
        inputs: inputs of the agent, as recorded.
        action: actions, as recorded.
        log_prob: log π(a|s) of the recorded distributions.
        value: values V, as recorded.
        advantage: advantages, normalized if the algorithm does so.
        returns: targets of the values.
        state: recurrent state before time step 0, tree of `[B, ...]`; None if feed-forward.
        valid: bool `[T, B]`; None: all steps are valid.
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
    """The terms of a loss, which is their weighted sum (see `PolicyGradientAlgo`).

    Args:
        policy: policy loss, a scalar with gradient.
        value: value loss, a scalar with gradient.
        entropy: mean entropy, a scalar with gradient.
        info: scalars without gradient, by name, for the log.
    """

    policy: torch.Tensor
    value: torch.Tensor
    entropy: torch.Tensor
    info: dict[str, torch.Tensor]


@checked_names
@dataclass(frozen=True, kw_only=True)
class PgConfig(AdamConfig):
    """The settings that all policy-gradient algorithms have."""

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
    """Give the advantages of a batch mean 0 and standard deviation 1; with several learners (`SyncRl`), those of all
    their batches together."""
    normalize_reward: bool = True
    """Learn from rewards divided by the running standard deviation of discounted returns (see `RewardScaling`). With
    large unscaled returns, the gradient of the value loss outweighs that of the policy, and values lag behind."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("discount", "gae_lambda"):
            require(name, getattr(self, name), 0.0, 1.0)
        for name in ("value_loss_coeff", "entropy_loss_coeff", "clip_grad_norm"):
            require(name, getattr(self, name), 0.0, math.inf)


class PolicyGradientAlgo(Algo):
    """Advantage actor-critic: `loss = policy + value_loss_coeff · value − entropy_loss_coeff · entropy`, with Adam.

    It works with agents whose training forward pass returns `dist` and `value` and that record both in `agent_info`.
    Feed-forward agents learn from the valid steps in any order; recurrent ones (`initial_state` is not None) learn from
    whole columns.

    `optimize_agent` returns two measures of how well the recorded values V predict their targets R (λ-returns or
    V-trace targets), over valid steps. V was recorded during collection, before the agent learned from the batch.

    - `explainedVariance`: 1 − Var(R − V) / Var(R). 1: V equals R up to a constant; 0: V is no better than a constant;
      below 0: V is worse. NaN if all R are equal.
    - `valueRMSE`: √mean((R − V)²), in units of the environment's rewards, also with `normalize_reward`.

    If R hardly varies, explained variance divides a small error by an even smaller variance; use valueRMSE then.

    Args:
        config: the settings.
    """

    bootstrap_value = True
    config: PgConfig

    def __init__(self, config: PgConfig) -> None:
        self.config = config
        self.discount = config.discount

    def require_agent(self, agent: Agent) -> None:
        """See `Algo`."""
        super().require_agent(agent)
        if isinstance(agent, DqnAgent):
            raise TypeError(
                f"{type(self).__name__} trains an agent with a policy and a value, got a {type(agent).__name__}, which "
                "has action values only; use a CategoricalPgAgent (GaussianPgAgent for Box actions), or DQN"
            )

    def initialize(self, agent: Agent, n_itr: int, batch_spec: BatchSpec, seed: int = 0) -> None:
        """See `Algo`; raises TypeError for an agent that does not fit."""
        self.require_agent(agent)
        self._agent = agent
        self._n_itr = n_itr
        self._seed = seed
        self._B = batch_spec.B
        self._reward_scaling = RewardScaling(self.discount) if self.config.normalize_reward else None
        self._optimizer = FlatAdam(agent.parameters(), self.config)
        self.optimizers = {"agent": self._optimizer}
        self._losses = self.compiled(self.losses)

    def optimize_agent(self, itr: int, samples: Samples) -> OptInfo:
        """See `Algo`."""
        self.require_initialized()
        agent, device = self._agent, self._agent.device
        if not least_of(self.ranks, int(samples.env.valid.any()))[0]:  # all ranks learn, or none
            return {}
        samples = tree_map(lambda leaf: leaf.to(device), samples)  # no copy of tensors that are on the device already
        agent.sample_mode(itr)  # V(final) must be computed in the same mode as the recorded values
        reward = self._scaled_reward(samples)
        batch = self._process(samples, reward)
        agent.train_mode(itr)
        learning_rate = self.set_progress(self._progress(itr))

        def recomputed() -> PgBatch:
            return self._recomputed(itr, batch, samples, reward)

        infos = [self._update(itr, number, part) for number, part in enumerate(self.parts(itr, batch, recomputed))]
        observation = batch.inputs.observation  # already only the valid steps, except for recurrent agents
        agent.update_statistics(observation if batch.state is None else _valid_steps(observation, samples.env.valid))
        scaling = self._reward_scaling
        return mean_info(infos) | learning_rate | _value_fit(batch, 1.0 if scaling is None else scaling.deviation)

    def advantages(
        self, samples: Samples, reward: torch.Tensor, valid: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns advantages and targets of the values, both `[T, B]`, by generalized advantage estimation.

        Args:
            samples: a batch.
            reward: rewards, scaled with `normalize_reward`, float `[T, B]`.
            valid: bool `[T, B]`; None: all steps are valid.

        Raises:
            ValueError: if the batch has no bootstrap value.
        """
        env, agent = samples.env, samples.agent
        if agent.bootstrap_value is None:
            raise ValueError(
                f"{type(self).__name__} needs samples.agent.bootstrap_value, which this batch does not have; "
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
    def parts(self, itr: int, batch: PgBatch, recomputed: Callable[[], PgBatch]) -> Iterator[PgBatch]:
        """Yields the data of each update: the whole batch, or minibatches.

        Args:
            itr: number of the batch.
            batch: the batch.
            recomputed: returns the batch with advantages and targets from the values of the current parameters.
        """

    @abstractmethod
    def losses(self, itr: int, part: PgBatch) -> Losses:
        """Returns the losses of one part of a batch.

        Args:
            itr: number of the batch.
            part: the data of one update, from `parts`.
        """

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the optimizer and of the reward scaling."""
        state = {"optimizer": self.optim_state_dict()}
        if self._reward_scaling is not None:
            state["reward_scaling"] = self._reward_scaling.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the result of `state_dict`. Raises ValueError for an invalid state."""
        scaling = {} if self._reward_scaling is None else {"reward_scaling": self._reward_scaling.kind(self._B)}
        fields({"optimizer": fields({}, more=True), **scaling})(state, "algo")
        self.load_optim_state_dict(state["optimizer"])
        if self._reward_scaling is not None:
            self._reward_scaling.load_state_dict(state["reward_scaling"])

    def cut(self, returns: torch.Tensor | None = None) -> None:
        """See `Algo.cut`."""
        if self._reward_scaling is not None:
            self._reward_scaling.cut(returns)

    def actor_critic_losses(self, part: PgBatch) -> Losses:
        """Returns the policy loss `−mean(log π(a|s) · A)`, half the squared value error, and the entropy."""
        dist, value = self.forward(part)
        return Losses(
            policy=-mean_of(dist.log_prob(part.action) * part.advantage, part.valid),
            value=0.5 * mean_of((value - part.returns).square(), part.valid),
            entropy=mean_of(dist.entropy(), part.valid),
            info={},
        )

    def forward(self, part: PgBatch) -> tuple[Any, torch.Tensor]:
        """Returns the distribution and the value under the current parameters, for one part of a batch."""
        outputs = self._agent(part.inputs, part.state)
        return outputs.dist, outputs.value

    def permutation(self, itr: int, epoch: int, n: int) -> torch.Tensor:
        """Returns a random permutation of 0 to n − 1, a function of (seed, itr, epoch): int64 `[n]`."""
        sequence = np.random.SeedSequence(self._seed, spawn_key=(int(Stream.MINIBATCH), itr, epoch))
        return torch.from_numpy(np.random.default_rng(sequence).permutation(n))

    def _progress(self, itr: int) -> float:
        """Returns the progress of training: 0 in the first iteration, rising linearly towards 1."""
        return min(1.0, itr / self._n_itr)

    def _scaled_reward(self, samples: Samples) -> torch.Tensor:
        """Returns the rewards to learn from, float `[T, B]`; updates the statistics that scale them."""
        env = samples.env
        if self._reward_scaling is None:
            return env.reward
        return self._reward_scaling(env.reward, env.done, _valid(samples), self.ranks)

    def _targets(self, samples: Samples, reward: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns advantages, normalized if asked, and targets of the values, both `[T, B]`."""
        valid = _valid(samples)
        advantage, returns = self.advantages(samples, reward, valid)
        if self.config.normalize_advantage:
            _, mean, var = moments(self.ranks, advantage if valid is None else advantage[valid])
            advantage = (advantage - mean) / (var.sqrt() + 1e-6)
        return advantage, returns

    def _process(self, samples: Samples, reward: torch.Tensor) -> PgBatch:
        """Computes advantages and returns; for feed-forward agents, also flattens `[T, B]` to the valid steps."""
        env, agent = samples.env, samples.agent
        with torch.no_grad():
            advantage, returns = self._targets(samples, reward)
            batch = PgBatch(
                inputs=StepInputs(env.observation, agent.prev_action, env.prev_reward, env.is_first),
                action=agent.action,
                log_prob=agent.agent_info.dist.log_prob(agent.action),
                value=agent.agent_info.value,
                advantage=advantage,
                returns=returns,
            )
        batch.state = first_state(self._agent, samples)
        if batch.state is not None:
            batch.valid = _valid(samples)
            return batch
        flat: PgBatch = _valid_steps(batch, env.valid)
        return flat

    def _recomputed(self, itr: int, batch: PgBatch, samples: Samples, reward: torch.Tensor) -> PgBatch:
        """Returns the batch with advantages and targets from the values of the current parameters.

        Args:
            itr: number of the batch.
            batch: the batch, from `_process`.
            samples: what it was made from.
            reward: rewards, scaled with `normalize_reward`, float `[T, B]`.
        """
        env, acted, agent = samples.env, samples.agent, self._agent
        agent.sample_mode(itr)
        with torch.no_grad():
            inputs = StepInputs(env.observation, acted.prev_action, env.prev_reward, env.is_first)
            value = agent(inputs, first_state(agent, samples)).value
            bootstrap_value = bootstrap_values(agent, samples)
            revalued = replace(
                acted, agent_info=replace(acted.agent_info, value=value), bootstrap_value=bootstrap_value
            )
            targets = self._targets(replace(samples, agent=revalued), reward)
        agent.train_mode(itr)
        advantage, returns = targets if batch.state is not None else _valid_steps(targets, env.valid)
        return replace(batch, advantage=advantage, returns=returns)

    def _update(self, itr: int, number: int, part: PgBatch) -> OptInfo:
        """Takes one optimizer step; if the loss or the gradient is not finite, raises and leaves the parameters."""
        losses = self._losses(itr, part)
        loss = (
            losses.policy
            + self.config.value_loss_coeff * losses.value
            - self.config.entropy_loss_coeff * losses.entropy
        )
        scalars = {
            "loss": loss,
            "policyLoss": losses.policy,
            "valueLoss": losses.value,
            "entropy": losses.entropy,
            "gradNorm": self._optimizer.backward(loss, self.config.clip_grad_norm),
        }
        where = f"itr {itr}, update {number}"
        info = finite(type(self).__name__, where, scalars, losses.info, part, self._agent.model)
        self._optimizer.step()
        info["perplexity"] = math.exp(min(info["entropy"], 700.0))  # with many MultiBinary bits, exp overflows
        return info


def _valid(samples: Samples) -> torch.Tensor | None:
    """Returns which steps are valid, bool `[T, B]`; None: all are."""
    valid = samples.env.valid
    return None if bool(valid.all()) else valid


def _valid_steps(tree: Tree, valid: torch.Tensor) -> Tree:
    """Flattens a tree of `[T, B, ...]` to its valid steps, `[N, ...]`; views if all are valid."""
    flat = tree_map(lambda leaf: leaf.flatten(0, 1), tree)
    return flat if bool(valid.all()) else tree_rows(flat, valid.flatten().nonzero()[:, 0])


def mean_of(values: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """Returns the mean over valid steps, a scalar.

    Args:
        values: float `[N]` or `[T, B]`.
        valid: bool of the same shape; None: all steps are valid.
    """
    return values.mean() if valid is None else values[valid].mean()


def _value_fit(batch: PgBatch, unit: float) -> OptInfo:
    """Returns measures of how well values predict their targets, over valid steps; see `PolicyGradientAlgo`.

    Args:
        batch: a batch, from `_process`.
        unit: size of one unit of the batch's returns, in the environment's rewards.
    """
    returns, value = batch.returns, batch.value
    if batch.valid is not None:
        returns, value = returns[batch.valid], value[batch.valid]
    error = returns - value
    variance, rounding = float(returns.var(correction=0)), torch.finfo(returns.dtype).eps * float(returns.abs().max())
    explained = 1.0 - float(error.var(correction=0)) / variance if variance > rounding**2 else math.nan
    return {"explainedVariance": explained, "valueRMSE": unit * float(error.square().mean().sqrt())}
