"""Compiled operations of autograd have the values and gradients of PyTorch's operators."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.nn import functional

from headrace import compiled
from headrace.algos.pg.surrogate import ppo_losses
from headrace.distributions import Categorical, Gaussian
from headrace.models.mlp import TanhBody
from headrace.models.tanh_network import tanh_network

Compute = Callable[..., torch.Tensor]

pytestmark = pytest.mark.skipif(compiled.learning is None, reason="the native part is not built")


def numbers(*shape: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def layers(*sizes: int) -> list[torch.Tensor]:
    found = []
    for n_in, n_out in pairwise(sizes):
        found += [numbers(n_out, n_in, scale=0.5), numbers(n_out)]
    return found


def network(rows: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
    return tanh_network(rows, [(parameters[i], parameters[i + 1]) for i in range(0, len(parameters), 2)])


def network_by_hand(rows: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
    for i in range(0, len(parameters) - 2, 2):
        rows = functional.linear(rows, parameters[i], parameters[i + 1]).tanh()
    return functional.linear(rows, *parameters[-2:])


def categorical(logits: torch.Tensor) -> torch.Tensor:
    action = torch.arange(logits[..., 0].numel()).reshape(logits.shape[:-1]) % 3
    return torch.stack([Categorical(logits).log_prob(action), Categorical(logits).entropy()])


def categorical_by_hand(logits: torch.Tensor) -> torch.Tensor:
    action = torch.arange(logits[..., 0].numel()).reshape(logits.shape[:-1]) % 3
    theirs = torch.distributions.Categorical(logits=logits)
    return torch.stack([theirs.log_prob(action), theirs.entropy()])


def gaussian(mean: torch.Tensor, log_std: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    return Gaussian(mean, log_std.expand_as(mean)).log_prob(action)


def gaussian_by_hand(mean: torch.Tensor, log_std: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    return torch.distributions.Normal(mean, log_std.exp()).log_prob(action).sum(-1)


ROWS = 37
ADVANTAGE, RETURNS, OLD_LOG_PROB, OLD_VALUE = (numbers(ROWS, n, scale=0.5)[:, 0] for n in range(1, 5))


def losses(log_prob: torch.Tensor, entropy: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return ppo_losses((log_prob, entropy, value), (OLD_LOG_PROB, ADVANTAGE, RETURNS, OLD_VALUE), 0.2, None)[:3]


def losses_by_hand(log_prob: torch.Tensor, entropy: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    ratio = (log_prob - OLD_LOG_PROB).exp()
    gain = torch.min(ratio * ADVANTAGE, ratio.clamp(0.8, 1.2) * ADVANTAGE)
    return torch.stack([-gain.mean(), 0.5 * (value - RETURNS).square().mean(), entropy.mean()])


def clipped_losses(log_prob: torch.Tensor, entropy: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return ppo_losses((log_prob, entropy, value), (OLD_LOG_PROB, ADVANTAGE, RETURNS, OLD_VALUE), 0.1, 0.3)[:3]


def clipped_losses_by_hand(log_prob: torch.Tensor, entropy: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    ratio = (log_prob - OLD_LOG_PROB).exp()
    gain = torch.min(ratio * ADVANTAGE, ratio.clamp(0.9, 1.1) * ADVANTAGE)
    near = OLD_VALUE + (value - OLD_VALUE).clamp(-0.3, 0.3)
    error = torch.max((value - RETURNS).square(), (near - RETURNS).square())
    return torch.stack([-gain.mean(), 0.5 * error.mean(), entropy.mean()])


NEW = [numbers(ROWS, n, scale=0.6)[:, 0] for n in range(5, 8)]
CASES: dict[str, tuple[Compute, Compute, list[torch.Tensor]]] = {
    "network": (network, network_by_hand, [numbers(ROWS, 5), *layers(5, 16, 16, 3)]),
    "network over [T, B]": (network, network_by_hand, [numbers(3, 7, 5), *layers(5, 8, 2)]),
    "linear layer": (network, network_by_hand, [numbers(ROWS, 5), *layers(5, 3)]),
    "no rows": (network, network_by_hand, [numbers(0, 5), *layers(5, 8, 3)]),
    "categorical": (categorical, categorical_by_hand, [numbers(ROWS, 4, scale=3.0)]),
    "categorical over [T, B]": (categorical, categorical_by_hand, [numbers(3, 7, 3)]),
    "part of a larger output": (
        lambda both: categorical(both[..., :-1]),
        lambda both: categorical_by_hand(both[..., :-1]),
        [numbers(ROWS, 5)],
    ),
    "gaussian": (gaussian, gaussian_by_hand, [numbers(ROWS, 3), numbers(3, scale=0.3), numbers(ROWS, 3)]),
    "ppo": (losses, losses_by_hand, NEW),
    "ppo, clipped values": (clipped_losses, clipped_losses_by_hand, NEW),
}


def gradients(compute: Compute, arguments: Sequence[torch.Tensor], **options: Any) -> tuple[torch.Tensor, ...]:
    """Returns the result, and the gradients of a sum of it with weights that differ."""
    own = [one.detach().clone().requires_grad_() for one in arguments]
    result = compute(*own)
    weights = torch.linspace(-1.0, 2.0, result.numel()).reshape(result.shape)
    return result, *torch.autograd.grad((result * weights).sum(), own, **options), *own


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_operators(case: str) -> None:
    native, by_hand, arguments = CASES[case]
    for own, other in zip(gradients(native, arguments), gradients(by_hand, arguments), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


OPERATIONS = {"network": "_TanhNetwork", "categorical": "_Entropy", "gaussian": "_LogProb", "ppo": "_PpoLosses"}


@pytest.mark.parametrize("case", OPERATIONS)
def test_operation_is_the_compiled_one(case: str) -> None:
    native, _, arguments = CASES[case]
    nodes: list[Any] = [native(*[one.clone().requires_grad_() for one in arguments]).grad_fn]
    for node in nodes:
        nodes += [before for before, _ in node.next_functions if before is not None]
    assert f"{OPERATIONS[case]}Backward" in {type(node).__name__ for node in nodes}


@pytest.mark.parametrize("case", CASES)
def test_gradients_have_gradients(case: str) -> None:
    """As for a penalty of the gradient's norm, or a product with the Hessian."""
    native, by_hand, arguments = CASES[case]
    found = []
    for compute in (native, by_hand):
        own = [one.detach().clone().requires_grad_() for one in arguments]
        result = compute(*own)
        first = torch.autograd.grad(result.square().sum(), own, create_graph=True)
        penalty = sum((one.square().sum() for one in first), torch.zeros(()))
        found.append(torch.autograd.grad(penalty, own, allow_unused=True, materialize_grads=True))
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)


