"""Policy-gradient agents in real samplers: every kind of action and observation, masks, bounds, and that they learn."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from headrace.agents.base import Agent
from headrace.agents.pg import CategoricalPgAgent, GaussianPgAgent, RecurrentCategoricalPgAgent
from headrace.algos.pg import PPO, PPOConfig
from headrace.distributions import Bernoulli, Categorical, Gaussian, MultiCategorical
from headrace.rng import Stream, env_keys, uniforms
from headrace.samplers import SerialSampler
from headrace.types import EnvSpaces, StepInputs
from tests.environments import SEED, AnySpaces, Varied
from tests.tasks import Masked, Matching, assert_reproduced, close, learned

INF = np.inf
BOX = spaces.Box(-INF, INF, (3,), np.float32)
UNEVEN = spaces.Box(np.array([-3, 0, -INF], np.float32), np.array([1, 0.5, INF], np.float32))

ACTIONS: dict[str, tuple[Any, spaces.Space[Any], type]] = {
    "discrete": (CategoricalPgAgent, spaces.Discrete(4), Categorical),
    "discrete from -2": (CategoricalPgAgent, spaces.Discrete(4, start=-2), Categorical),
    "multi-discrete": (CategoricalPgAgent, spaces.MultiDiscrete([3, 1, 4]), MultiCategorical),
    "multi-binary": (CategoricalPgAgent, spaces.MultiBinary(3), Bernoulli),
    "box": (GaussianPgAgent, UNEVEN, Gaussian),
    "box float64": (GaussianPgAgent, spaces.Box(-2, 3, (2,), np.float64), Gaussian),
    "box, state-dependent": (lambda: GaussianPgAgent(state_dependent_std=True, init_log_std=-1), UNEVEN, Gaussian),
}
OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "box": BOX,
    "discrete": spaces.Discrete(5, start=2),
    "dict": spaces.Dict({"x": spaces.Box(-1, 1, (2, 2), np.float32), "gear": spaces.Discrete(3)}),
    "tuple": spaces.Tuple((spaces.MultiBinary(2), spaces.Dict({"y": BOX}))),
    "image": spaces.Box(0, 255, (36, 36, 1), np.uint8),
    "dict with image": spaces.Dict({"camera": spaces.Box(0, 255, (3, 36, 40), np.uint8), "speed": BOX}),
}


@pytest.mark.parametrize("reset_mode", ["mid_batch", "wait"])
@pytest.mark.parametrize("name", ACTIONS)
def test_training_forward_reproduces_recorded_outputs_for_every_action_space(name: str, reset_mode: str) -> None:
    make, action, dist = ACTIONS[name]
    agent = make()
    env_kwargs = {"observation_space": BOX, "action_space": action}
    sampler = SerialSampler(Varied, env_kwargs, batch_T=12, batch_B=5, reset_mode=reset_mode)
    with sampler.initialize(agent, seed=SEED, bootstrap_value=True):
        for itr in range(2):
            samples, _ = sampler.obtain_samples(itr)
            assert samples.env.done[:-1].any()
            assert samples.env.truncated.any()
            assert type(samples.agent.agent_info.dist) is dist
            assert_reproduced(agent, samples)
            shake(agent, itr)


@pytest.mark.parametrize("reset_mode", ["mid_batch", "wait"])
@pytest.mark.parametrize("name", OBSERVATIONS)
def test_training_forward_reproduces_recorded_outputs_for_every_observation_space(name: str, reset_mode: str) -> None:
    agent = CategoricalPgAgent()
    env_kwargs = {"observation_space": OBSERVATIONS[name], "action_space": spaces.MultiDiscrete([2, 3])}
    sampler = SerialSampler(Varied, env_kwargs, batch_T=8, batch_B=3, reset_mode=reset_mode, max_decorrelation_steps=5)
    with sampler.initialize(agent, seed=SEED, bootstrap_value=True):
        for itr in range(2):
            samples, _ = sampler.obtain_samples(itr)
            assert samples.env.done[:-1].any()
            assert_reproduced(agent, samples)
            shake(agent, itr)


def shake(agent: Agent, itr: int) -> None:
    """Changes all parameters, as an optimizer would."""
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(0.05 * torch.sin(torch.arange(parameter.numel()) + itr).reshape(parameter.shape))


# ---- wrong spaces ----


@pytest.mark.parametrize(
    ("make", "action", "message"),
    [
        (CategoricalPgAgent, UNEVEN, "use a GaussianPgAgent for Box"),
        (CategoricalPgAgent, spaces.MultiDiscrete(np.array([[2, 3], [4, 5]])), r"MultiDiscrete \[k\]"),
        (CategoricalPgAgent, spaces.MultiBinary((2, 3)), r"MultiBinary \[n\]"),
        (CategoricalPgAgent, spaces.Dict({"a": spaces.Discrete(2)}), "ActionWrapper"),
        (RecurrentCategoricalPgAgent, UNEVEN, "use a GaussianPgAgent for Box"),
        (GaussianPgAgent, spaces.Discrete(3), "use a CategoricalPgAgent for Discrete"),
        (GaussianPgAgent, spaces.MultiBinary(3), "use a CategoricalPgAgent for Discrete, MultiDiscrete and MultiBin"),
        (GaussianPgAgent, spaces.Box(-1, 1, (2, 2), np.float32), r"Box action spaces \[d\] of floats.*ActionWrapper"),
        (GaussianPgAgent, spaces.Box(-1, 1, (), np.float32), r"Box action spaces \[d\] of floats"),
        (GaussianPgAgent, spaces.Box(0, 9, (2,), np.int64), r"Box action spaces \[d\] of floats"),
        (GaussianPgAgent, spaces.Tuple((UNEVEN,)), r"Box action spaces \[d\] of floats"),
    ],
)
def test_unsupported_action_space_is_a_type_error_with_the_remedy(
    make: Any, action: spaces.Space[Any], message: str
) -> None:
    with pytest.raises(TypeError, match=message) as error:
        make().initialize(EnvSpaces(BOX, action), seed=0)
    assert str(action) in str(error.value)


# ---- masks ----


MASKED = {"discrete": spaces.Discrete(6), "multi-discrete": spaces.MultiDiscrete([4, 2, 3])}


def masked_inputs(n: int, sizes: list[int], seed: int = 0) -> StepInputs:
    rng = np.random.default_rng(seed)
    mask = rng.random((n, sum(sizes))) < 0.4
    for start, size in zip(np.cumsum([0, *sizes[:-1]]), sizes, strict=True):
        mask[np.arange(n), start + rng.integers(size, size=n)] = True
    noise = uniforms(env_keys(seed, Stream.ACTION, range(n)), 0, 1, len(sizes))[0]
    x = torch.from_numpy(rng.normal(size=(n, 2)).astype(np.float32))
    return StepInputs(
        {"x": x, "action_mask": torch.from_numpy(mask).to(torch.int8)},
        torch.zeros(n, *([len(sizes)] if len(sizes) > 1 else [])),
        torch.zeros(n),
        torch.zeros(n, dtype=torch.bool),
        torch.from_numpy(noise),
    )


def masked_agent(name: str, make: Any = CategoricalPgAgent) -> tuple[Agent, list[int]]:
    agent, env = make(), Masked(MASKED[name])
    agent.initialize(EnvSpaces(env.observation_space, env.action_space), seed=0)
    return agent, env._sizes


@pytest.mark.parametrize("route", ["torch", "numpy"])
@pytest.mark.parametrize("make", [CategoricalPgAgent, RecurrentCategoricalPgAgent])
@pytest.mark.parametrize("name", MASKED)
def test_masked_actions_are_never_chosen(name: str, make: Any, route: str) -> None:
    """Drawn or greedy, 5,000 rows each, also by extreme noise; all that is allowed is drawn."""
    agent, sizes = masked_agent(name, make)
    n = 5000
    for mode in (agent.sample_mode, agent.eval_mode):
        mode(0)
        for fixed_noise in (None, 2.0**-24, 1 - 2.0**-24):
            inputs = masked_inputs(n, sizes)
            if fixed_noise is not None:
                inputs.noise.fill_(fixed_noise)
            with torch.inference_mode(route == "numpy"):
                step = agent.step(inputs, agent.initial_state(n))
            actions = step.action.reshape(n, -1)
            masks = torch.split(inputs.observation["action_mask"], sizes, dim=-1)
            for part, mask in enumerate(masks):
                assert mask.gather(1, actions[:, part : part + 1]).all()
                if mode == agent.sample_mode and fixed_noise is None:
                    alone = mask.sum(dim=-1) == 2  # both of two allowed actions are drawn
                    lower = actions[alone, part] == mask[alone].argmax(dim=-1)
                    assert 0.4 < lower.float().mean() < 0.6


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("reset_mode", ["mid_batch", "wait"])
def test_masks_apply_in_samplers_evaluations_and_learning(name: str, reset_mode: str) -> None:
    """The environment raises for a forbidden action; padding, whose masks allow nothing, is harmless."""
    agent, algo = CategoricalPgAgent(), PPO(PPOConfig(epochs=2, learning_rate=3e-3))
    sampler = SerialSampler(
        Masked,
        {"action_space": MASKED[name]},
        batch_T=12,
        batch_B=8,
        max_decorrelation_steps=20,  # random actions obey masks too
        reset_mode=reset_mode,
        eval_n_envs=8,
        eval_max_trajectories=40,
    )
    with sampler.initialize(agent, seed=SEED, bootstrap_value=True):
        algo.initialize(agent, n_itr=4, batch_spec=sampler.batch_spec)
        before = [parameter.detach().clone() for parameter in agent.parameters()]
        for itr in range(4):
            samples, _ = sampler.obtain_samples(itr)
            assert samples.env.valid.all() == (reset_mode == "mid_batch")
            assert_reproduced(agent, samples)
            algo.optimize_agent(itr, samples)
        assert len(sampler.evaluate_agent(4)) == 40
    for parameter, then in zip(agent.parameters(), before, strict=True):
        assert parameter.isfinite().all()
        assert not torch.equal(parameter, then)


def test_model_does_not_get_the_mask() -> None:
    agent, sizes = masked_agent("discrete")
    inputs, other = masked_inputs(50, sizes), masked_inputs(50, sizes, seed=1)
    other.observation["x"] = inputs.observation["x"]
    masks = [rows.observation["action_mask"] != 0 for rows in (inputs, other)]
    assert (masks[0] != masks[1]).any()
    infos = [agent(rows) for rows in (inputs, other)]
    assert torch.equal(infos[0].value, infos[1].value)
    both = masks[0] & masks[1]
    assert torch.equal(infos[0].dist.logits[both], infos[1].dist.logits[both])
    assert agent.model.features.size == 2
    for info, mask in zip(infos, masks, strict=True):
        assert torch.equal(info.dist.logits == -INF, ~mask)


def test_masked_probabilities_are_renormalized_over_allowed_actions() -> None:
    agent, sizes = masked_agent("discrete")
    shake(agent, 0)
    inputs = masked_inputs(20, sizes)
    mask = inputs.observation["action_mask"] != 0
    open_inputs = masked_inputs(20, sizes)
    open_inputs.observation["action_mask"].fill_(1)
    free = torch.softmax(agent(open_inputs).dist.logits, dim=-1) * mask
    close(torch.softmax(agent(inputs).dist.logits, dim=-1), free / free.sum(dim=-1, keepdim=True))


@pytest.mark.parametrize("name", MASKED)
def test_masks_that_allow_no_action_give_finite_outputs(name: str) -> None:
    """Padding is zero, and so are its masks."""
    agent, sizes = masked_agent(name)
    inputs = masked_inputs(4, sizes)
    inputs.observation["action_mask"][1:3] = 0
    agent.sample_mode(0)
    step = agent.step(inputs, None)
    info = agent(inputs)
    log_prob, entropy = info.dist.log_prob(step.action), info.dist.entropy()
    assert log_prob.isfinite().all()
    assert entropy.isfinite().all()
    (log_prob.sum() + entropy.sum() + info.value.sum()).backward()
    gradients = [parameter.grad for parameter in agent.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize(
    ("make", "action", "mask", "names"),
    [
        (CategoricalPgAgent, spaces.Discrete(4), spaces.MultiBinary(3), ["(3,)", "(4,)"]),
        (CategoricalPgAgent, spaces.Discrete(4), spaces.MultiBinary((1, 4)), ["(1, 4)", "(4,)"]),
        (CategoricalPgAgent, spaces.Discrete(4), spaces.Discrete(4), ["()", "(4,)"]),
        (CategoricalPgAgent, spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2), ["(2,)", "(5,)"]),
        (CategoricalPgAgent, spaces.MultiBinary(3), spaces.MultiBinary(3), ["(3,)", "no mask"]),
        (GaussianPgAgent, UNEVEN, spaces.MultiBinary(3), ["(3,)", "no mask"]),
    ],
)
def test_mask_of_wrong_shape_is_a_type_error_with_both_shapes(
    make: Any, action: spaces.Space[Any], mask: spaces.Space[Any], names: list[str]
) -> None:
    observation = spaces.Dict({"action_mask": mask, "x": BOX})
    with pytest.raises(TypeError, match="'action_mask' has shape") as error:
        make().initialize(EnvSpaces(observation, action), seed=0)
    assert all(name in str(error.value) for name in [*names, str(action)])


def test_observation_with_only_a_mask_is_refused() -> None:
    observation = spaces.Dict({"action_mask": spaces.MultiBinary(3)})
    with pytest.raises(TypeError, match="it needs at least one entry"):
        CategoricalPgAgent().initialize(EnvSpaces(observation, spaces.Discrete(3)), seed=0)


# ---- Gaussian actions ----


class Constant(torch.nn.Module):
    """A model that gives the observation as its outputs."""

    def __init__(self, spaces: EnvSpaces, n_outputs: int) -> None:
        super().__init__()
        self.n_outputs = n_outputs

    def forward(self, observation: torch.Tensor, prev_action: Any, prev_reward: Any) -> Any:
        return observation[..., : self.n_outputs], observation.sum(dim=-1)


#: Bounded twice, half-bounded twice, not bounded, and a number that can only be 2.
SIX = spaces.Box(np.array([-3, 0, 0, -INF, -INF, 2], np.float32), np.array([1, 0.5, INF, 5, INF, 2], np.float32))
MIDDLE, HALF = torch.tensor([-1, 0.25, 0, 0, 0, 0]), torch.tensor([2, 0.25, 1, 1, 1, 1])


@pytest.mark.parametrize("init_log_std", [0, -1, 0.5])
@pytest.mark.parametrize("state_dependent", [False, True])
def test_gaussian_outputs_are_scaled_to_the_bounds(state_dependent: bool, init_log_std: float) -> None:
    agent = GaussianPgAgent(ModelCls=Constant, state_dependent_std=state_dependent, init_log_std=init_log_std)
    agent.initialize(EnvSpaces(spaces.Box(-INF, INF, (12,), np.float32), SIX), seed=0)
    outputs = torch.linspace(-1.4, 1.4, 4 * 12).reshape(4, 12)
    dist = agent(StepInputs(outputs, None, None, None)).dist
    assert isinstance(dist, Gaussian)
    close(dist.mean, MIDDLE + HALF * outputs[:, :6])
    log_std = outputs[:, 6:] if state_dependent else torch.zeros(4, 6)
    close(dist.log_std.exp(), HALF * (log_std + init_log_std).exp())
    names = [name for name, _ in agent.model.named_parameters()]
    assert names == ([] if state_dependent else ["log_std"])


def test_state_dependent_standard_deviation_is_bounded() -> None:
    agent = GaussianPgAgent(ModelCls=Constant, state_dependent_std=True)
    agent.initialize(EnvSpaces(BOX, spaces.Box(-1, 1, (1,), np.float32)), seed=0)
    outputs = torch.tensor([[0.0, 1e9], [0.0, -1e9]])
    dist = agent(StepInputs(outputs, None, None, None)).dist
    assert isinstance(dist, Gaussian)
    assert dist.log_std.tolist() == [[2], [-20]]


def test_sampled_action_is_recorded_and_the_environment_gets_it_clipped() -> None:
    made: list[AnySpaces] = []
    env_kwargs = {"observation_space": BOX, "action_space": SIX, "made": made}
    agent = GaussianPgAgent(init_log_std=1.0)
    sampler = SerialSampler(Varied, env_kwargs, batch_T=30, batch_B=3, max_decorrelation_steps=0)
    with sampler.initialize(agent, seed=SEED):
        samples, _ = sampler.obtain_samples(0)
        recorded = samples.agent.action.numpy()
        outside = (recorded < SIX.low) | (recorded > SIX.high)
        assert outside[..., [0, 1, 2, 3, 5]].any(axis=(0, 1)).all()
        for b, env in enumerate(made[-3:]):
            got = np.stack(env.actions)
            assert np.array_equal(got, np.clip(recorded[:, b], SIX.low, SIX.high))
            assert all(SIX.contains(action) for action in got)


@pytest.mark.parametrize("state_dependent", [False, True])
def test_standard_deviation_is_trained(state_dependent: bool) -> None:
    agent, algo = GaussianPgAgent(state_dependent_std=state_dependent), PPO()
    env_kwargs = {"observation_space": BOX, "action_space": UNEVEN}
    sampler = SerialSampler(Varied, env_kwargs, batch_T=16, batch_B=4)
    with sampler.initialize(agent, seed=SEED, bootstrap_value=True):
        algo.initialize(agent, n_itr=2, batch_spec=sampler.batch_spec)
        samples, _ = sampler.obtain_samples(0)
        algo.optimize_agent(0, samples)
        inputs = StepInputs(samples.env.observation, None, None, None)
        dist = agent(inputs).dist
        assert isinstance(dist, Gaussian)
        log_std = dist.log_std
        assert (log_std != samples.agent.agent_info.dist.log_std).all()
        assert (log_std.std(dim=(0, 1)) > 1e-6).tolist() == [state_dependent] * 3


def test_greedy_actions_are_the_means() -> None:
    agent = GaussianPgAgent(ModelCls=Constant)
    agent.initialize(EnvSpaces(BOX, UNEVEN), seed=0)
    agent.eval_mode(0)
    noise = torch.rand(5, agent.noise_size, generator=torch.Generator().manual_seed(0))
    step = agent.step(StepInputs(torch.ones(5, 3), None, None, None, noise), None)
    close(step.action, torch.tensor([[1.0, 0.5, 1.0]]).expand(5, 3))


# ---- learning ----


@pytest.mark.parametrize(
    ("make", "action"),
    [
        pytest.param(CategoricalPgAgent, spaces.Discrete(4, start=-1), marks=pytest.mark.slow),
        (CategoricalPgAgent, spaces.MultiDiscrete([3, 2])),
        pytest.param(CategoricalPgAgent, spaces.MultiBinary(3), marks=pytest.mark.slow),
        (GaussianPgAgent, spaces.Box(np.array([0, -4], np.float32), np.array([10, -1], np.float32))),
        pytest.param(
            lambda: GaussianPgAgent(state_dependent_std=True),
            spaces.Box(-1, 3, (2,), np.float32),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["discrete", "multi-discrete", "multi-binary", "box", "box, state-dependent"],
)
def test_ppo_learns_with_every_kind_of_action(make: Any, action: spaces.Space[Any]) -> None:
    """A policy that ignores the observation gets 0.5 at most."""
    assert learned(make(), lambda: Matching(action), n_itr=15, discount=0.0, learning_rate=1e-2) / 5 > 0.93
