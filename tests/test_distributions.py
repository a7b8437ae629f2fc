"""Distributions over actions agree with torch's, and draws are a function of the uniforms."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from headrace.buffers.tree import tree_leaves, tree_map, tree_rows
from headrace.distributions import Bernoulli, Categorical, Gaussian, MultiCategorical, SquashedGaussian
from headrace.rng import Stream, env_keys, uniforms

MINUS_INFINITY = -float("inf")
SIZES = (2, 5, 1, 3)
#: The smallest and the largest uniform of the addressed generator, and what lies beyond.
EXTREMES = [2.0**-126, 2.0**-24, 0.5, 1 - 2.0**-23, 1 - 2.0**-24]
LEADING = [(), (7,), (3, 7)]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gaussian(*leading: int, d: int = 3, seed: int = 0) -> Gaussian:
    return Gaussian(2 * randn(*leading, d, seed=seed), 0.5 * randn(*leading, d, seed=seed + 1))


def bernoulli(*leading: int, n: int = 4, seed: int = 0) -> Bernoulli:
    return Bernoulli(3 * randn(*leading, n, seed=seed))


def multi_categorical(*leading: int, seed: int = 0) -> MultiCategorical:
    return MultiCategorical(tuple(Categorical(2 * randn(*leading, n, seed=seed + n)) for n in SIZES))


def categorical(*leading: int, seed: int = 0) -> Categorical:
    return Categorical(2 * randn(*leading, 5, seed=seed))


#: name → (maker of a distribution with these leading dims, uniforms a draw takes)
KINDS: dict[str, tuple[Callable[..., Any], int]] = {
    "gaussian": (gaussian, 4),
    "bernoulli": (bernoulli, 4),
    "multi-categorical": (multi_categorical, 4),
    "categorical": (categorical, 1),
}


def noise_of(*shape: int, seed: int = 0) -> torch.Tensor:
    """Addressed noise, as samplers draw it: `[n_steps, n_rows, size]`, reshaped."""
    n = int(np.prod(shape))
    return torch.from_numpy(uniforms(env_keys(seed, Stream.ACTION, [3]), 0, n, 1)).reshape(shape)


def leading_dims(leading: tuple[int, ...]) -> str:
    return str(list(leading))


# ---- log-probabilities and entropies are torch's ----


@pytest.mark.parametrize("leading", LEADING, ids=leading_dims)
def test_a_gaussian_agrees_with_torch(leading: tuple[int, ...]) -> None:
    mine, action = gaussian(*leading), randn(*leading, 3, seed=9)
    theirs = torch.distributions.Independent(torch.distributions.Normal(mine.mean, mine.log_std.exp()), 1)
    assert mine.log_prob(action).shape == mine.entropy().shape == leading
    torch.testing.assert_close(mine.log_prob(action), theirs.log_prob(action))
    torch.testing.assert_close(mine.entropy(), theirs.entropy())
    assert torch.equal(mine.mode(), mine.mean)


@pytest.mark.parametrize("leading", LEADING, ids=leading_dims)
def test_bernoulli_agrees_with_torch(leading: tuple[int, ...]) -> None:
    mine, action = bernoulli(*leading), (randn(*leading, 4, seed=9) > 0).to(torch.int8)
    theirs = torch.distributions.Independent(torch.distributions.Bernoulli(logits=mine.logits), 1)
    assert mine.log_prob(action).shape == mine.entropy().shape == leading
    torch.testing.assert_close(mine.log_prob(action), theirs.log_prob(action.float()))
    torch.testing.assert_close(mine.entropy(), theirs.entropy())
    assert torch.equal(mine.mode(), (torch.sigmoid(mine.logits) > 0.5).to(torch.int8))
    assert mine.mode().dtype == torch.int8


@pytest.mark.parametrize("leading", LEADING, ids=leading_dims)
def test_multi_categorical_agrees_with_torch(leading: tuple[int, ...]) -> None:
    mine = multi_categorical(*leading)
    theirs = [torch.distributions.Categorical(logits=part.logits) for part in mine.parts]
    action = torch.stack([torch.randint(n, leading, generator=torch.Generator().manual_seed(n)) for n in SIZES], -1)
    log_prob = sum(dist.log_prob(action[..., i]) for i, dist in enumerate(theirs))
    torch.testing.assert_close(mine.log_prob(action), log_prob)
    torch.testing.assert_close(mine.entropy(), sum(dist.entropy() for dist in theirs))
    assert mine.log_prob(action).shape == mine.entropy().shape == leading
    assert torch.equal(mine.mode(), torch.stack([dist.mode for dist in theirs], -1))


def test_probabilities_of_all_joint_actions_sum_to_one() -> None:
    parts = torch.cartesian_prod(*(torch.arange(n) for n in SIZES))
    dist = tree_map(lambda logits: logits.expand(len(parts), -1), multi_categorical())
    assert dist.log_prob(parts).exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    sides = torch.cartesian_prod(*[torch.arange(2)] * 4).to(torch.int8)
    assert bernoulli().log_prob(sides).exp().sum().item() == pytest.approx(1.0, abs=1e-5)


def test_nearly_certain_bernoulli_has_finite_log_probability_and_zero_entropy() -> None:
    dist = Bernoulli(torch.tensor([1e4, -1e4]))
    assert dist.log_prob(torch.tensor([1, 0])).item() == 0
    assert dist.log_prob(torch.tensor([0, 1])).item() == pytest.approx(-2e4)
    assert dist.entropy().item() == 0


# ---- draws ----


def test_a_gaussian_draw_is_the_transform_of_box_and_muller() -> None:
    """The first half of the uniforms are radii, the second half angles; of an odd dimension the last sine is unused."""
    noise = torch.tensor([0.2, 0.7, 0.1, 0.35])
    first, second = (math.sqrt(-2 * math.log(u)) for u in (0.2, 0.7))
    normal = [
        first * math.cos(2 * math.pi * 0.1),
        second * math.cos(2 * math.pi * 0.35),
        first * math.sin(2 * math.pi * 0.1),
    ]
    dist = Gaussian(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 1.0, 2.0]).log())
    expected = torch.tensor([1 + 0.5 * normal[0], 2 + 1.0 * normal[1], 3 + 2.0 * normal[2]])
    torch.testing.assert_close(dist.sample(noise), expected)
    with torch.inference_mode():
        torch.testing.assert_close(dist.sample(noise), expected)


@pytest.mark.parametrize(("d", "size"), [(1, 2), (2, 2), (3, 4), (4, 4), (7, 8)])
def test_gaussian_uses_pairs_of_uniforms(d: int, size: int) -> None:
    assert Gaussian.noise_size(d) == size
    dist = gaussian(6, d=d)
    assert dist.sample(noise_of(6, size)).shape == (6, d)


@pytest.mark.parametrize("d", [1, 2, 3, 5])
@pytest.mark.parametrize("route", ["torch", "numpy"])
def test_gaussian_draws_are_normal_and_independent(d: int, route: str) -> None:
    """40,000 draws of addressed noise: Kolmogorov and Smirnov's distance at 0.1 %, means, correlations at five σ."""
    n = 40_000
    mean, log_std = torch.arange(1.0, d + 1), torch.linspace(-1.0, 1.0, d)
    dist = Gaussian(mean.expand(n, d), log_std.expand(n, d))
    with torch.inference_mode(route == "numpy"):
        drawn = dist.sample(noise_of(n, Gaussian.noise_size(d), seed=d))
    standard = ((drawn - mean) / log_std.exp()).double()
    for values in standard.sort(dim=0).values.T:
        below = 0.5 * (1 + torch.erf(values / math.sqrt(2.0)))
        steps = torch.arange(n + 1, dtype=torch.float64) / n
        distance = torch.maximum((below - steps[:-1]).abs(), (below - steps[1:]).abs()).max()
        assert distance < 1.95 / math.sqrt(n)
    assert (standard.mean(dim=0).abs() < 5 / math.sqrt(n)).all()
    products = standard.T @ standard / n
    assert ((products - torch.eye(d, dtype=torch.float64)).abs() < 5 * math.sqrt(2 / n)).all()


