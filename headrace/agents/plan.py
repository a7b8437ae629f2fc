"""The acting plan of the library's own agents with their default models over numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from headrace import compiled
from headrace.agents.module_watch import ModuleWatch
from headrace.models.features import Features
from headrace.models.mlp import ActorCritic, TanhBody
from headrace.models.norm import RunningNorm
from headrace.models.q import DuelingHead, QNetwork
from headrace.models.rnn import RecurrentActorCritic
from headrace.types import ActingRows, Tree

__all__ = ["NetworkPlan", "is_of", "plan_for"]

#: Number of weights of the largest layer that a plan computes. Beyond the L1 and L2 caches, BLAS is faster.
_LARGEST_LAYER = 1 << 14


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
    seen = parts.features.parts(rows.observation)
    if parts.recurrent:
        networks = [compiled.acting.LstmNetwork(own, seen, rows.prev_action, rows.prev_reward) for own in sizes]
    else:
        networks = [compiled.acting.Network(own, seen) for own in sizes]
    acting = make(rows, *networks, *[None] * (2 - len(networks)))
    if acting is None:
        return None
    return NetworkPlan(model, rows, deterministic, sizes, networks, acting, settings, parts.recurrent)


class NetworkPlan:
    """An `ActingPlan`: tanh layers, distributions, values and the draw of the actions in one call per row.

    Args:
        model, rows, deterministic, settings: see `plan_for`.
        sizes: of the layers of the model's bodies.
        networks: hold the parameters of these bodies.
        acting: acts for the rows by the networks.
        reads_previous: see `ActingPlan`.
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
        reads_previous: bool,
    ) -> None:
        self.reads_previous = reads_previous
        self._model, self._batch, self._deterministic = model, rows, deterministic
        self._sizes, self._networks, self._acting, self._settings = sizes, networks, acting, settings
        self._values = np.zeros(rows.noise.shape[1], np.float32)
        self._state: Tree = None
        self._known: _Known | None = None

    def load(self) -> bool:
        """See `ActingPlan`."""
        if self._known is None or not self._known.is_current():
            parts = _parts(self._model, self._batch, self._deterministic)
            if parts is None or [body.sizes for body in parts.bodies] != self._sizes:
                self._known = None
                return False
            self._known = _Known(self._model, parts)
        norm = _joined(self._known.norms)
        for layers, network in zip(self._known.layers, self._networks, strict=True):
            network.load(layers, norm)
        self._acting.load(*self._settings())
        return True

    def act(self, t: int, state: Tree) -> bool:
        """See `ActingPlan`."""
        if state is not self._state:
            self._enter(state)
        done: bool = self._acting.act(t)
        return done

    def value(self, t: int, state: Tree) -> np.ndarray | None:
        """See `ActingPlan`."""
        if state is not self._state:
            self._enter(state)
        return self._values if self._acting.value(t, self._values) else None

    def _enter(self, state: Tree) -> None:
        """Takes over the memory of a state. It is usually the same for many rows."""
        self._state = state
        self._networks[0].enter(*(part.numpy() for part in state))


class _Body(NamedTuple):
    """A network within a model.

    Args:
        sizes: sizes of its layers, as the classes of `compiled.acting` take them.
        layers: weight and bias of each.
    """

    sizes: tuple[int, ...]
    layers: list[tuple[torch.Tensor, torch.Tensor]]


class _Parts(NamedTuple):
    """What a plan needs of a model.

    Args:
        bodies: one or two networks.
        features: turns observations into the input of the bodies.
        recurrent: whether the network is an LSTM.
    """

    bodies: list[_Body]
    features: Features
    recurrent: bool


class _Known:
    """A model whose parts were looked at, to see cheaply whether they are still the same.

    Args:
        model: the model.
        parts: its parts.
    """

    def __init__(self, model: torch.nn.Module, parts: _Parts) -> None:
        self.norms = parts.features.norms
        #: For each body its layers as (weight, bias), views of the parameters' memory.
        self.layers = [
            [(weight.detach().numpy(), bias.detach().numpy()) for weight, bias in body.layers] for body in parts.bodies
        ]
        self._watch = ModuleWatch(model)

    def is_current(self) -> bool:
        """Returns whether modules, parameters and their memory are still the same, and nothing is hooked in."""
        return self._watch.is_current() and not any(map(_altered, self._watch.modules))