def test_masked_actions_have_no_gradient() -> None:
    logits = numbers(ROWS, 4)
    logits[:, 1] = -torch.inf
    logits.requires_grad_()
    dist = Categorical(logits)
    (dist.entropy() + dist.log_prob(torch.full((ROWS,), 2))).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert not logits.grad[:, 1].any()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_numbers_that_are_not_finite_are_not_hidden(bad: float) -> None:
    logits = numbers(ROWS, 4)
    logits[3, 2] = bad
    logits.requires_grad_()
    assert Categorical(logits).log_prob(torch.zeros(ROWS, dtype=torch.int64))[3].isnan()
    assert Categorical(logits).entropy()[3].isnan()
    rows = numbers(ROWS, 5)
    rows[3, 0] = bad
    assert network(rows, *[one.requires_grad_() for one in layers(5, 8, 3)])[3].isnan().all()
    new = [one.clone() for one in NEW]
    new[0][3] = torch.nan
    assert losses(*[one.requires_grad_() for one in new])[0].isnan()


def test_losses_of_tensors_that_do_not_fit_are_an_error() -> None:
    log_prob, entropy, value = [one.clone().requires_grad_() for one in NEW]
    with pytest.raises(RuntimeError, match="must match the size"):
        losses(log_prob, entropy, value[:5])


@pytest.mark.parametrize("sizes", [(4, 8, 3), (6, 8, 3)])
def test_layers_that_do_not_fit_are_an_error(sizes: tuple[int, ...]) -> None:
    """They are not read beyond their end."""
    with pytest.raises(ValueError, match=r"cannot take rows of 5 numbers"):
        network(numbers(ROWS, 5), *[one.requires_grad_() for one in layers(*sizes)])
    weight, bias = [one.requires_grad_() for one in layers(5, 8)]
    with pytest.raises(ValueError, match=r"a bias \[7\] cannot take"):
        network(numbers(ROWS, 5), weight, bias[:7])


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_traced_and_unbiased_networks_are_left_to_operators() -> None:
    rows, *parameters = CASES["network"][2]
    body = TanhBody([5, 8, 3])
    traced = torch.jit.trace(body, rows)
    assert "PythonOp" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(rows), body(rows))
    unbiased = tanh_network(rows, [(parameters[0], None), (parameters[2], parameters[3])])
    torch.testing.assert_close(unbiased, functional.linear((rows @ parameters[0].T).tanh(), *parameters[2:4]))


def test_unknown_action_is_an_error() -> None:
    with pytest.raises(IndexError, match="outside 0 to 3"):
        Categorical(numbers(5, 4).requires_grad_()).log_prob(torch.full((5,), 4))


def test_frozen_layers_and_inputs_get_no_gradient() -> None:
    rows, parameters = numbers(ROWS, 5), layers(5, 8, 8, 3)
    parameters[2].requires_grad_()
    network(rows, *parameters).sum().backward()
    assert parameters[2].grad is not None
    assert all(one.grad is None for one in (rows, *parameters[:2], *parameters[3:]))


def test_other_dtypes_are_left_to_operators() -> None:
    arguments = [one.double() for one in CASES["network"][2]]
    assert network(*[one.requires_grad_() for one in arguments]).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert network(*[one.clone().requires_grad_() for one in CASES["network"][2]]).dtype == torch.bfloat16


def test_training_does_not_import_the_compiler_of_torch() -> None:
    """It takes 1.5 s, at the start of every training."""
    program = (
        "import sys; from headrace.agents.pg import CategoricalPgAgent; from headrace.algos.pg import PPO; "
        "from headrace.samplers import SerialSampler; from tests.walk import Walk; "
        "agent, algo = CategoricalPgAgent(), PPO(); "
        "sampler = SerialSampler(Walk, batch_T=4, batch_B=4).initialize(agent, seed=0, bootstrap_value=True); "
        "algo.initialize(agent, n_itr=1, batch_spec=sampler.batch_spec); "
        "algo.optimize_agent(0, sampler.obtain_samples(0)[0]); print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "False"
