"""DDPG, TD3 and SAC: targets and losses by hand, temperature, delayed updates, resuming, and learning."""

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headrace.agents.base import Agent
from headrace.agents.qpg import DdpgAgent, SacAgent, Td3Agent
from headrace.algos.qpg import DDPG, SAC, TD3, DDPGConfig, QpgAlgo, SACConfig, TD3Config
from headrace.buffers.samples import Samples
from headrace.replays.base import Transitions
from headrace.runners import AsyncRl, MinibatchRl, RunnerConfig, load_checkpoint, save_checkpoint
from headrace.runners.logging.logger import Logger
from headrace.samplers import (
    AlternatingSampler,
    AsyncAlternatingSampler,
    AsyncCpuSampler,
    AsyncGpuSampler,
    AsyncNoOverlapAlternatingSampler,
    AsyncSerialSampler,
    BaseSampler,
    CpuSampler,
    GpuSampler,
    NoOverlapAlternatingSampler,
    SerialSampler,
)
from headrace.types import BatchSpec, EnvSpaces, StepInputs
from tests.quick import quick_and_slow
from tests.reaching import Reach
from tests.test_pg_algos import equal, weights

pytestmark = pytest.mark.usefixtures("copies_tried_here")

QUICK: dict[str, Any] = {"batch_size": 32, "replay_ratio": 8.0, "replay_size": 4000, "min_steps_learn": 64}
SMALL: dict[str, Any] = {
    "model_kwargs": {"hidden_sizes": (16, 16)},
    "q_model_kwargs": {"hidden_sizes": (16, 16)},
    "random_itr_max": 2,
}
AGENTS: dict[str, Any] = {
    "ddpg": lambda **options: DdpgAgent(**{**SMALL, **options}),
    "td3": lambda **options: Td3Agent(**{**SMALL, **options}),
    "sac": lambda **options: SacAgent(**{**SMALL, **options}),
}
ALGOS: dict[str, Any] = {
    "ddpg": lambda **options: DDPG(DDPGConfig(**{**QUICK, **options})),
    "td3": lambda **options: TD3(TD3Config(**{**QUICK, **options})),
    "sac": lambda **options: SAC(SACConfig(**{**QUICK, **options})),
}


def sampler_of(cls: type[BaseSampler] = SerialSampler, **options: Any) -> BaseSampler:
    return cls(Reach, **{"batch_T": 8, "batch_B": 8, "max_decorrelation_steps": 0, "n_workers": 2, **options})


def collected(agent: Agent, n_itr: int, **options: Any) -> list[Samples]:
    with sampler_of(**options).initialize(agent, seed=0) as sampler:
        return [sampler.obtain_samples(itr)[0].copy() for itr in range(n_itr)]


def begun(name: str, n_itr: int = 3, agent_options: Any = None, **options: Any) -> tuple[Any, Any, list[Samples]]:
    """An agent, an algorithm that is initialized, and batches to learn from."""
    agent, algo = AGENTS[name](**(agent_options or {})), ALGOS[name](**options)
    batches = collected(agent, n_itr)
    algo.initialize(agent, n_itr=n_itr, batch_spec=batches[0].batch_spec, seed=0)
    return agent, algo, batches


# ---- settings ----


