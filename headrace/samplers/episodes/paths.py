"""Episodes as dicts ("paths"), and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.buffers.tree import tree_leaves, tree_map, tree_rows
from headrace.envs.spaces import described, null_value
from headrace.samplers.episodes.steps import EnvSpec, step_types_of
from headrace.types import Tree

if TYPE_CHECKING:
    from headrace.samplers.episodes.batch import EpisodeBatch

__all__ = ["empty_fields", "fields_of_paths", "paths_of"]

#: Entries of a path with one value per step, and with one value for the episode.
_PER_STEP = (
    "observations",
    "next_observations",
    "actions",
    "rewards",
    "step_types",
    "env_infos",
    "agent_infos",
    "versions",
)
_PER_EPISODE = ("episode_infos", "last_infos", "env_ids", "numbers", "starts")
#: Names for whether a step reached a terminal state; paths of other libraries have one of them in place of step types.
_TERMINALS = ("terminals", "dones")


def paths_of(episodes: EpisodeBatch) -> list[dict[str, Any]]:
    """See `EpisodeBatch.to_list`."""
    per_step = {name: getattr(episodes, name) for name in _PER_STEP}
    per_episode = {name: getattr(episodes, name) for name in _PER_EPISODE}
    ends = np.cumsum(episodes.lengths)
    return [
        {name: tree_rows(tree, slice(end - length, end)) for name, tree in per_step.items()}
        | {name: values[number] for name, values in per_episode.items()}
        for number, (end, length) in enumerate(zip(ends, episodes.lengths, strict=True))
    ]


def empty_fields(env_spec: EnvSpec) -> dict[str, Any]:
    """Returns the fields of a batch without episodes but `env_spec`."""

    def none(space: Any) -> Tree:
        return tree_map(lambda leaf: np.zeros((0, *leaf.shape), leaf.dtype), null_value(space))

    observations = none(env_spec.observation_space)
    fields = {"rewards": np.float32, "step_types": np.uint8, "versions": np.int32}
    fields |= dict.fromkeys(("lengths", "env_ids", "numbers", "starts"), np.int64)
    return {
        "observations": observations,
        "last_observations": observations,
        "actions": none(env_spec.action_space),
        **{name: np.zeros(0, dtype) for name, dtype in fields.items()},
        "env_infos": {},
        "agent_infos": None,
        "episode_infos": [],
        "last_infos": [],
    }


def fields_of_paths(paths: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the fields of a batch but `env_spec` for each path, as far as its keys allow; `check` does the rest."""
    found: list[dict[str, Any]] = []
    start = 0
    for number, path in enumerate(paths):
        found.append(_fields_of(path, f"paths[{number}]", number, start))
        start += len(found[-1]["rewards"])
    return found


def _fields_of(path: Any, name: str, number: int, start: int) -> dict[str, Any]:
    if not isinstance(path, Mapping):
        raise TypeError(f"{name} is {described(path)}, expected a dict as from EpisodeBatch.to_list()")
    missing = [key for key in ("observations", "actions", "rewards") if key not in path]
    unknown = [key for key in path if key not in (*_PER_STEP, *_PER_EPISODE, *_TERMINALS)]
    if missing or unknown:
        wrong = f"does not have {missing}" if missing else f"has {unknown}"
        raise ValueError(
            f"{name} {wrong}, expected observations, actions, rewards, and optionally "
            f"{', '.join((*_PER_STEP[4:], *_PER_EPISODE, *_TERMINALS))}"
        )
    rewards = np.asarray(path["rewards"], np.float32)
    if rewards.ndim != 1 or not len(rewards):
        raise ValueError(f"{name}['rewards'] has the shape {rewards.shape}, expected one number for each of its steps")
    length = len(rewards)
    observations, last = _observations_of(path, name, length)

    def own(key: str, default: int) -> np.ndarray:
        return np.array([path.get(key, default)], np.int64)

    return {
        "observations": observations,
        "last_observations": last,
        "actions": _arrays(path["actions"]),
        "rewards": rewards,
        "step_types": _step_types_of(path, name, length),
        "lengths": np.array([length], np.int64),
        "env_infos": _arrays(path.get("env_infos", {})),
        "agent_infos": _arrays(path.get("agent_infos")),
        "versions": np.asarray(path.get("versions", np.zeros(length)), np.int32),
        "env_ids": own("env_ids", 0),
        "numbers": own("numbers", number),
        "episode_infos": [path.get("episode_infos", {})],
        "last_infos": [path.get("last_infos", {})],
        "starts": own("starts", start),
    }


def _arrays(tree: Tree) -> Tree:
    return tree_map(np.asarray, tree)


def _observations_of(path: Mapping[str, Any], name: str, length: int) -> tuple[Tree, Tree]:
    """Returns the observations of the steps, and the last one as a tree of `[1, ...]`."""
    observations = _arrays(path["observations"])
    sizes = {leaf.shape[0] if leaf.ndim else 0 for leaf in tree_leaves(observations)}
    if sizes == {length + 1}:
        return tree_rows(observations, slice(length)), tree_rows(observations, slice(length, None))
    if sizes != {length} or "next_observations" not in path:
        raise ValueError(
            f"{name} has {' or '.join(map(str, sorted(sizes)))} observations and {length} rewards, expected "
            f"{length + 1} observations, or {length} and as many next_observations"
        )
    following = _arrays(path["next_observations"])
    return observations, tree_rows(following, slice(length - 1, length))


def _step_types_of(path: Mapping[str, Any], name: str, length: int) -> np.ndarray:
    if "step_types" in path:
        return np.asarray(path["step_types"]).astype(np.uint8)
    terminals = next((np.asarray(path[key], np.bool_) for key in _TERMINALS if key in path), np.zeros(length, np.bool_))
    if terminals.shape != (length,) or terminals[:-1].any():
        raise ValueError(
            f"{name} is terminal at the steps {np.flatnonzero(terminals).tolist()} of {terminals.shape}, expected one "
            f"value for each of its {length} steps, true at most for the last"
        )
    position = np.arange(length)
    return step_types_of(position == 0, terminals, (position == length - 1) & ~terminals[-1])
