"""Environments, agents and `TrajInfo`s that share memory with their callers, as careless code does.

With a fault they do the same as without, except for how they treat memory.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from headrace.agents.base import Agent
from headrace.buffers.tree import tree_leaves, tree_map
from headrace.samplers import TrajInfo
from headrace.types import AgentStep, StepInputs, Tree

#: What an environment does with memory: gives its own again and again; gives one that all environments of a process
#: share; writes at each call into all that any of them gave or was given before; writes into actions at once.
ENV_FAULTS = ["reuses", "shares", "scribbles", "writes"]

OBSERVATION = spaces.Dict(
    {
        "x": spaces.Box(-np.inf, np.inf, (3,), np.float32),
        "pair": spaces.Tuple((spaces.Box(0, 255, (2, 2), np.uint8), spaces.MultiDiscrete([9, 9]))),
    }
)
ACTION_SPACES: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(4),
    "discrete from 3": spaces.Discrete(4, start=3),
    "box": spaces.Box(-0.5, 0.5, (2,), np.float32),
    "box scalar": spaces.Box(-0.5, 0.5, (), np.float32),
    "multi-discrete": spaces.MultiDiscrete([3, 5]),
    "multi-binary": spaces.MultiBinary(3),
    "dict": spaces.Dict(
        {"b": spaces.MultiBinary(2), "a": spaces.Tuple((spaces.Discrete(3), spaces.MultiDiscrete([4])))}
    ),
}


def overwrite(value: Any) -> None:
    """Overwrites arrays, tensors and containers."""
    match value:
        case np.ndarray() | torch.Tensor():
            value[...] = 1
        case dict():
            for part in value.values():
                overwrite(part)
            value["scribbled"] = True
        case list():
            for part in value:
                overwrite(part)
            value.append("scribbled")
        case tuple():
            for part in value:
                overwrite(part)


class Memory:
    """Allocates what an environment returns, in the way of one fault."""

    shared: ClassVar[dict[str, Any]] = {}
    seen: ClassVar[list[Any]] = []

    def __init__(self, fault: str) -> None:
        self._fault = fault
        self._own = self.shared if fault == "shares" else {}

    def give(self, name: str, value: Any) -> Any:
        """Returns the value in memory of the kind that the fault determines."""
        if self._fault in ("reuses", "shares"):
            return self._in_place(name, value)
        if self._fault == "scribbles":
            self.seen.append(value)
        return value

    def take(self, action: Any) -> None:
        """Called after an action was read."""
        if self._fault == "writes":
            overwrite(action)
        elif self._fault == "scribbles":
            self.seen.append(action)

    def call(self) -> None:
        """Called at the beginning of each call of the environment."""
        if self._fault == "scribbles":
            for value in self.seen:
                overwrite(value)
            self.seen.clear()

    def _in_place(self, name: str, value: Any) -> Any:
        match value:
            case np.ndarray():
                kept = self._own.setdefault(f"{name} {value.shape}", np.empty_like(value))
                kept[...] = value
                return kept
            case dict():
                kept = self._own.setdefault(name, {})
                kept.clear()
                kept |= {key: self._in_place(f"{name}.{key}", part) for key, part in value.items()}
                return kept
            case list():
                kept = self._own.setdefault(name, [])
                kept[:] = [self._in_place(f"{name}.{index}", part) for index, part in enumerate(value)]
                return kept
            case tuple():
                return tuple(self._in_place(f"{name}.{index}", part) for index, part in enumerate(value))
        return value


def sum_of(action: Any) -> float:
    return float(sum(np.sum(leaf) for leaf in tree_leaves(action)))


class Careless(gym.Env[Any, Any]):
    """An environment whose results depend on all actions and on its own generator. Episodes have 1 to 6 steps."""

    def __init__(self, fault: str, action_space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = deepcopy(OBSERVATION), deepcopy(action_space)
        self._memory = Memory(fault)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self._memory.call()
        super().reset(seed=seed)
        self._left, self._x = int(self.np_random.integers(1, 7)), self.np_random.normal(size=3).astype(np.float32)
        return self._observation(), self._memory.give("reset info", {"x": self._x.copy()})

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._memory.call()
        self._left -= 1
        self._x = (
            np.float32(0.5) * self._x + np.float32(sum_of(action)) + self.np_random.normal(size=3).astype(np.float32)
        )
        self._memory.take(action)
        deep = {"lists": [[self._x.copy(), 3], self._left], "left": self._left, "pair": (self._x.copy(), "word")}
        info = self._memory.give("info", {"x": self._x[:2].copy(), "deep": deep, "set": {self._left}})
        reward = self._memory.give("reward", np.array(self._x.sum()))
        return self._observation(), reward, self._left == 0, False, info

    def _observation(self) -> Any:
        whole = np.abs(self._x[:2]).astype(np.int64)
        image = np.resize(whole, (2, 2)).astype(np.uint8)
        return self._memory.give("observation", {"x": self._x.copy(), "pair": (image, whole % 9)})


class CarelessVector(VectorEnv[Any, Any, Any]):
    """A vector environment of `Careless` ones, with the ends of the given autoreset mode ("SAME_STEP", "NEXT_STEP" or
    "DISABLED").
    """

    def __init__(self, num_envs: int, fault: str, action_space: spaces.Space[Any], mode: str) -> None:
        self.num_envs, self._mode = num_envs, mode
        self.metadata = {"autoreset_mode": AutoresetMode[mode]}
        self.single_observation_space, self.single_action_space = deepcopy(OBSERVATION), deepcopy(action_space)
        self.observation_space = batch_space(OBSERVATION, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        self._memory = Memory(fault)
        self._generators: list[np.random.Generator] = []
        self._left = np.zeros(num_envs, np.int64)
        self._x = np.zeros((num_envs, 3), np.float32)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self._memory.call()
        if seed is not None and not self._generators:
            self._generators = [np.random.default_rng(one) for one in seed]
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        self._begin(np.flatnonzero(mask))
        if options is not None:
            self._memory.take(mask)
        return self._observation("observation"), self._memory.give("reset info", {"x": self._x.copy()})

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self._memory.call()
        due = self._left == 0
        moving = np.flatnonzero(~due) if self._mode == "NEXT_STEP" else np.arange(self.num_envs)
        for row in moving:
            push = np.float32(sum_of(tree_map(lambda leaf, row=row: leaf[row], actions)))
            noise = self._generators[row].normal(size=3).astype(np.float32)
            self._x[row] = np.float32(0.5) * self._x[row] + push + noise
            self._left[row] = max(self._left[row] - 1, 0)
        if self._mode == "NEXT_STEP":
            self._begin(np.flatnonzero(due))
        self._memory.take(actions)
        ended = self._left == 0
        info: dict[str, Any] = {"x": self._x[:, :2].copy(), "deep": {"left": self._left.copy()}}
        if self._mode == "SAME_STEP" and ended.any():
            info["final_obs"] = self._observation("final")
            info["final_info"] = {"x": self._x[:, :2].copy(), "deep": {"left": self._left.copy()}}
            self._begin(np.flatnonzero(ended))
        info = self._memory.give("info", info)
        rewards = [self._x.sum(axis=1), ended, np.zeros(self.num_envs, bool)]
        reward, terminated, truncated = (self._memory.give(f"answer {i}", part) for i, part in enumerate(rewards))
        return self._observation("observation"), reward, terminated, truncated, info

    def _begin(self, rows: Sequence[int] | np.ndarray) -> None:
        for row in rows:
            self._left[row] = self._generators[row].integers(1, 7)
            self._x[row] = self._generators[row].normal(size=3)

    def _observation(self, name: str) -> Any:
        whole = np.abs(self._x[:, :2]).astype(np.int64)
        image = np.concatenate([whole, whole], axis=1).reshape(-1, 2, 2).astype(np.uint8)
        return self._memory.give(name, {"x": self._x.copy(), "pair": (image, whole % 9)})


#: What an agent does with its tensors: answers with the same ones each time, whoever asks; writes into those it gave
#: whenever something else is asked of it; writes into the state that it is given.
AGENT_FAULTS = ["reuses", "scribbles", "writes into the state"]


class CarelessAgent(Agent):
    """An agent for every action space, whose actions depend on its noise and its recurrent state."""

    noise_size = 1

    def __init__(self, fault: str) -> None:
        self._fault = fault
        self._own: dict[Any, torch.Tensor] = {}
        self._given: list[torch.Tensor] = []

    def build_model(self, spaces: Any) -> torch.nn.Module:
        return torch.nn.Linear(1, 1)

    def initial_state(self, n: int) -> Tree:
        return (self._kept(("zeros", n), torch.zeros(n, 2)),)

    def step(self, inputs: StepInputs, state: Tree) -> AgentStep:
        assert self.spaces is not None
        self._scribble(spare=state)
        chance, (memory,) = inputs.noise[:, 0], state
        seen = inputs.observation["x"].sum(dim=-1).tanh()
        new = 0.5 * memory + torch.stack([chance, seen], dim=1)
        info = {"memory": memory.sum(dim=1) + seen, "chance": chance.clone()}
        chance = (chance + new.sum(dim=1).abs()) % 1.0
        if self._fault == "writes into the state":
            memory.copy_(new)
            new = memory
        answer = AgentStep(_chosen(self.spaces.action, chance), info, (new,))
        leaves = iter([self._kept((i, *leaf.shape), leaf) for i, leaf in enumerate(tree_leaves(answer))])
        return tree_map(lambda leaf: next(leaves), answer)

    def value(self, inputs: StepInputs, state: Tree) -> torch.Tensor:
        value: torch.Tensor = state[0].sum(dim=1) + inputs.observation["x"].sum(dim=-1)
        if self._fault == "writes into the state":
            state[0].zero_()
        self._scribble()
        return value

    def __call__(self, inputs: StepInputs, state: Tree = None) -> Any:
        raise NotImplementedError

    def sample_mode(self, itr: int) -> None:
        self._scribble()

    def eval_mode(self, itr: int) -> None:
        self._scribble()

    def _kept(self, key: Any, value: torch.Tensor) -> torch.Tensor:
        if self._fault == "reuses":
            if key not in self._own:
                self._own[key] = value.clone()
            value = self._own[key].copy_(value)
        elif self._fault == "scribbles":
            self._given.append(value)
        return value

    def _scribble(self, spare: Tree = None) -> None:
        spared = [id(leaf) for leaf in tree_leaves(spare)]
        with torch.inference_mode():
            for value in self._given:
                if id(value) not in spared:
                    overwrite(value)
        self._given = []


def _chosen(space: spaces.Space[Any], chance: torch.Tensor) -> Tree:
    match space:
        case spaces.Dict():
            return {key: _chosen(child, chance) for key, child in reversed(space.spaces.items())}
        case spaces.Tuple():
            return tuple(_chosen(child, chance) for child in space.spaces)
        case spaces.Discrete():
            return (chance * int(space.n)).long()
        case spaces.MultiDiscrete():
            return (chance[:, None] * torch.from_numpy(space.nvec)).long()
        case spaces.MultiBinary():
            return (chance[:, None] * torch.arange(1, space.shape[0] + 1) % 1.0 > 0.5).to(torch.int8)
    assert space.shape is not None
    rows = chance.reshape(-1, *[1] * len(space.shape))
    return (rows - 0.5).expand(-1, *space.shape) * 1.5


def plain(value: Any) -> Any:
    """Returns the present values of arrays and containers as plain data, for comparison."""
    match value:
        case np.ndarray() | np.generic() | torch.Tensor():
            return value.tolist()
        case dict():
            return {key: plain(part) for key, part in value.items()}
        case list() | tuple():
            return [plain(part) for part in value]
    return deepcopy(value)


@dataclass
class Keeps(TrajInfo):
    """Keeps all arguments of `step` without copying them."""

    Seen: list[Any] = field(default_factory=list)

    def step(self, *told: Any) -> None:
        self.Seen.append(told)


@dataclass
class OverwritesArguments(Keeps):
    """Keeps the values of the arguments of `step`, then overwrites the arguments."""

    def step(self, *told: Any) -> None:
        self.Seen.append(plain(told))
        overwrite(told)
