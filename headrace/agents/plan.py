"""The acting plan of the library's own agents with their default models over a vector of numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from headrace import compiled
from headrace.models.features import Features
from headrace.models.mlp import ActorCritic, TanhBody
from headrace.models.q import DuelingHead, QNetwork
from headrace.numpy_inference import LARGEST_PRODUCT
from headrace.types import ActingRows

__all__ = ["NetworkPlan", "is_of", "plan_for"]


def is_of(agent: Any, cls: type) -> bool:
    """Returns whether an agent acts as `cls` does.

    A subclass, or an object with a `step` or `value` of its own, may choose actions in another way.
    """
    return type(agent) is cls and not {"step", "value"} & vars(agent).keys()


def plan_for(
    model: torch.nn.Module,
    rows: ActingRows,
    deterministic: bool,
    make: Callable[..., Any],
    settings: Callable[[], tuple[Any, ...]],
) -> NetworkPlan | None:
    """Returns a plan, or None where the agent has to act by its own `step`.

    Args:
        model: the agent's model.
        rows: the rows of a batch.
        deterministic: see `Agent.acting_plan`.
        make: called with `rows`, a network and a second network or None; returns an object of `compiled.acting` that
            acts for the rows, or None.
        settings: returns the arguments of that object's `load`, at the start of each batch.
    """
    parts = _parts(model, rows, deterministic)
    if parts is None:
        return None
    sizes = [body.sizes for body in parts.bodies]
    networks = [compiled.acting.Network(own, rows.observation) for own in sizes]
    acting = make(rows, *networks, *[None] * (2 - len(networks)))
    return None if acting is None else NetworkPlan(model, rows, deterministic, sizes, networks, acting, settings)


class NetworkPlan:
    """An `ActingPlan`: tanh layers, distributions, values and the draw of the actions in one call per row.

    Args:
        model, rows, deterministic, settings: see `plan_for`.
        sizes: of the layers of the model's bodies.
        networks: hold the parameters of these bodies.
        acting: acts for the rows by the networks.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        rows: ActingRows,
        deterministic: bool,
        sizes: list[tuple[int, ...]],
        networks: list[Any],
        acting: Any,
        settings: Callable[[], tuple[Any, ...]],
    ) -> None:
        self._model, self._batch, self._deterministic = model, rows, deterministic
        self._sizes, self._networks, self._acting, self._settings = sizes, networks, acting, settings
        self._values = np.zeros(rows.noise.shape[1], np.float32)

    def load(self) -> bool:
        """See `ActingPlan`."""
        parts = _parts(self._model, self._batch, self._deterministic)
        if parts is None or [body.sizes for body in parts.bodies] != self._sizes:
            return False
        for body, network in zip(parts.bodies, self._networks, strict=True):
            network.load(_layers(body), parts.norm)
        self._acting.load(*self._settings())
        return True

    def act(self, t: int) -> bool:
        """See `ActingPlan`."""
        done: bool = self._acting.act(t)
        return done

    def value(self, t: int) -> np.ndarray | None:
        """See `ActingPlan`."""
        return self._values if self._acting.value(t, self._values) else None


class _Parts(NamedTuple):
    """bodies: of a model, one or two; norm: shift, scale and clip of its observations, or None."""

    bodies: list[TanhBody]
    norm: tuple[np.ndarray, np.ndarray, float] | None


def _parts(model: torch.nn.Module, rows: ActingRows, deterministic: bool) -> _Parts | None:
    """Returns the parts of a model that a plan can replace: known, small, over one vector of float32, not altered."""
    if type(model) is ActorCritic:
        bodies: list[Any] = [model.policy] if model.value is None else [model.policy, model.value]
    elif type(model) is QNetwork:
        head = model.head
        bodies = [head.advantage, head.value] if type(head) is DuelingHead else [head]
    else:
        return None
    features: Any = model.features
    if type(features) is not Features or not features.is_vector or not all(map(_is_plain, bodies)):
        return None
    largest = max(body.largest for body in bodies)
    # Larger products are faster in BLAS. Its rounding depends on the number of rows.
    small = rows.noise.shape[1] * largest <= LARGEST_PRODUCT
    if deterministic:
        small = compiled.acting.ROWS_ARE_INDEPENDENT
    on_cpu = all(tensor.is_cpu and tensor.dtype is torch.float32 for tensor in model.parameters())
    if not small or not on_cpu or largest > LARGEST_PRODUCT // 16 or any(map(_altered, model.modules())):
        return None
    norm = features.norm
    return _Parts(bodies, None if norm is None else (norm.shift.numpy(), norm.scale.numpy(), norm.clip))


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
