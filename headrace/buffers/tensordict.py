"""Converts batches to `tensordict`, an optional package."""

from __future__ import annotations

from typing import Any

from headrace.types import Tree

__all__ = ["tensordict_of"]

#: Fields of other shapes than `[T, B, ...]`.
_WITHOUT_TIME = ("last_observation", "bootstrap_value", "first_state", "last_state", "state")


def tensordict_of(env: Any, agent: Any) -> Any:
    """See `Samples.to_tensordict`."""
    try:
        from tensordict import TensorDict
    except ImportError as error:
        raise ImportError("to_tensordict() needs the tensordict package; pip install tensordict") from error
    parts = {"env": _nested(env, _WITHOUT_TIME), "agent": _nested(agent, _WITHOUT_TIME)}
    return TensorDict(parts, batch_size=env.reward.shape)


def _nested(tree: Tree, left_out: tuple[str, ...] = ()) -> Any:
    """Converts dataclasses, dicts and tuples to dicts with string keys, without parts that are None."""
    if isinstance(tree, dict):
        named = {str(key): value for key, value in tree.items()}
    elif isinstance(tree, tuple):
        named = {str(index): value for index, value in enumerate(tree)}
    elif getattr(type(tree), "__dataclass_fields__", None) is not None:
        named = {name: value for name, value in vars(tree).items() if name not in left_out}
    else:
        return tree
    return {key: _nested(value) for key, value in named.items() if value is not None}