def test_bernoulli_is_one_where_the_uniform_is_below_its_probability() -> None:
    dist = Bernoulli(torch.logit(torch.tensor([0.25, 0.25, 0.75, 0.75])))
    drawn = dist.sample(torch.tensor([0.24, 0.26, 0.74, 0.76]))
    assert drawn.tolist() == [1, 0, 1, 0]
    assert drawn.dtype == torch.int8


def test_bernoulli_frequencies_match_and_bits_are_independent() -> None:
    n, probabilities = 40_000, torch.tensor([0.05, 0.5, 0.9])
    drawn = Bernoulli(torch.logit(probabilities).expand(n, 3)).sample(noise_of(n, 3)).double()
    spread = (probabilities * (1 - probabilities) / n).sqrt()
    assert ((drawn.mean(dim=0) - probabilities).abs() < 5 * spread).all()
    assert (torch.corrcoef(drawn.T) - torch.eye(3)).abs().max() < 5 / math.sqrt(n)


def test_each_part_is_drawn_with_its_own_uniform() -> None:
    dist = multi_categorical(200)
    noise = noise_of(200, 4)
    whole = dist.sample(noise)
    assert whole.shape == (200, 4)
    assert whole.dtype == torch.int64
    for i, part in enumerate(dist.parts):
        assert torch.equal(whole[:, i], part.sample(noise[:, i : i + 1]))
        assert set(whole[:, i].tolist()) <= set(range(SIZES[i]))
    other = noise.clone()
    other[:, 1] = noise.flip(0)[:, 1]
    changed = dist.sample(other) != whole
    assert changed[:, 1].any()
    assert not changed[:, [0, 2, 3]].any()


