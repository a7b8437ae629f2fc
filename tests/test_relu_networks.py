"""Networks of ReLU layers, several at once: the same numbers and gradients as one after another by torch's layers."""

import copy
import pickle
from typing import Any

import pytest
import torch

from headrace.models.relu_body import ReluBody
from headrace.models.relu_network import relu_networks

SHAPES = {"one": (1, (4, 7, 5, 3)), "three values": (3, (4, 6, 6, 1)), "no hidden layer": (2, (4, 1))}


def body_of(kind: str) -> ReluBody:
    n, sizes = SHAPES[kind]
    torch.manual_seed(0)
    return ReluBody(n, sizes).double()


def separately(body: ReluBody, rows: torch.Tensor) -> torch.Tensor:
    """The same outputs by `torch.nn.Linear` and `torch.nn.ReLU`, one network after another."""
    outputs = []
    for index in range(len(body.weights[0])):
        layers: list[torch.nn.Module] = []
        for weight, bias in zip(body.weights, body.biases, strict=True):
            linear = torch.nn.Linear(*weight.shape[1:]).double()
            linear.weight.data, linear.bias.data = weight[index].detach().t().clone(), bias[index, 0].detach().clone()
            layers += [torch.nn.ReLU(), linear]
        outputs.append(torch.nn.Sequential(*layers[1:])(rows))
    return torch.stack(outputs)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("leading", [(), (5,), (2, 3)])
def test_outputs_are_those_of_separate_layers(kind: str, leading: tuple[int, ...], grad: bool) -> None:
    body, rows = body_of(kind), torch.randn(*leading, 4, dtype=torch.float64)
    expected = separately(body, rows)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(body(rows), expected)
        torch.testing.assert_close(body(rows, n=1), expected[:1])
    assert body(rows).shape == (len(body.weights[0]), *leading, SHAPES[kind][1][-1])


@pytest.mark.parametrize("kind", SHAPES)
def test_gradients_are_right_also_those_of_gradients(kind: str) -> None:
    body, rows = body_of(kind), torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    n_layers = len(body.weights)

    def compute(rows: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return relu_networks(rows, parameters[:n_layers], parameters[n_layers:])

    arguments = (rows, *body.weights, *body.biases)
    assert torch.autograd.gradcheck(compute, arguments)
    assert torch.autograd.gradgradcheck(compute, arguments)


def test_gradients_are_computed_only_where_they_are_needed() -> None:
    body, rows = body_of("three values"), torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    body.requires_grad_(False)
    expected = torch.autograd.grad(separately(body, rows).sum(), rows)
    for found, wanted in zip(torch.autograd.grad(body(rows).sum(), rows), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    body.weights[1].requires_grad_(True)
    body(rows.detach()).sum().backward()
    assert body.weights[1].grad is not None
    assert all(one.grad is None for one in (*body.biases, body.weights[0], body.weights[2]))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda body: pickle.loads(pickle.dumps(body))])
def test_numpy_inference_equals_torch_and_follows_changes(duplicate: Any) -> None:
    torch.manual_seed(0)
    body = ReluBody(1, (4, 7, 3))
    rows = torch.randn(6, 4)

    def both() -> None:
        with torch.no_grad():
            expected = body(rows)[0]
        with torch.inference_mode():
            found = body.in_numpy(rows)
        assert found is not None
        torch.testing.assert_close(torch.from_numpy(found), expected)

    both()
    with torch.no_grad():
        body.weights[0].mul_(2.0)
    both()
    body.biases[1] = torch.nn.Parameter(torch.ones(1, 1, 3))
    both()
    original, body = body, duplicate(body)
    with torch.no_grad():
        original.weights[1].zero_()
    both()
    with torch.inference_mode():
        assert ReluBody(2, (4, 7, 3)).in_numpy(rows) is None
        assert ReluBody(1, (4, 7, 3), layer_norm=True).in_numpy(rows) is None
    assert body.in_numpy(rows) is None, "gradients may be wanted"


def test_initial_weights_have_the_distribution_of_torch_layers() -> None:
    torch.manual_seed(0)
    body = ReluBody(2, (100, 300, 1))
    for tensor, n_in in ((body.weights[0], 100), (body.biases[0], 100), (body.weights[1], 300)):
        bound = n_in**-0.5
        assert tensor.abs().max().item() <= bound
        assert tensor.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert not torch.equal(body.weights[0][0], body.weights[0][1])
