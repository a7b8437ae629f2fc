"""SAC, which learns a stochastic policy of high return and high entropy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium.spaces import Box

from headrace.agents.base import Agent
from headrace.agents.qpg.sac import SacAgent
from headrace.algos.base import OptInfo
from headrace.algos.checks import require
from headrace.algos.qpg.base import QpgAlgo, QpgConfig
from headrace.config import checked_names, settings_in
from headrace.replays.base import Transitions
from headrace.schema import tensor
from headrace.types import BatchSpec

__all__ = ["SAC", "SACConfig"]


@checked_names
@dataclass(frozen=True, kw_only=True)
class SACConfig(QpgConfig):
    """The settings of `SAC`."""

    alpha: float | None = None
    """The temperature α, the weight of the entropy; None: it is learned, so that the entropy becomes
    `target_entropy`."""
    initial_alpha: float = 1.0
    """Value at which a learned α begins."""
    alpha_learning_rate: float | None = None
    """Adam's step size for log α; None: `learning_rate`."""
    target_entropy: float | None = None
    """The entropy of scaled actions at which a learned α aims; None: minus the number of components of an action."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "alpha_learning_rate"):
            if getattr(self, name) is not None:
                require(name, getattr(self, name), 0.0, math.inf)
        if not 0.0 < self.initial_alpha < math.inf:
            raise ValueError(f"initial_alpha must be above 0, got {self.initial_alpha!r}")


@settings_in(SACConfig)
class SAC(QpgAlgo):
    """Learns a stochastic policy that maximizes the return and, with weight α, its own entropy::

        critics:  minimize (return + discount · (min_i Q_target,i(s', a') − α log π(a'|s')) − Q_i(s, a))²,  a' ~ π(·|s')
        policy:   maximize min_i Q_i(s, ã) − α log π(ã|s),  ã ~ π(·|s)
        log α:    minimize −log α · (log π(ã|s) + target entropy)

    Haarnoja et al., "Soft actor-critic algorithms and applications", 2018, algorithm 1, with the loss of log α that is
    usual in implementations. Entropies are those of scaled actions. With `n_step` above 1, the entropy of the steps
    before the bootstrap is left out of the return. The agent is a `SacAgent`.

    Args:
        config: the settings; None: the defaults.
    """

    AgentCls = SacAgent
    config: SACConfig
    _agent: SacAgent
    _target: SacAgent
    with_target = ("critic",)

    def __init__(self, config: SACConfig | None = None) -> None:
        super().__init__(SACConfig() if config is None else config)

    def initialize(self, agent: Agent, n_itr: int, batch_spec: BatchSpec, seed: int = 0) -> None:
        """See `OffPolicyAlgo`."""
        spaces = self.require_built(agent)
        assert isinstance(spaces.action, Box)
        config = self.config
        given = config.target_entropy
        self._target_entropy = -float(spaces.action.shape[0]) if given is None else given
        self._log_alpha: torch.nn.Parameter | None = None
        if config.alpha is None:
            self._log_alpha = torch.nn.Parameter(torch.tensor(math.log(config.initial_alpha), device=agent.device))
        super().initialize(agent, n_itr, batch_spec, seed)

    def trained(self, agent: Agent) -> Mapping[str, tuple[Iterable[torch.nn.Parameter], float]]:
        """See `OffPolicyAlgo`; log α has an optimizer of its own."""
        parts = super().trained(agent)
        if self._log_alpha is None:
            return parts
        given = self.config.alpha_learning_rate
        return {**parts, "alpha": ([self._log_alpha], self.config.learning_rate if given is None else given)}

    def next_values(self, transitions: Transitions) -> torch.Tensor:
        """See `QpgAlgo`; the values include the entropy's part."""
        following = transitions.next_inputs
        dist = self._agent(following).dist
        action, log_prob = dist.reparametrized(self.normal(dist.mean.shape))
        return self._target.q(following, action).amin(dim=0) - self._alpha() * log_prob

    def update_policy(self, itr: int, transitions: Transitions) -> OptInfo:
        """See `QpgAlgo`; updates α, too."""
        inputs, alpha = transitions.inputs, self._alpha()
        dist = self._agent(inputs).dist
        action, log_prob = dist.reparametrized(self.normal(dist.mean.shape, purpose=1))
        loss = (alpha * log_prob - self._agent.q(inputs, action).amin(dim=0)).mean()
        entropy = -log_prob.detach().mean()
        info = self.step_policy(itr, transitions, loss, {"entropy": entropy, "alpha": alpha})
        if self._log_alpha is not None:
            optimizer = self.optimizers["alpha"]
            optimizer.backward(self._log_alpha * (entropy - self._target_entropy), None)
            optimizer.step()
        return info

    def state_dict(self) -> dict[str, Any]:
        """See `OffPolicyAlgo`; it contains `log_alpha` if that is learned."""
        state = super().state_dict()
        return state if self._log_alpha is None else {**state, "log_alpha": self._log_alpha.detach()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `OffPolicyAlgo`."""
        if self._log_alpha is None:
            super().load_state_dict(state)
            return
        others = {name: value for name, value in state.items() if name != "log_alpha"}
        tensor((), torch.float32)(state.get("log_alpha"), "algo.log_alpha")
        super().load_state_dict(others)
        with torch.no_grad():
            self._log_alpha.copy_(state["log_alpha"])

    def _alpha(self) -> torch.Tensor:
        """Returns the temperature, a scalar without gradient."""
        if self._log_alpha is None:
            return torch.tensor(self.config.alpha, device=self._device)
        return self._log_alpha.detach().exp()
