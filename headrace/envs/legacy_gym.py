"""`LegacyGym`: environments of the old `gym` package, including its older 4-tuple API, as `gymnasium.Env`s.

`gym` is imported only for ids with the prefix "gym:"; for environments made by the user's own code it is already
imported.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import pickle
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import cloudpickle
import gymnasium
import numpy as np
from gymnasium import spaces

from headrace.errors import EnvContractError, headline
from headrace.extras import extra

__all__ = ["LegacyGym", "LegacySpec", "converted_space", "import_gym", "is_legacy"]

_APIS = ("auto", "0.26", "0.21")


class LegacyGym(gymnasium.Env[Any, Any]):
    """Adapts an environment of old gym. Samplers apply it automatically to every `gym.Env`.

    Spaces are converted. The end of an episode counts as `truncated` if the older API's info has "TimeLimit.truncated",
    otherwise as `terminated`. Seeds go to `reset(seed=…)` if the `reset` of the environment and of all its wrappers
    accept one, otherwise to `seed(…)`, otherwise to the innermost `reset`. The environment's own action space is seeded
    like this one's.

    Args:
        env: the environment, any object with the methods and spaces of old gym. Wrappers added by `gym.make` that would
            fail are removed: the checker, which does not support NumPy 2, and the time limit around an environment of
            the older API, which expects the API of 0.26; this class counts the steps instead.
        api: "0.26": `reset` returns (observation, info), `step` five values; "0.21": `reset` returns an observation,
            `step` four values; "auto": decided once, by what the first `reset` returns.
        render_mode: for the older API, whose `render(mode)` takes it; newer environments have their own `render_mode`.

    Raises:
        EnvContractError: a space has no counterpart, see `converted_space`.
    """

    def __init__(self, env: Any, api: str = "auto", render_mode: str | None = None) -> None:
        if api not in _APIS:
            raise ValueError(f"api must be one of {', '.join(map(repr, _APIS))}, got {api!r}")
        self.legacy = _without(env, "PassiveEnvChecker")
        self._limit: int | None = None  # step limit of an episode, if no wrapper counts the steps
        self._n_steps = 0
        self.observation_space = converted_space(_space_of(env, "observation_space"), "observation_space")
        self.action_space = converted_space(_space_of(env, "action_space"), "action_space")
        self.render_mode = render_mode or getattr(env, "render_mode", None)
        metadata = dict(getattr(env, "metadata", None) or {})
        self.metadata = {"render_modes": metadata.pop("render.modes", []), **metadata}
        self._api = api
        # Wrappers may pass on any keyword, or none, so every one of them is asked.
        self._reset_takes_seed = api != "0.21" and all(map(_takes_seed, _layers(self.legacy)))
        if api == "0.21":
            self._count_steps_here()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode; see `gymnasium.Env.reset`. The older API has no `options`."""
        arguments: dict[str, Any] = {} if options is None or not self._reset_takes_seed else {"options": options}
        if seed is not None:
            self._seed_action_space()
            if self._reset_takes_seed:
                arguments["seed"] = seed
            else:
                self._seed(seed)
        answer = self.legacy.reset(**arguments)
        self._n_steps = 0
        if self._api == "auto":
            self._api = "0.26" if _has_info(answer, self.observation_space) else "0.21"
            if self._api == "0.21":
                self._count_steps_here()
        if self._api == "0.21":
            return answer, {}
        if not _is_pair(answer):
            raise EnvContractError(
                f"{self._name()}: reset() returned {_described(answer)}, expected (observation, info) as in gym 0.26; "
                'an environment whose reset() returns the observation alone needs LegacyGym(env, api="0.21")'
            )
        observation, info = answer
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Takes one step; see `gymnasium.Env.step`."""
        try:
            answer = self.legacy.step(action)
        except ValueError as error:
            self._explain(error)
            raise
        expected = 4 if self._api == "0.21" else 5
        if not isinstance(answer, tuple) or len(answer) != expected:
            names = "(observation, reward, done, info)"
            raise EnvContractError(
                f"{self._name()}: step() returned {_described(answer)}, expected "
                f"{names if expected == 4 else names.replace('done', 'terminated, truncated')}, because its reset() "
                f"has the API of gym {self._api}; correct the environment, or name its API: LegacyGym(env, api=…)"
            )
        if expected == 5:
            return answer
        observation, reward, done, info = answer
        truncated = bool(done) and isinstance(info, dict) and bool(info.get("TimeLimit.truncated", False))
        self._n_steps += 1
        if self._n_steps == self._limit:
            truncated = True  # in addition to `terminated`, as the wrapper of gym 0.26 does
            return observation, reward, done, truncated, info
        return observation, reward, False if truncated else done, truncated, info

    def render(self) -> Any:
        """Returns what the environment renders."""
        if self._api == "0.21" and self.render_mode is not None:
            return self.legacy.render(mode=self.render_mode)
        return self.legacy.render()

    def close(self) -> None:
        """Closes the environment."""
        self.legacy.close()

    def __str__(self) -> str:
        return f"<LegacyGym{self.legacy}>"

    def _explain(self, error: ValueError) -> None:
        """Raises EnvContractError if a wrapper of gym raised the error because it expected the other API."""
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        if frame is None or "unpack" not in str(error):
            return
        if not frame.tb_frame.f_globals.get("__name__", "").startswith("gym."):
            return
        raise EnvContractError(
            f"{self._name()}: step() raised {headline(error)} in {frame.tb_frame.f_code.co_qualname}, which expects "
            "an environment with the API of gym 0.26, not an older one; make the environment with gym.make(id, "
            "apply_api_compatibility=True), or use LegacyGym(env) and Gymnasium's wrappers instead of gym's"
        ) from error

    def _name(self) -> str:
        return type(getattr(self.legacy, "unwrapped", self.legacy)).__name__

    def _count_steps_here(self) -> None:
        """Replaces the time limit of `gym.make` by one counted here."""
        for layer in _layers(self.legacy):
            if type(layer).__name__ == "TimeLimit":
                self._limit = vars(layer)["_max_episode_steps"]
        self.legacy = _without(self.legacy, "TimeLimit")

    def _seed(self, seed: int) -> None:
        """Seeds by the older API's `seed`, or else by the innermost `reset`. An environment with neither does not use
        seeds.
        """
        innermost = _layers(self.legacy)[-1]
        seed_method = getattr(self.legacy, "seed", None)
        if seed_method is not None:
            seed_method(seed)
        elif self._api != "0.21" and _takes_seed(innermost):
            innermost.reset(seed=seed)

    def _seed_action_space(self) -> None:
        """Seeds the environment's own action space, from which it may draw, with the seed of `action_space`."""
        seed_method = getattr(self.legacy.action_space, "seed", None)
        if seed_method is not None:
            seed_sequence: Any = self.action_space.np_random.bit_generator.seed_seq
            seed_method(seed_sequence.entropy % 2**31)  # there are more bits only if it was never seeded