@pytest.mark.parametrize("config_cls", [DDPGConfig, TD3Config, SACConfig])
def test_defaults_are_those_of_the_papers_and_settings_are_checked(config_cls: Any) -> None:
    config = config_cls()
    assert (config.batch_size, config.replay_ratio, config.n_step, config.discount) == (256, 256.0, 1, 0.99)
    assert (config.target_update_tau, config.clip_grad_norm, config.linear_lr_schedule) == (0.005, None, False)
    for wrong in ({"actor_learning_rate": -1.0}, {"clip_grad_norm": -1.0}, {"n_step": 0}, {"target_update_tau": 2.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            config_cls(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        (SACConfig, {"initial_alpha": 0.0}),
        (SACConfig, {"alpha": -1.0}),
        (SACConfig, {"alpha_learning_rate": -1.0}),
        (TD3Config, {"policy_update_interval": 0}),
        (TD3Config, {"target_noise_std": -1.0}),
        (TD3Config, {"target_noise_clip": -1.0}),
    ],
)
def test_settings_of_one_algorithm_are_checked(wrong: tuple[Any, dict[str, float]]) -> None:
    config_cls, settings = wrong
    with pytest.raises(ValueError, match=next(iter(settings))):
        config_cls(**settings)


@pytest.mark.parametrize(
    ("algo", "agent", "says"),
    [
        (SAC(), Td3Agent(), "SAC trains a SacAgent, got a Td3Agent"),
        (TD3(), DdpgAgent(), "TD3 trains a Td3Agent, got a DdpgAgent"),
        (DDPG(), Td3Agent(), "DDPG trains a DdpgAgent, got a Td3Agent"),
    ],
)
def test_agent_of_another_algorithm_is_refused(algo: QpgAlgo, agent: Agent, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        algo.initialize(agent, n_itr=1, batch_spec=BatchSpec(8, 8))


@pytest.mark.parametrize("name", AGENTS)
def test_uninitialized_agent_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="initialize the sampler first"):
        ALGOS[name]().initialize(AGENTS[name](), n_itr=1, batch_spec=BatchSpec(8, 8))


# ---- targets and losses by hand ----


class Slope(torch.nn.Module):
    """A policy network: the outputs are the first observation, times a parameter each."""

    def __init__(self, spaces: EnvSpaces, n_outputs: int) -> None:
        super().__init__()
        self.slope = torch.nn.Parameter(torch.linspace(0.3, 0.6, n_outputs))

    def forward(self, observation: torch.Tensor, prev_action: Any, prev_reward: Any) -> torch.Tensor:
        return observation[..., :1] * self.slope


class Planes(torch.nn.Module):
    """Critic i has the value `c_i · (observation[0] + 2 action[0] − action[1])`."""

    def __init__(self, spaces: EnvSpaces, n_critics: int) -> None:
        super().__init__()
        self.c = torch.nn.Parameter(torch.tensor([1.0, 1.5, 2.0])[:n_critics])

    def forward(self, observation: torch.Tensor, prev_action: Any, prev_reward: Any, action: torch.Tensor) -> Any:
        plane = observation[..., 0] + 2.0 * action[..., 0] - action[..., 1]
        return self.c.reshape(-1, *[1] * plane.ndim) * plane


BY_HAND = {"ModelCls": Slope, "model_kwargs": None, "QModelCls": Planes, "q_model_kwargs": None}
REWARDS, DISCOUNTS, SEEN, NEXT = [1.0, -2.0, 0.5], [0.9, 0.0, 0.81], [0.5, -1.0, 2.0], [1.0, -0.7, 0.2]
#: Recorded actions in the environment's units, and what they are when scaled.
RECORDED, SCALED = [[5.0, -3.0], [3.0, -2.5], [2.0, -2.25]], [[1.0, -1.0], [0.0, 0.0], [-0.5, 0.5]]


def transitions_by_hand() -> Transitions:
    def inputs(x: Sequence[float]) -> StepInputs:
        n = len(x)
        observation = torch.stack([torch.tensor(x), torch.zeros(n)], dim=-1)
        return StepInputs(observation, torch.zeros(n, 2), torch.zeros(n), torch.zeros(n, dtype=torch.bool))

    return Transitions(
        inputs(SEEN),
        torch.tensor(RECORDED),
        torch.tensor(REWARDS),
        inputs(NEXT),
        torch.tensor(DISCOUNTS),
        torch.tensor([1.0, 0.5, 0.25]),
        np.arange(3),
    )


def plane(x: float, action: Sequence[float]) -> float:
    return x + 2.0 * action[0] - action[1]


def losses_by_hand(targets: Sequence[float], n_critics: int) -> float:
    """Half the weighted mean squared error, summed over critics."""
    total = 0.0
    for c in [1.0, 1.5][:n_critics]:
        for target, x, action, weight in zip(targets, SEEN, SCALED, [1.0, 0.5, 0.25], strict=True):
            total += 0.5 * weight * (target - c * plane(x, action)) ** 2 / 3
    return total


def test_ddpg_target_and_losses_are_those_computed_by_hand() -> None:
    _, algo, _ = begun("ddpg", 1, BY_HAND, learning_rate=0.0)
    transitions = transitions_by_hand()
    targets = [
        reward + discount * plane(x, (math.tanh(0.3 * x), math.tanh(0.6 * x)))
        for reward, discount, x in zip(REWARDS, DISCOUNTS, NEXT, strict=True)
    ]
    info, priority = algo.update(0, transitions)
    assert info["qLoss"] == pytest.approx(losses_by_hand(targets, 1), rel=1e-5)
    errors = [abs(target - plane(x, a)) for target, x, a in zip(targets, SEEN, SCALED, strict=True)]
    assert priority.tolist() == pytest.approx(errors, rel=1e-5)
    values = [plane(x, (math.tanh(0.3 * x), math.tanh(0.6 * x))) for x in SEEN]
    assert info["actorLoss"] == pytest.approx(-sum(values) / 3, rel=1e-5)


@pytest.mark.parametrize("clip", [0.5, 0.05])
def test_td3_target_is_the_lowest_value_of_a_smoothed_action(clip: float) -> None:
    options = {"learning_rate": 0.0, "target_noise_std": 0.4, "target_noise_clip": clip}
    _, algo, _ = begun("td3", 1, BY_HAND, **options)
    transitions = transitions_by_hand()
    noise = (0.4 * algo.normal(torch.Size((3, 2)))).clamp(-clip, clip).tolist()
    assert max(abs(e) for row in noise for e in row) > 0.05
    targets = []
    for reward, discount, x, row in zip(REWARDS, DISCOUNTS, NEXT, noise, strict=True):
        mean = (math.tanh(0.3 * x), math.tanh(0.6 * x))
        value = plane(x, [min(1.0, max(-1.0, a + e)) for a, e in zip(mean, row, strict=True)])
        targets.append(reward + discount * min(value, 1.5 * value))
    info, priority = algo.update(0, transitions)
    assert info["qLoss"] == pytest.approx(losses_by_hand(targets, 2), rel=1e-5)
    errors = [
        0.5 * (abs(target - plane(x, a)) + abs(target - 1.5 * plane(x, a)))
        for target, x, a in zip(targets, SEEN, SCALED, strict=True)
    ]
    assert priority.tolist() == pytest.approx(errors, rel=1e-5)


def squashed(x: torch.Tensor, slope: torch.Tensor, normal: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Actions and log densities by torch.distributions, in float64."""
    mean, log_std = (x[:, None] * slope).chunk(2, dim=-1)
    u = mean + log_std.exp() * normal
    of_u = torch.distributions.Normal(mean, log_std.exp())
    dist = torch.distributions.TransformedDistribution(of_u, torch.distributions.TanhTransform(cache_size=1))
    action = dist.transforms[0](u)
    return action, dist.log_prob(action).sum(dim=-1)


def test_sac_target_and_losses_are_those_of_torch_distributions() -> None:
    agent, algo, _ = begun("sac", 1, BY_HAND, learning_rate=0.0, alpha=0.3)
    c = torch.tensor([1.0, 1.5], dtype=torch.float64)
    slope = agent.model.actor.slope.detach().double().requires_grad_()
    transitions, drawn = transitions_by_hand(), [algo.normal(torch.Size((3, 2)), purpose) for purpose in (0, 1)]
    assert not torch.equal(*drawn)

    def lowest(x: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return (c[:, None] * (x + 2.0 * action[:, 0] - action[:, 1])).min(dim=0).values

    x = torch.tensor(NEXT, dtype=torch.float64)
    action, log_prob = squashed(x, slope, drawn[0].double())
    soft = lowest(x, action) - 0.3 * log_prob
    targets = torch.tensor(REWARDS, dtype=torch.float64) + torch.tensor(DISCOUNTS, dtype=torch.float64) * soft
    x = torch.tensor(SEEN, dtype=torch.float64)
    action, log_prob = squashed(x, slope, drawn[1].double())
    actor_loss = (0.3 * log_prob - lowest(x, action)).mean()
    actor_loss.backward()
    loss, entropy = actor_loss.item(), -log_prob.mean().item()
    info, _ = algo.update(0, transitions)
    assert info["qLoss"] == pytest.approx(losses_by_hand(targets.tolist(), 2), rel=1e-4)
    assert info["actorLoss"] == pytest.approx(loss, rel=1e-4)
    assert slope.grad is not None
    assert info["actorGradNorm"] == pytest.approx(float(slope.grad.norm()), rel=1e-4)
    assert info["entropy"] == pytest.approx(entropy, rel=1e-4)
    assert info["alpha"] == pytest.approx(0.3)
    assert "alphaLearningRate" not in algo.set_progress(0.0)


def test_policy_follows_the_critics_and_does_not_change_them() -> None:
    for name in AGENTS:
        agent, algo, batches = begun(name, 1, target_update_tau=0.0)
        algo._writer.append(batches[0])
        transitions = algo._replay.sample(32)
        critics = [parameter.detach().clone() for parameter in agent.model.critics.parameters()]
        actor = [parameter.detach().clone() for parameter in agent.model.actor.parameters()]
        algo._n_updates = 1
        algo.update_policy(0, transitions)
        assert all(map(torch.equal, critics, agent.model.critics.parameters())), name
        assert not all(map(torch.equal, actor, agent.model.actor.parameters())), name
        assert all(parameter.requires_grad for parameter in agent.model.critics.parameters())


# ---- temperature ----


@pytest.mark.parametrize(("target", "sign"), [(-100.0, -1.0), (100.0, 1.0)])
def test_temperature_falls_while_the_entropy_exceeds_its_target(target: float, sign: float) -> None:
    _, algo, batches = begun("sac", 1, target_entropy=target, initial_alpha=0.5, min_steps_learn=1, replay_ratio=0.5)
    info = algo.optimize_agent(0, batches[0])
    assert info["alpha"] == pytest.approx(0.5)
    # Adam's first step is the learning rate, whatever the size of the gradient.
    assert algo._log_alpha.item() == pytest.approx(math.log(0.5) + sign * 3e-4, abs=1e-6)
    default = begun("sac", 1)[1]
    assert default._target_entropy == -2.0


def test_temperature_has_its_own_learning_rate_and_gradient_of_the_gap() -> None:
    _, algo, batches = begun("sac", 1, alpha_learning_rate=0.1, actor_learning_rate=0.01, min_steps_learn=1)
    info = algo.optimize_agent(0, batches[0])
    rates = (info["criticLearningRate"], info["actorLearningRate"], info["alphaLearningRate"])
    assert rates == pytest.approx((3e-4, 0.01, 0.1))
    transitions = algo._replay.sample(32)
    optimizer = algo.optimizers["alpha"]
    seen: list[float] = []
    backward = optimizer.backward

    def watched(loss: torch.Tensor, max_norm: Any) -> torch.Tensor:
        norm = backward(loss, max_norm)
        seen.append(float(optimizer.vector.grad))
        return norm

    optimizer.backward = watched
    info = algo.update_policy(0, transitions)
    assert seen == pytest.approx([info["entropy"] + 2.0], rel=1e-5)


# ---- delays, targets, returns ----


def test_td3_updates_policy_and_targets_every_second_time() -> None:
    agent, algo, batches = begun("td3", 1)
    algo._writer.append(batches[0])

    def state() -> list[list[torch.Tensor]]:
        model, target = agent.model, algo._target.model
        parts = (model.critics, model.actor, target.critics, target.actor)
        return [[parameter.detach().clone() for parameter in part.parameters()] for part in parts]

    moved = []
    for _ in range(4):
        before = state()
        info = algo._update(0)
        moved.append([not equal(one, other) for one, other in zip(before, state(), strict=True)])
        assert ("actorLoss" in info) == moved[-1][1]
    assert moved == 2 * [[True, False, False, False], [True, True, True, True]]


@pytest.mark.parametrize(("name", "has_target_actor"), [("ddpg", True), ("sac", False)])
def test_targets_move_by_tau(name: str, has_target_actor: bool) -> None:
    agent, algo, batches = begun(name, 1, target_update_tau=0.25)
    algo._writer.append(batches[0])
    before, actor = weights(algo._target), copy.deepcopy(algo._target.model.actor.state_dict())
    algo._update(0)
    if has_target_actor:
        for target, then, now in zip(weights(algo._target), before, weights(agent), strict=True):
            torch.testing.assert_close(target, 0.75 * then + 0.25 * now)
    else:
        assert all(torch.equal(actor[key], value) for key, value in algo._target.model.actor.state_dict().items())
        critics, n = agent.model.critics, len(actor)
        for target, then, now in zip(
            algo._target.model.critics.parameters(), before[n:], critics.parameters(), strict=True
        ):
            torch.testing.assert_close(target, 0.75 * then + 0.25 * now)


@pytest.mark.parametrize("terminates", [True, False])
def test_returns_of_n_steps_are_discounted_and_bootstrap_after_truncations_only(terminates: bool) -> None:
    """Episodes last five steps; a target needs what follows a truncation, and nothing after a termination."""
    agent, algo = AGENTS["ddpg"](random_itr_max=0), ALGOS["ddpg"](n_step=3, discount=0.5)
    sampler = SerialSampler(Reach, {"terminates": terminates}, batch_T=16, batch_B=4, max_decorrelation_steps=0)
    with sampler.initialize(agent, seed=0):
        samples = sampler.obtain_samples(0)[0].copy()
    algo.initialize(agent, n_itr=1, batch_spec=samples.batch_spec, seed=0)
    algo._writer.append(samples)
    env, final = samples.env, samples.final
    finals = {(int(t), int(b)): row for row, (t, b) in enumerate(zip(final.time, final.column, strict=True))}

    def expected(t: int, b: int) -> float:
        total, factor = 0.0, 1.0
        for last in range(t, t + 3):
            total, factor = total + factor * float(env.reward[last, b]), 0.5 * factor
            if env.done[last, b]:
                break
        if env.done[last, b] and terminates:
            return total
        following = final.observation[finals[last, b]] if env.done[last, b] else env.observation[last + 1, b]
        inputs = StepInputs(following[None], torch.zeros(1, 2), torch.zeros(1), torch.zeros(1, dtype=torch.bool))
        return total + factor * algo._target.q(inputs, algo._target(inputs).mean).item()

    transitions = algo._replay.sample(512)
    with torch.no_grad():
        targets = transitions.return_ + transitions.discount * algo.next_values(transitions)
        places = {tuple(env.observation[t, b].tolist()): (t, b) for t, b in np.ndindex(16, 4)}
        seen = [places[tuple(observation)] for observation in transitions.inputs.observation.tolist()]
        assert len(set(seen)) > 40
        assert targets.tolist() == pytest.approx([expected(t, b) for t, b in seen], abs=1e-4)


def test_update_ratio_above_one_per_step_and_prioritized_replay() -> None:
    agent, algo, batches = begun("sac", 2, replay_ratio=64.0, min_steps_learn=64, prioritized_replay=True)
    algo.optimize_agent(0, batches[0])
    assert algo._n_updates == 128  # 64 steps, each learned from 64 times, by 32 at a time
    values = algo._replay.state_dict()["priorities"]
    assert len(values[values > 0].unique()) > 20, "errors become priorities"
    assert all(tensor.isfinite().all() for tensor in weights(agent))


def test_dropout_and_layer_normalization_are_in_effect() -> None:
    kwargs = {"hidden_sizes": (16, 16), "layer_norm": True, "dropout": 0.5}
    agent, algo, batches = begun("sac", 2, {"q_model_kwargs": kwargs})
    algo._writer.append(batches[0])
    inputs = algo._replay.sample(32).inputs
    action = torch.zeros(32, 2)
    agent.train_mode(0)
    assert not torch.equal(agent.q(inputs, action), agent.q(inputs, action))
    assert not torch.equal(algo._target.q(inputs, action), algo._target.q(inputs, action)), "targets drop, too"
    agent.eval_mode(0)
    assert torch.equal(agent.q(inputs, action), agent.q(inputs, action))
    body = agent.model.critics.body
    rows = torch.cat([inputs.observation, action], dim=-1)
    for index in range(2):
        hidden = rows
        for layer in range(3):
            hidden = hidden @ body.weights[layer][index] + body.biases[layer][index]
            if layer < 2:
                spread = hidden.var(dim=-1, keepdim=True, correction=0)
                hidden = (hidden - hidden.mean(dim=-1, keepdim=True)) / (spread + 1e-5).sqrt()
                hidden = torch.relu(hidden * body.scales[layer][index] + body.shifts[layer][index])
        torch.testing.assert_close(agent.q(inputs, action)[index], hidden[:, 0], atol=1e-5, rtol=1e-4)
    algo.optimize_agent(1, batches[1])
    assert not torch.equal(body.scales[0], torch.ones_like(body.scales[0])), "they learn"


# ---- it says what is wrong, and goes on where it was ----


@pytest.mark.parametrize("name", AGENTS)
def test_non_finite_loss_is_an_error_without_a_step(name: str) -> None:
    agent, algo, batches = begun(name, 3)
    for itr in (0, 1):
        algo.optimize_agent(itr, batches[itr])
    before, target = weights(agent), weights(algo._target)
    batches[2].env.reward[:] = math.nan
    with pytest.raises(FloatingPointError, match=r"qLoss=nan.* itr 2, update 32 .*batch\.return_"):
        algo.optimize_agent(2, batches[2])
    assert equal(before, weights(agent))
    assert equal(target, weights(algo._target))


@pytest.mark.parametrize("name", AGENTS)
def test_non_finite_policy_loss_names_the_parameter(name: str) -> None:
    agent, algo, batches = begun(name, 2)
    algo.optimize_agent(0, batches[0])
    with torch.no_grad():
        agent.model.actor.body.weights[0][0, 0, 0] = math.nan
        algo._target.model.actor.body.weights[0][0, 0, 0] = 0.0
    with pytest.raises(FloatingPointError, match=r"(actorLoss|qLoss)=nan.*parameter actor\.body\.weights\.0"):
        algo.optimize_agent(1, batches[1])


@pytest.mark.parametrize("name", AGENTS)
def test_restored_algorithm_continues_exactly(name: str, tmp_path: Path) -> None:
    agent, algo, batches = begun(name, 4, replay_ratio=2.5, prioritized_replay=True)
    for itr in range(3):
        algo.optimize_agent(itr, batches[itr])
    save_checkpoint(tmp_path / "saved.pt", {"algo": algo.state_dict(), "agent": agent.state_dict()})
    saved = load_checkpoint(tmp_path / "saved.pt")
    algo.optimize_agent(3, batches[3])
    other, again = AGENTS[name](), ALGOS[name](replay_ratio=2.5, prioritized_replay=True)
    other.initialize(agent.spaces, seed=9)
    again.initialize(other, n_itr=4, batch_spec=batches[0].batch_spec, seed=0)
    for samples in batches[:3]:
        again._writer.append(samples)
    other.load_state_dict(saved["agent"])
    again.load_state_dict(copy.deepcopy(saved["algo"]))
    again.optimize_agent(3, batches[3])
    assert equal(weights(agent), weights(other))
    assert equal(weights(algo._target), weights(again._target))
    if name == "sac":
        assert algo._log_alpha.item() == again._log_alpha.item() != 0.0
        for wrong in (None, torch.zeros(2), torch.tensor(math.nan)):
            with pytest.raises(ValueError, match="log_alpha"):
                again.load_state_dict({**saved["algo"], "log_alpha": wrong})


@pytest.mark.parametrize("name", ["sac", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ddpg", "td3"))])
def test_resumed_run_continues_bit_for_bit(name: str, tmp_path: Path) -> None:
    dropping = {"q_model_kwargs": {"hidden_sizes": (16,), "dropout": 0.1, "layer_norm": True}}

    def runner(n_steps: int, **options: Any) -> MinibatchRl:
        config = RunnerConfig(n_steps=n_steps, seed=0, log_interval_steps=128)
        return MinibatchRl(ALGOS[name](), AGENTS[name](**dropping), sampler_of(), config, logger=Logger(), **options)

    undisturbed = runner(512)
    undisturbed.train()
    runner(256, log_dir=tmp_path).train()
    longer = runner(512, resume_from=tmp_path)
    longer.train()
    assert equal(weights(longer.agent), weights(undisturbed.agent))
    theirs, ours = longer.algo, undisturbed.algo
    assert isinstance(theirs, QpgAlgo)
    assert isinstance(ours, QpgAlgo)
    assert equal(weights(theirs._target), weights(ours._target))
    assert theirs._n_updates == ours._n_updates == 8 * 16


def test_randomness_comes_from_the_seed_only() -> None:
    def trained(seed: int) -> list[torch.Tensor]:
        agent, algo = AGENTS["sac"](), ALGOS["sac"]()
        batches = collected(agent, 2)
        algo.initialize(agent, n_itr=2, batch_spec=batches[0].batch_spec, seed=seed)
        for itr, samples in enumerate(batches):
            algo.optimize_agent(itr, samples)
        return weights(agent)

    torch.manual_seed(1)
    first = trained(3)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert equal(first, trained(3))
    assert torch.equal(torch.get_rng_state(), state)
    assert not equal(first, trained(4))


# ---- they run everywhere, and learn ----

SYNCHRONOUS = [SerialSampler, CpuSampler, GpuSampler, AlternatingSampler, NoOverlapAlternatingSampler]
ASYNCHRONOUS = [
    AsyncSerialSampler,
    AsyncCpuSampler,
    AsyncGpuSampler,
    AsyncAlternatingSampler,
    AsyncNoOverlapAlternatingSampler,
]


@pytest.mark.parametrize(
    ("name", "cls"),
    quick_and_slow(
        [(name, cls) for name in AGENTS for cls in (*SYNCHRONOUS, *ASYNCHRONOUS)],
        quick=[("sac", CpuSampler), ("td3", AsyncSerialSampler), ("ddpg", GpuSampler)],
    ),
)
def test_every_algorithm_trains_with_every_sampler(name: str, cls: type[BaseSampler]) -> None:
    config = RunnerConfig(n_steps=512, seed=0, log_interval_steps=256)
    runner_cls = AsyncRl if cls in ASYNCHRONOUS else MinibatchRl
    agent = AGENTS[name]()
    runner = runner_cls(ALGOS[name](), agent, sampler_of(cls), config, logger=Logger())
    runner.train()
    assert isinstance(runner.algo, QpgAlgo)
    assert runner.algo._n_updates > 50
    assert all(tensor.isfinite().all() for tensor in weights(agent))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sac", {}),
        ("td3", {}),
        pytest.param("ddpg", {}, marks=pytest.mark.slow),
        pytest.param("sac", {"prioritized_replay": True, "n_step": 2}, marks=pytest.mark.slow),
        pytest.param("td3", {"prioritized_replay": True, "n_step": 2}, marks=pytest.mark.slow),
    ],
)
def test_policy_learns_to_reach_the_best_action(name: str, options: dict[str, Any]) -> None:
    agent = AGENTS[name](model_kwargs={"hidden_sizes": (32, 32)}, q_model_kwargs={"hidden_sizes": (32, 32)})
    settings = {"learning_rate": 5e-3, "discount": 0.5, "replay_ratio": 16.0, "batch_size": 64, **options}
    if name == "sac":
        settings["initial_alpha"] = 0.1
    algo = ALGOS[name](**settings)
    with sampler_of(batch_B=16, eval_n_envs=32).initialize(agent, seed=0) as sampler:
        algo.initialize(agent, n_itr=40, batch_spec=sampler.batch_spec, seed=0)
        for itr in range(40):
            infos = algo.optimize_agent(itr, sampler.obtain_samples(itr)[0])
        returns = [info.Return for info in sampler.evaluate_agent(40)]
    assert np.mean(returns) > 4.8  # of 5; uniform actions get 0.6
    assert all(math.isfinite(value) for value in infos.values())


@pytest.mark.gpu
@pytest.mark.parametrize("name", AGENTS)
def test_updates_run_on_the_device_of_the_agent(name: str) -> None:
    def trained(device: str) -> list[torch.Tensor]:
        agent, algo = AGENTS[name](), ALGOS[name](prioritized_replay=True)
        batches = collected(agent, 3)
        agent.to_device(device)
        algo.initialize(agent, n_itr=3, batch_spec=batches[0].batch_spec, seed=0)
        for itr, samples in enumerate(batches):
            algo.optimize_agent(itr, samples)
        return weights(agent)

    for here, there in zip(trained("cpu"), trained("cuda"), strict=True):
        torch.testing.assert_close(here, there.cpu(), rtol=1e-2, atol=1e-2)