# ---- both routes, any dims, extreme noise ----


@pytest.mark.parametrize("leading", [(), (1,), (65,)], ids=leading_dims)
@pytest.mark.parametrize("kind", KINDS)
def test_numpy_draws_equal_torch_draws(kind: str, leading: tuple[int, ...]) -> None:
    make, size = KINDS[kind]
    dist, noise = make(*leading), noise_of(*leading, size)
    by_torch = dist.sample(noise)
    with torch.inference_mode():
        by_numpy = dist.sample(noise)
    assert by_numpy.dtype == by_torch.dtype
    assert by_numpy.shape == by_torch.shape
    if kind == "gaussian":
        torch.testing.assert_close(by_numpy, by_torch, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(by_numpy, by_torch)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_are_independent_over_any_leading_dims(kind: str) -> None:
    make, size = KINDS[kind]
    dist, noise = make(6, 5), noise_of(6, 5, size)
    whole = dist.sample(noise)
    for t in range(6):
        torch.testing.assert_close(whole[t], tree_rows(dist, t).sample(noise[t]))
        torch.testing.assert_close(whole[t, 2], tree_rows(dist, (t, 2)).sample(noise[t, 2]))


@pytest.mark.parametrize("route", ["torch", "numpy"])
@pytest.mark.parametrize("kind", KINDS)
def test_extreme_noise_gives_possible_actions(kind: str, route: str) -> None:
    make, size = KINDS[kind]
    dist = make(50)
    for extreme in EXTREMES:
        with torch.inference_mode(route == "numpy"):
            drawn = dist.sample(torch.full((50, size), extreme))
        assert drawn.isfinite().all()
        assert dist.log_prob(drawn).isfinite().all()
        if kind == "gaussian":  # the farthest draw of float32 uniforms, and of what lies beyond
            assert (drawn - dist.mean).abs().le(14 * dist.log_std.exp()).all()


@pytest.mark.parametrize("route", ["torch", "numpy"])
@pytest.mark.parametrize("forbidden", [[0], [2], [4], [0, 1, 3, 4]])
def test_a_masked_action_is_never_drawn(forbidden: list[int], route: str) -> None:
    logits = 3 * randn(400, 5)
    logits[:, forbidden] = MINUS_INFINITY
    dist = MultiCategorical((Categorical(logits), Categorical(randn(400, 2))))
    draws = [noise_of(400, 2, seed=k) for k in range(10)] + [torch.full((400, 2), extreme) for extreme in EXTREMES]
    for noise in draws:
        with torch.inference_mode(route == "numpy"):
            actions = dist.sample(noise)
        assert not set(actions[:, 0].tolist()) & set(forbidden)
        assert actions[:, 0].min() >= 0
        assert actions[:, 0].max() < 5
    assert not set(dist.mode()[:, 0].tolist()) & set(forbidden)


# ---- gradients ----


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_and_reach_every_parameter(kind: str) -> None:
    make, size = KINDS[kind]
    dist = make(9)
    leaves = tree_leaves(dist)
    for leaf in leaves:
        leaf.requires_grad_()
    action = dist.sample(noise_of(9, size)).detach()
    (dist.log_prob(action).sum() + dist.entropy().sum()).backward()
    for leaf in leaves:
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        assert leaf.shape[-1] == 1 or leaf.grad.abs().sum() > 0  # a choice of one is no choice


def test_masked_part_has_finite_gradients_and_no_entropy() -> None:
    logits = torch.tensor([[0.3, MINUS_INFINITY, 1.0], [MINUS_INFINITY, MINUS_INFINITY, 0.2]], requires_grad=True)
    other = randn(2, 4).requires_grad_()
    dist = MultiCategorical((Categorical(logits), Categorical(other)))
    rest = torch.distributions.Categorical(logits=torch.tensor([0.3, 1.0]))
    alone = torch.distributions.Categorical(logits=other.detach())
    expected = alone.entropy() + torch.stack([rest.entropy(), torch.tensor(0.0)])
    torch.testing.assert_close(dist.entropy().detach(), expected)
    (dist.entropy() + dist.log_prob(torch.tensor([[2, 0], [2, 3]]))).sum().backward()
    for leaf in (logits, other):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
    assert logits.grad is not None
    assert (logits.grad[logits.detach() == MINUS_INFINITY] == 0).all()


def test_the_log_probability_of_a_far_action_under_a_narrow_gaussian_is_finite() -> None:
    dist = Gaussian(torch.zeros(2, requires_grad=True), torch.full((2,), -20.0, requires_grad=True))
    log_prob = dist.log_prob(torch.tensor([1.0, -1.0]))
    log_prob.backward()
    assert log_prob.isfinite()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in tree_leaves(dist))