@dataclass(frozen=True)
class LegacySpec:
    """An id of old gym's registry, resolved where the user registered it. Unpickling it does not import gym.

    Args:
        id: without "gym:".
        spec: the `gym.envs.registration.EnvSpec`, as pickled bytes if it came from another process. In this process it
            is kept as registered: unpickling it would overwrite all attributes of a class defined in the script, see
            `loads_untracked`.
    """

    id: str
    spec: Any

    @staticmethod
    def of(env_id: str) -> LegacySpec:
        """Returns the spec of "CartPole-v1" or "module:Id-v0".

        Raises:
            ImportError: gym or the module is not installed.
            LookupError: gym has no environment with this id.
        """
        gym = import_gym()
        module, _, name = env_id.rpartition(":")
        if module:
            importlib.import_module(module)
        if name not in gym.envs.registration.registry:
            raise LookupError(f"gym has no environment {name!r}")
        return LegacySpec(env_id, gym.envs.registration.registry[name])

    def make(self, kwargs: Mapping[str, Any]) -> LegacyGym:
        """Makes an environment; kwargs as for `gym.make`."""
        gym = import_gym()
        if isinstance(self.spec, bytes):
            object.__setattr__(self, "spec", pickle.loads(self.spec))  # once: all environments share one class
        return LegacyGym(gym.make(self.spec, **kwargs))

    def __getstate__(self) -> dict[str, Any]:
        pickled = self.spec if isinstance(self.spec, bytes) else cloudpickle.dumps(self.spec)
        return {"id": self.id, "spec": pickled}


