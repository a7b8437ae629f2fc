"""`PolicyAgent` makes an agent of a policy with garage's interface, so that it acts in every sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from gymnasium import spaces
from typing_extensions import override

from headrace.agents.base import Agent
from headrace.buffers.tree import tree_map, tree_rows
from headrace.envs.spaces import described, encoded_action
from headrace.rng import Stream
from headrace.samplers.episodes.policy_values import Packed, ValueBuffer, copied, restored, saved, unpacked
from headrace.types import AgentStep, EnvSpaces, StepInputs, Tree

__all__ = ["Policy", "PolicyAgent"]


@runtime_checkable
class Policy(Protocol):
    """A policy with garage's interface. In addition to these methods it has `get_actions`, `get_action` or both.

    `get_actions(observations)` returns (actions, agent_infos) for n environments, the latter a dict of arrays
    `[n, ...]`; `get_action(observation)` returns (action, agent_info) for one.
    """

    def reset(self, do_resets: Any = None) -> None:
        """Starts new episodes: in the environments of a mask, bool `[n]`; None: in the one environment."""

    def get_param_values(self) -> Any:
        """Returns the parameters: a dict of arrays or tensors, a flat array, or anything else that can be pickled."""

    def set_param_values(self, params: Any) -> None:
        """Sets the parameters that `get_param_values` returned."""


@runtime_checkable
class _ActsForMany(Protocol):
    def get_actions(self, observations: Any) -> Any: ...


@runtime_checkable
class _ActsForOne(Protocol):
    def get_action(self, observation: Any) -> Any: ...


class PolicyAgent(Agent):
    """An agent that acts with a policy of garage's interface, in every sampler.

    Copies of the policy act, never the policy itself, even in this process. They follow its parameters at the start of
    each batch and evaluation. So a policy may keep state between its calls, such as a recurrent one: all columns that
    act together (those of a worker, of a group, of an evaluation) have a copy of their own. A policy without
    `get_actions` has one copy per environment, whose `reset` is called without arguments. A resumed run makes new
    copies.

    A policy draws random numbers from its own generators, so batches differ between samplers, unlike those of other
    agents. Generator objects of NumPy, Python and torch inside of the policy are seeded anew in every copy, from the
    seed of the run and the env id of the copy's first column. The global generators are seeded in each worker, but not
    in this process.

    The policy gets observations as NumPy copies and returns elements of the action space; recorded discrete actions are
    indices from 0, as with other agents. Its agent_infos are recorded as `agent_info`, with the shapes and dtypes of
    the first answer. In an evaluation, their "mean" replaces the action in Box spaces, if there is one. A policy has no
    value function, so samplers need `bootstrap_value=False`, and it chooses the device where it computes: `to_device`
    does nothing.

    Args:
        policy: the policy; copied and sent to workers by cloudpickle.

    Raises:
        TypeError: if the policy lacks a method.
    """

    noise_size = 1
    noise_has_env_id = True

    def __init__(self, policy: Policy) -> None:
        if isinstance(policy, type):
            raise TypeError(f"policy must be an object, got the class {policy.__name__}; pass {policy.__name__}(...)")
        if not isinstance(policy, Policy) or not isinstance(policy, _ActsForMany | _ActsForOne):
            raise TypeError(
                f"policy must have reset, get_param_values, set_param_values, and get_actions or get_action; "
                f"{type(policy).__name__} lacks {' and '.join(_missing(policy))}"
            )
        self.policy = policy
        self._greedy = False
        self._seed = 0
        self._values: Packed = b""
        #: The copies that act, by mode and the env ids of their columns.
        self._copies: dict[tuple[bool, bytes], _Copies] = {}

    # ---- garage's interface ----

    def get_param_values(self) -> Any:
        """Returns the policy's parameters, as it returns them."""
        return self.policy.get_param_values()

    def set_param_values(self, params: Any) -> None:
        """Sets the policy's parameters; its copies follow at the next batch.

        Args:
            params: what `get_param_values` returned.
        """
        self.policy.set_param_values(params)

    # ---- acting ----

    @override
    def initialize(self, spaces: EnvSpaces, *, seed: int, global_B: int = 1, env_ids: Sequence[int] = (0,)) -> None:
        super().initialize(spaces, seed=seed, global_B=global_B, env_ids=env_ids)
        self._seed, self._copies = seed, {}

    @override
    def build_model(self, spaces: EnvSpaces) -> torch.nn.Module:
        """Returns a module without parameters, whose buffer is the memory in which the policy's parameters travel."""
        return ValueBuffer(self.policy)

    @override
    def sample_mode(self, itr: int) -> None:
        super().sample_mode(itr)
        self._begin(greedy=False)

    @override
    def eval_mode(self, itr: int) -> None:
        super().eval_mode(itr)
        self._begin(greedy=True)

    @override
    def step(self, inputs: StepInputs, state: Tree) -> AgentStep:
        assert self.spaces is not None
        # Agents are called in inference mode, but a policy may keep tensors (a recurrent state, a copy's parameters),
        # and those that are made in this mode cannot be changed outside of it.
        with torch.inference_mode(False), torch.no_grad():
            actions, infos = self._copies_for(inputs.noise.numpy(force=True)).act(
                tree_map(_numpy_copy, inputs.observation), inputs.is_first.numpy(force=True)
            )
        if self._greedy and isinstance(self.spaces.action, spaces.Box):
            actions = infos.get("mean", actions)
        action = encoded_action(self.spaces.action, actions)
        return AgentStep(tree_map(torch.from_numpy, action), tree_map(torch.from_numpy, infos) or None)

    @override
    def value(self, inputs: StepInputs, state: Tree) -> torch.Tensor:
        raise TypeError("a policy has no value function; initialize the sampler with bootstrap_value=False")

    @override
    def __call__(self, inputs: StepInputs, state: Tree = None) -> Any:
        raise TypeError(
            "PolicyAgent only acts: optimize the policy itself, or give an algorithm of headrace one of its agents"
        )

    # ---- parameters ----

    @override
    def acting_state(self) -> list[torch.Tensor]:
        self._values = self._buffer.exchange(self.policy)
        return [self._buffer.memory]

    @override
    def to_device(self, device: torch.device | str) -> None:
        """Does nothing: the policy chooses where it computes."""

    @override
    def settings(self) -> dict[str, Any]:
        return {"policy": self.policy}

    @override
    def state_dict(self) -> dict[str, Any]:
        """Returns the policy's parameters, with tensors in place of arrays.

        Raises:
            TypeError: if they are not arrays, tensors and plain values in dicts, lists and tuples.
        """
        return {"policy": saved(self.policy.get_param_values())}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the result of `state_dict`.

        Raises:
            KeyError: if the state holds no policy.
            RuntimeError: if the names, shapes or dtypes are those of another policy.
        """
        self.policy.set_param_values(restored(self.policy.get_param_values(), state["policy"]))

    @property
    def _buffer(self) -> ValueBuffer:
        assert isinstance(self.model, ValueBuffer)
        return self.model

    def _copies_for(self, env_ids: np.ndarray) -> _Copies:
        key = (self._greedy, env_ids.tobytes())
        copies = self._copies.get(key)
        if copies is None:
            stream = Stream.EVAL_ACTION if self._greedy else Stream.ACTION
            addresses = [(int(stream), int(env_id)) for env_id in env_ids.ravel()]
            seeds = [np.random.SeedSequence(self._seed, spawn_key=address) for address in addresses]
            copies = self._copies[key] = _Copies(self.policy, seeds)
            copies.follow(self._values)
        return copies

    def _begin(self, greedy: bool) -> None:
        self._greedy = greedy
        self._values = self._buffer.exchange(self.policy)
        for copies in self._copies.values():
            copies.follow(self._values)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_copies": {}}  # another process acts for other columns


class _Copies:
    """The copies of a policy that act for some columns.

    Args:
        policy: the policy; the first call of `act` resets its copies for all columns.
        seeds: for each column, the seed of a copy's generators.
    """

    def __init__(self, policy: Policy, seeds: Sequence[np.random.SeedSequence]) -> None:
        self._name, self._n = type(policy).__name__, len(seeds)
        self._new = True
        self._values: Packed = b""
        self._ask: Callable[[Tree, np.ndarray], Any]
        if isinstance(policy, _ActsForMany):
            one = copied(policy, seeds[0])
            self._policies: list[Any] = [one]
            self._ask = self._for_all
        else:
            self._policies = [copied(policy, seed) for seed in seeds]
            self._ask = self._one_by_one

    def follow(self, values: Packed) -> None:
        """Sets the parameters of the copies, unless they have these already."""
        if values is not self._values:
            for policy in self._policies:
                policy.set_param_values(unpacked(values))
            self._values = values

    def act(self, observations: Tree, is_first: np.ndarray) -> tuple[Tree, dict[str, Tree]]:
        """Returns actions and agent_infos, trees of arrays `[n, ...]` in memory of their own.

        Args:
            observations: tree of arrays `[n, ...]`, for the policy to keep.
            is_first: bool `[n]`.
        """
        if self._new:
            is_first, self._new = np.ones(self._n, np.bool_), False
        actions, infos = self._ask(observations, is_first)
        return tree_map(self._array("actions"), actions), tree_map(self._array("agent_infos"), infos)

    def _for_all(self, observations: Tree, is_first: np.ndarray) -> Any:
        (policy,) = self._policies
        if is_first.any():
            policy.reset(is_first.copy())
        return self._pair(policy.get_actions(observations), "get_actions")

    def _one_by_one(self, observations: Tree, is_first: np.ndarray) -> Any:
        actions, infos = [], []
        for column, policy in enumerate(self._policies):
            if is_first[column]:
                policy.reset()
            action, info = self._pair(policy.get_action(tree_rows(observations, column)), "get_action")
            actions.append(action)
            infos.append(info)
            if info.keys() != infos[0].keys():
                raise ValueError(
                    f"{self._name}.get_action returned an agent_info with the keys {sorted(map(str, info))}, expected "
                    f"{sorted(map(str, infos[0]))} as for the other environments"
                )
        return tree_map(_stacked, *actions), tree_map(_stacked, *infos)

    def _pair(self, answer: Any, call: str) -> tuple[Any, dict[str, Any]]:
        if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], dict)):
            raise TypeError(f"{self._name}.{call} returned {described(answer)}, expected a pair (actions, dict)")
        return answer

    def _array(self, what: str) -> Callable[[Any], np.ndarray]:
        def array_of(value: Any) -> np.ndarray:
            array = np.array(_plain(value))
            if array.dtype.kind not in "biuf" or array.shape[:1] != (self._n,):
                raise TypeError(
                    f"{self._name} returned {what} with {described(array)}, expected numbers [{self._n}, ...], one "
                    "entry per environment"
                )
            return array

        return array_of


def _plain(value: Any) -> Any:
    return value.numpy(force=True) if isinstance(value, torch.Tensor) else value


def _numpy_copy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.numpy(force=True).copy()


def _stacked(*rows: Any) -> np.ndarray:
    return np.stack([_plain(row) for row in rows])


def _missing(policy: object) -> list[str]:
    names = ["reset", "get_param_values", "set_param_values"]
    missing = [name for name in names if not callable(getattr(policy, name, None))]
    return missing if isinstance(policy, _ActsForMany | _ActsForOne) else [*missing, "get_actions or get_action"]