def _parts(model: torch.nn.Module, rows: ActingRows, deterministic: bool) -> _Parts | None:
    """Returns the parts of a model that a plan can replace: known, small, over numbers of float32, not altered."""
    if type(model) is RecurrentActorCritic:
        bodies = [_lstm_body(model)]
    elif type(model) is ActorCritic:
        bodies = [_tanh_body(body) for body in (model.policy, model.value) if body is not None]
    elif type(model) is QNetwork:
        head = model.head
        bodies = [_tanh_body(body) for body in ([head.advantage, head.value] if type(head) is DuelingHead else [head])]
    else:
        return None
    features: Any = model.features
    if type(features) is not Features or not features.is_numbers or any(map(_altered, model.modules())):
        return None
    norms = features.norms
    if norms and (len(norms) < len(features.leaves) or len({norm.clip for norm in norms}) > 1):
        return None
    known = [body for body in bodies if body is not None]
    if len(known) < len(bodies) or not all(
        tensor.is_cpu and tensor.dtype is torch.float32 for tensor in model.parameters()
    ):
        return None
    largest = max(weight.numel() for body in known for weight, _ in body.layers)
    kernels = compiled.acting
    small = kernels.ROWS_ARE_INDEPENDENT if deterministic else rows.noise.shape[1] * largest <= kernels.LARGEST_PRODUCT
    if not small or largest > _LARGEST_LAYER:
        return None
    return _Parts(known, features, type(model) is RecurrentActorCritic)


def _joined(norms: list[RunningNorm]) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Returns shift, scale and clip of observations whose parts these normalize; None if nothing does."""
    if not norms:
        return None
    shift, scale = (
        np.concatenate([part.numpy() for part in parts])
        for parts in zip(*((norm.shift, norm.scale) for norm in norms), strict=True)
    )
    return shift, scale, norms[0].clip


def _tanh_body(body: Any) -> _Body | None:
    """Returns the layers of a `TanhBody` if they are those with which it was made, or others like them."""
    if type(body) is not TanhBody:
        return None
    layers = _linear([*body.layers, body.head])
    if layers is None or _sizes(layers) != body.sizes:
        return None
    return _Body(body.sizes, layers)


def _lstm_body(model: RecurrentActorCritic) -> _Body | None:
    """Returns the layers of a model with an LSTM over vectors, if its previous actions are one-hot or a vector too."""
    rnn, actions, ends = model.rnn, model.action_features, _linear([model.input, model.head])
    if type(rnn) is not torch.nn.LSTM or type(actions) is not Features or ends is None:
        return None
    if not actions.is_one_hot and not (actions.is_vector and not actions.norms):
        return None
    parameters = dict(rnn.named_parameters())
    if list(parameters) != ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]:  # one layer, one direction
        return None
    of_input, of_state, bias_of_input, bias_of_state = parameters.values()
    layers = [ends[0], (of_input, bias_of_input), (of_state, bias_of_state), ends[1]]
    n_seen, n_action, n_input, size, n_out = sizes = (
        model.features.size,
        actions.size,
        rnn.input_size,
        rnn.hidden_size,
        len(ends[1][1]),
    )
    shapes = [(n_input, n_seen + n_action + 1), (4 * size, n_input), (4 * size, size), (n_out, size)]
    return _Body(sizes, layers) if [weight.shape for weight, _ in layers] == shapes else None


def _linear(layers: list[Any]) -> list[tuple[torch.Tensor, torch.Tensor]] | None:
    """Returns weights and biases if all layers are linear layers with a bias."""
    if any(type(layer) is not torch.nn.Linear or layer.bias is None for layer in layers):
        return None
    return [(layer.weight, layer.bias) for layer in layers]


def _sizes(layers: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[int, ...]:
    return (layers[0][0].shape[1], *(weight.shape[0] for weight, _ in layers))


def _altered(module: torch.nn.Module) -> bool:
    """Returns whether somebody hooked into a module or gave one object a method of its own."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