def import_gym() -> ModuleType:
    """Imports old gym without printing its notice; raises ImportError that names the extra."""
    needed = extra("legacy", 'ids that begin with "gym:" need the old gym package')
    with needed, contextlib.redirect_stderr(io.StringIO()):
        return importlib.import_module("gym")


def is_legacy(env: object) -> bool:
    """Returns whether an environment is a `gym.Env` of the old package; imports nothing."""
    return isinstance(env, getattr(sys.modules.get("gym"), "Env", ()))


def converted_space(space: Any, path: str) -> spaces.Space[Any]:
    """Returns the Gymnasium space for a space of old gym.

    Spaces are matched by class name, so that subclasses and look-alikes work.

    Args:
        space: a space of old gym, or one of Gymnasium, which is returned as it is.
        path: where the space was found, for the message.

    Raises:
        EnvContractError: the space has no counterpart.
    """
    if isinstance(space, spaces.Space):
        return space
    for cls in type(space).__mro__:
        match cls.__name__:
            case "Box":
                dtype = np.dtype(space.dtype or np.float32)
                return spaces.Box(np.asarray(space.low, dtype), np.asarray(space.high, dtype), dtype=dtype.type)
            case "Discrete":
                return spaces.Discrete(int(space.n), start=int(getattr(space, "start", 0)))
            case "MultiDiscrete":
                return spaces.MultiDiscrete(np.asarray(space.nvec, np.int64))
            case "MultiBinary":
                return spaces.MultiBinary(space.n)
            case "Dict":
                return spaces.Dict(
                    [(key, converted_space(child, f"{path}[{key!r}]")) for key, child in space.spaces.items()]
                )
            case "Tuple":
                return spaces.Tuple(
                    [converted_space(child, f"{path}[{index}]") for index, child in enumerate(space.spaces)]
                )
    raise EnvContractError(
        f"{path} is {_described(space)}, expected one of gym's Box, Discrete, MultiDiscrete, MultiBinary, Dict and "
        "Tuple; wrap the environment so that it uses one of these"
    )


def _space_of(env: Any, name: str) -> Any:
    space = getattr(env, name, None)
    if space is None:
        raise EnvContractError(f"{type(env).__name__} has no {name}; set it in the environment's constructor")
    return space


def _layers(env: Any) -> list[Any]:
    """Returns the environment and what its wrappers hold, down to the innermost object with a `reset`."""
    layers = [env]
    while callable(getattr(inner := getattr(layers[-1], "__dict__", {}).get("env"), "reset", None)):
        layers.append(inner)
    return layers


def _without(env: Any, name: str) -> Any:
    """Returns the environment without its wrapper of this class name."""
    layers = _layers(env)
    for outer, layer in zip([None, *layers], layers, strict=False):
        if type(layer).__name__ == name and layer is not layers[-1]:
            if outer is None:
                return layer.env
            outer.env = layer.env
            return env
    return env


def _takes_seed(layer: Any) -> bool:
    """Returns whether the `reset` of an environment or a wrapper accepts a seed."""
    if type(layer).__name__ == "EnvCompatibility":  # gym's adapter for the older API, which calls `seed`
        return getattr(layer.env, "seed", None) is not None
    parameters = inspect.signature(layer.reset).parameters.values()
    return any(parameter.name == "seed" or parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def _is_pair(answer: Any) -> bool:
    return isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], dict)


def _has_info(answer: Any, space: spaces.Space[Any]) -> bool:
    """Returns whether `reset` returned (observation, info); a Tuple observation may look like that."""
    return _is_pair(answer) and not (isinstance(space, spaces.Tuple) and space.contains(answer))


def _described(value: Any) -> str:
    text = " ".join(repr(value).split())
    size = f" of {len(value)}" if isinstance(value, tuple | list | dict) else ""
    return f"{type(value).__name__}{size} {text if len(text) <= 80 else text[:77] + '...'}"