# ---- squashed Gaussian ----


def test_squashed_density_is_that_of_the_gaussian_by_numerical_change_of_variables() -> None:
    mean, log_std = torch.tensor([-0.4, 1.3]).double(), torch.tensor([-0.7, 0.4]).double()
    edges = torch.linspace(-0.999, 0.999, 20_001, dtype=torch.float64)
    centers = 0.5 * (edges[1:] + edges[:-1])
    for d in range(2):
        one = SquashedGaussian(mean[d : d + 1], log_std[d : d + 1])
        density = one.log_prob(centers[:, None]).exp()
        cdf = torch.distributions.Normal(mean[d], log_std[d].exp()).cdf(edges.atanh())
        torch.testing.assert_close(density * edges.diff(), cdf.diff(), rtol=1e-3, atol=1e-9)
        # Mean of the samples, and the integral of action times density, over all that the Gaussian draws.
        n = 200_000
        gaussian = torch.distributions.Normal(mean[d], log_std[d].exp())
        drawn_edges = torch.linspace(-8, 8, 20_001, dtype=torch.float64) * log_std[d].exp() + mean[d]
        drawn_centers = 0.5 * (drawn_edges[1:] + drawn_edges[:-1])
        expected = float((drawn_centers.tanh() * gaussian.cdf(drawn_edges).diff()).sum())
        drawn = SquashedGaussian(mean[d].expand(n, 1), log_std[d].expand(n, 1)).sample(noise_of(n, 2).double())
        assert float(drawn.mean()) == pytest.approx(expected, abs=5e-3)
    both = SquashedGaussian(mean, log_std)
    action = torch.tensor([[0.3, -0.2]]).double()
    parts = [SquashedGaussian(mean[d : d + 1], log_std[d : d + 1]).log_prob(action[:, d : d + 1]) for d in range(2)]
    torch.testing.assert_close(both.log_prob(action), sum(parts))
    torch.testing.assert_close(both.mode(), torch.tanh(mean))


@pytest.mark.parametrize("graph", [True, False])
def test_reparametrized_draws_have_the_density_and_the_gradients_of_torch(graph: bool) -> None:
    mean, log_std, normal = (randn(6, 3, seed=seed).double() for seed in range(3))
    mean.requires_grad_()
    log_std.requires_grad_()
    with torch.set_grad_enabled(graph):
        action, log_prob = SquashedGaussian(mean, log_std).reparametrized(normal)
    of_u = torch.distributions.Normal(mean, log_std.exp())
    theirs = torch.distributions.TransformedDistribution(of_u, torch.distributions.TanhTransform(cache_size=1))
    expected = theirs.transforms[0](mean + log_std.exp() * normal)
    torch.testing.assert_close(action, expected)
    torch.testing.assert_close(log_prob, theirs.log_prob(expected).sum(dim=-1))
    torch.testing.assert_close(SquashedGaussian(mean, log_std).log_prob(action), log_prob)
    if graph:

        def draw(mean: torch.Tensor, log_std: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return SquashedGaussian(mean, log_std).reparametrized(normal)

        assert torch.autograd.gradcheck(draw, (mean, log_std))
        assert torch.autograd.gradgradcheck(draw, (mean, log_std))


def test_squashed_log_densities_are_finite_where_tanh_rounds_to_one() -> None:
    mean = torch.tensor([[20.0, -60.0]], requires_grad=True)
    dist = SquashedGaussian(mean, torch.zeros(1, 2))
    action, log_prob = dist.reparametrized(torch.zeros(1, 2))
    assert action.abs().tolist() == [[1.0, 1.0]]
    # log(1 − tanh²u) is 2 log 2 − 2|u| up to rounding.
    expected = -math.log(2.0 * math.pi) - 4.0 * math.log(2.0) + 2.0 * 80.0
    assert float(log_prob.detach()) == pytest.approx(expected, rel=1e-6)
    (gradient,) = torch.autograd.grad(log_prob.sum(), mean)
    torch.testing.assert_close(gradient, torch.tensor([[2.0, -2.0]]))
    assert dist.log_prob(torch.tensor([[1.0, -1.0]])).isfinite().all()
