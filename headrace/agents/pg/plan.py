"""The acting plan of `CategoricalPgAgent` with its default model over a vector of numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from headrace import compiled
from headrace.models.features import Features
from headrace.models.mlp import ActorCritic, TanhBody
from headrace.numpy_inference import LARGEST_PRODUCT
from headrace.types import ActingRows

__all__ = ["CategoricalPlan"]


class CategoricalPlan:
    """An `ActingPlan`: tanh layers, logits, value and the draw of the actions in one compiled call per row.

    Args:
        model: on the CPU; `suits` must hold.
        is_greedy: returns whether to take the most probable actions.
        rows: the rows of a batch.
        deterministic: see `Agent.acting_plan`.
    """

    reads_previous = False

    def __init__(self, model: Any, is_greedy: Callable[[], bool], rows: ActingRows, deterministic: bool) -> None:
        assert compiled.acting is not None
        n = rows.noise.shape[1]
        self._model, self._is_greedy, self._deterministic = model, is_greedy, deterministic
        self._batch = rows
        self._sizes = [body.sizes for body in _bodies(model)]
        self._networks = [compiled.acting.Network(sizes, n) for sizes in self._sizes]
        policy, value = self._networks[0], self._networks[1] if len(self._networks) > 1 else None
        info = rows.agent_info
        self._rows = compiled.acting.CategoricalRows(
            policy, value, rows.observation, rows.noise, rows.action, info.dist.logits, info.value
        )
        self._values = np.zeros(n, np.float32)

    @staticmethod
    def suits(model: torch.nn.Module, rows: ActingRows, deterministic: bool) -> bool:
        """Returns whether a plan can replace this model: compiled, small, over one vector of float32, not altered."""
        if compiled.acting is None or type(model) is not ActorCritic or not model.features.is_plain:
            return False
        if type(model.features) is not Features or not all(map(_is_plain, _bodies(model))):
            return False
        altered = any(_altered(module) for module in model.modules())
        on_cpu = all(tensor.is_cpu and tensor.dtype is torch.float32 for tensor in model.parameters())
        # Larger products are faster in BLAS. Its rounding depends on the number of rows.
        small = deterministic or rows.noise.shape[1] * model.policy.largest <= LARGEST_PRODUCT
        return on_cpu and small and not altered and model.policy.largest <= LARGEST_PRODUCT // 16

    def load(self) -> bool:
        """See `ActingPlan`."""
        if not self.suits(self._model, self._batch, self._deterministic):
            return False
        if [body.sizes for body in _bodies(self._model)] != self._sizes:
            return False
        self._greedy = self._is_greedy()
        for body, network in zip(_bodies(self._model), self._networks, strict=True):
            network.load(_layers(body))
        return True

    def act(self, t: int) -> bool:
        """See `ActingPlan`."""
        done: bool = self._rows.act(t, self._greedy)
        return done

    def value(self, t: int) -> np.ndarray | None:
        """See `ActingPlan`."""
        return self._values if self._rows.value(t, self._values) else None


def _bodies(model: ActorCritic) -> list[TanhBody]:
    return [model.policy] if model.value is None else [model.policy, model.value]


def _is_plain(body: torch.nn.Module) -> bool:
    """Returns whether a module is a `TanhBody` with the layers with which it was made, or others like them."""
    if type(body) is not TanhBody:
        return False
    layers: list[Any] = [*body.layers, body.head]
    if any(type(layer) is not torch.nn.Linear or layer.bias is None for layer in layers):
        return False
    return (layers[0].in_features, *(layer.out_features for layer in layers)) == body.sizes


def _layers(body: TanhBody) -> list[tuple[np.ndarray, np.ndarray]]:
    layers: list[Any] = [*body.layers, body.head]
    return [(layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in layers]


def _altered(module: torch.nn.Module) -> bool:
    """Returns whether somebody hooked into a module or gave one object a method of its own."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
