"""Environments that keep the contract, and environments each of which breaks one clause of it."""

import ctypes
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

BOX = spaces.Box(-5.0, 5.0, (3,), np.float32)
LENGTH = 5


class Good(gymnasium.Env[Any, Any]):
    """A valid environment: observations are drawn from its space, episodes have 5 steps and end by both kinds of end in
    turn.
    """

    def __init__(
        self, observation_space: spaces.Space[Any] = BOX, action_space: spaces.Space[Any] | None = None
    ) -> None:
        self.observation_space = deepcopy(observation_space)
        self.action_space = deepcopy(action_space) if action_space is not None else spaces.Discrete(3)
        self.resets = self.steps = self.n = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
            self.resets = self.steps = 0
        self.resets, self.n = self.resets + 1, 0
        return self.observation(), {}

    def step(self, action: Any) -> Any:
        self.n += 1
        self.steps += 1
        ended = self.n == LENGTH
        terminated, truncated = ended and self.resets % 2 == 1, ended and self.resets % 2 == 0
        return self.observation(), float(self.np_random.normal()), terminated, truncated, {"n": self.n}

    def observation(self) -> Any:
        return self.observation_space.sample()


class Altered(Good):
    """`Good`, except for one result: `change` gets it as a list and returns what is returned instead, or raises.

    at: "reset" (the first), "late reset" (the second), "step" (the 7th) or "end" (the 5th step, the last of an
    episode).
    """

    def __init__(self, at: str, change: Callable[[list[Any]], Any], observation_space: spaces.Space[Any] = BOX) -> None:
        super().__init__(observation_space)
        self._at, self._change = at, change

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        answer = super().reset(seed=seed)
        bad = {"reset": 1, "late reset": 2}.get(self._at) == self.resets
        return self._change(list(answer)) if bad else answer

    def step(self, action: Any) -> Any:
        answer = super().step(action)
        bad = {"step": 7, "end": LENGTH}.get(self._at) == self.steps
        return self._change(list(answer)) if bad else answer


def put(index: int, value: Any) -> Callable[[list[Any]], Any]:
    """Returns the result with another value at one position."""
    return lambda answer: (*answer[:index], value, *answer[index + 1 :])


def instead(value: Any) -> Callable[[list[Any]], Any]:
    return lambda answer: value


def observed(value: Any) -> Callable[[list[Any]], Any]:
    return put(0, value)


def in_observation(index: Any, value: Any) -> Callable[[list[Any]], Any]:
    """Returns the observation with another number at one position."""

    def change(answer: list[Any]) -> Any:
        observation = deepcopy(answer[0])
        observation[index] = value
        return (observation, *answer[1:])

    return change


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*answer: Any) -> Any:
        raise error

    return fail


class BrokenWords(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


def for_ever(*answer: Any) -> Any:
    while True:
        time.sleep(0.01)


# ---- constructor and spaces ----


class NoObservationSpace(Good):
    def __init__(self) -> None:
        self.action_space = spaces.Discrete(2)


class NoActionSpace(Good):
    def __init__(self) -> None:
        self.observation_space = BOX


class ShapeForASpace(Good):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = (3,)  # type: ignore[assignment]


class SpaceThatRaises(Good):
    @property
    def action_space(self) -> Any:
        raise FileNotFoundError("robot.xml")

    @action_space.setter
    def action_space(self, space: Any) -> None:
        pass


class EachHasAnotherSpace(Good):
    made = 0

    def __init__(self) -> None:
        type(self).made += 1
        super().__init__(spaces.Box(-5.0, 5.0, (2 + self.made,), np.float32))


class SpaceChangesInReset(Good):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        answer = super().reset(seed=seed)
        self.observation_space.high = np.full(3, 4, np.float32)  # type: ignore[attr-defined]
        return answer


def with_a_space_that_cannot_travel() -> Good:
    class Local(spaces.Discrete):
        pass

    return Good(action_space=Local(3))


class Unseedable(spaces.Discrete):
    def sample(self, mask: Any = None, probability: Any = None) -> Any:
        return np.int64(random.SystemRandom().randrange(2**40) % int(self.n))


class Beyond(spaces.Discrete):
    def sample(self, mask: Any = None, probability: Any = None) -> Any:
        return self.n + super().sample()


# ---- signatures ----


class ResetWithoutSeed(Good):
    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()


class ResetWithoutOptions(Good):
    def reset(self, seed: int | None = None) -> Any:  # type: ignore[override]
        return super().reset(seed=seed)


class ResetNeedsASeed(Good):
    def reset(self, *, seed: int, options: Any = None) -> Any:  # type: ignore[override]
        return super().reset(seed=seed)


class StepWithoutAction(Good):
    def step(self) -> Any:  # type: ignore[override]
        return super().step(0)


class StepWithMore(Good):
    def step(self, action: Any, speed: float) -> Any:  # type: ignore[override]
        return super().step(action)


class OldWrapper(gymnasium.Wrapper[Any, Any, Any, Any]):
    def reset(self) -> Any:  # type: ignore[override]
        return self.env.reset()


class Adapting(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A valid environment around one whose `reset` takes no seed; it seeds that one directly."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        inner: Any = self.env
        if seed is not None:
            Good.reset(inner, seed=seed)
        return inner.reset()


# ---- conduct ----


class NoStep(Good):
    step = gymnasium.Env.step


class DislikesAnAction(Good):
    def step(self, action: Any) -> Any:
        assert action != 2, "action 2 is not implemented"
        return super().step(action)


class Limited(Good):
    """An environment whose spec declares a time limit of `limit` steps."""

    def __init__(self, limit: int, terminated: bool) -> None:
        super().__init__()
        self.spec = gymnasium.envs.registration.EnvSpec("Limited-v0", max_episode_steps=limit)
        self._terminated = terminated

    def step(self, action: Any) -> Any:
        observation, reward, _, _, info = super().step(action)
        return observation, reward, self._terminated and self.n == LENGTH, False, info


class IgnoresTheSeed(Good):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(None)
        return self.observation(), {}


class Entropy(Good):
    """The reward, observation or end of a step depends on something that no seed determines."""

    def __init__(self, field: int) -> None:
        super().__init__()
        self._field = field

    def step(self, action: Any) -> Any:
        answer = list(super().step(action))
        noise = random.SystemRandom().random()
        answer[self._field] = {0: np.full(3, noise, np.float32), 1: noise, 2: noise < 0.5, 3: noise < 0.5}[self._field]
        return tuple(answer)


class NewGeneratorEachTime(Good):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self._generator = np.random.default_rng(self.seed_of(seed))
        return super().reset(seed=seed)

    def observation(self) -> Any:
        return self._generator.uniform(-5, 5, 3).astype(np.float32)

    def seed_of(self, seed: int | None) -> int | None:
        return seed


class SameEpisodeEachTime(NewGeneratorEachTime):
    def seed_of(self, seed: int | None) -> int | None:
        return seed or 7


class Remembers(Good):
    def __init__(self) -> None:
        super().__init__()
        self._episodes = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._episodes += 1
        return np.array([self._episodes / 100, 0, 0], np.float32), {}


class SeedsOnce(Good):
    def __init__(self) -> None:
        super().__init__()
        self._generator: np.random.Generator | None = None

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if self._generator is None:
            self._generator = np.random.default_rng(seed)
        return self._generator.uniform(-5, 5, 3).astype(np.float32), {}


class SharedPosition(Good):
    position = np.zeros(3, np.float32)

    def observation(self) -> Any:
        type(self).position = 0.5 * self.position + 0.1 * self.observation_space.sample()
        return self.position

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        type(self).position = np.zeros(3, np.float32)
        return super().reset(seed=seed)


class SharedGenerator(Good):
    generator = np.random.default_rng(0)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None:
            type(self).generator = np.random.default_rng(seed)
        return super().reset(seed=seed)

    def observation(self) -> Any:
        return self.generator.uniform(-5, 5, 3).astype(np.float32)


_made = 0


class CountsItsKind(Good):
    def __init__(self) -> None:
        global _made
        super().__init__()
        _made += 1
        self._number = _made

    def observation(self) -> Any:
        return np.array([self._number / 100, 0, 0], np.float32)


class Uses(Good):
    """Calls a function in its constructor, in each reset or in each step."""

    def __init__(self, at: str, call: Callable[[], Any]) -> None:
        super().__init__()
        self._at, self._call = at, call
        self._do("constructor")

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self._do("reset")
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        self._do("step")
        return super().step(action)

    def close(self) -> None:
        self._do("close")

    def _do(self, at: str) -> None:
        if at == self._at:
            self._call()


class ClosesOnce(Good):
    closed = False

    def close(self) -> None:
        if self.closed:
            raise RuntimeError("no window any more")
        self.closed = True


class LeavesAProcess(Good):
    def __init__(self) -> None:
        super().__init__()
        self._server = subprocess.Popen(["sleep", "60"])


class SeveralThings(Good):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = None  # type: ignore[assignment]

    def close(self) -> None:
        raise OSError("stuck")


# ---- the table ----


@dataclass(frozen=True)
class Broken:
    """make, kwargs: for `check_env`; clause: that it breaks; call, came: words that the violation must contain."""

    make: Any
    clause: str
    call: str
    came: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    timeout: float = 20.0


CALLS = {
    "reset": "reset(seed=...) of episode 1",
    "late reset": "reset() of episode 2",
    "step": "step() 2 of episode 2",
    "end": "step() 5 of episode 1",
}


def altered(at: str, change: Callable[..., Any], clause: str, came: str, space: spaces.Space[Any] = BOX) -> Broken:
    return Broken(Altered, clause, CALLS[at], came, {"at": at, "change": change, "observation_space": space})


def uses(at: str, call: Callable[..., Any], clause: str, place: str, came: str, timeout: float = 20.0) -> Broken:
    return Broken(Uses, clause, place, came, {"at": at, "call": call}, timeout)


DICT = spaces.Dict({"x": BOX, "gear": spaces.Discrete(4, start=1)})
PAIR = spaces.Tuple((spaces.Discrete(3), BOX))
ZERO = np.zeros(3, np.float32)
HANG = 3.0  # seconds
GLOBAL = "draws from the global generator of "

BROKEN: dict[str, Broken] = {
    # pickling
    "a lock in env_kwargs": Broken(
        lambda lock: Good(), "pickling", "pickling", "cannot pickle '_thread.lock'", {"lock": threading.Lock()}
    ),
    "a generator in env_kwargs": Broken(
        lambda numbers: Good(), "pickling", "pickling", "cannot pickle 'generator'", {"numbers": (n for n in [1])}
    ),
    # constructor
    "constructor raises": uses(
        "constructor",
        raising(OSError("no licence")),
        "constructor",
        "the constructor",
        "raised OSError: no licence (in",
    ),
    "constructor leaves": uses(
        "constructor", raising(SystemExit(3)), "constructor", "the constructor", "raised SystemExit: 3"
    ),
    "unknown argument": Broken(Good, "constructor", "the constructor", "unexpected keyword argument 'v'", {"v": 3}),
    "returns None": Broken(lambda: None, "constructor", "the constructor", "NoneType, not a gymnasium.Env"),
    "returns a class": Broken(lambda: Good, "constructor", "the constructor", "not a gymnasium.Env"),
    "returns a vector environment": Broken(
        lambda: gymnasium.make_vec("CartPole-v1", 2), "constructor", "the constructor", "VectorEnv, not a gymnasium.Env"
    ),
    # spaces
    "no observation space": Broken(NoObservationSpace, "spaces", "env.observation_space", "NoneType None"),
    "no action space": Broken(NoActionSpace, "spaces", "env.action_space", "NoneType None"),
    "a shape for a space": Broken(ShapeForASpace, "spaces", "env.observation_space", "tuple (3,)"),
    "space raises": Broken(SpaceThatRaises, "spaces", "env.action_space", "raised FileNotFoundError: robot.xml"),
    "text": Broken(
        Good, "fixed-shape", "env.observation_space", "observation is Text(", {"observation_space": spaces.Text(5)}
    ),
    "sequence of actions": Broken(
        Good,
        "fixed-shape",
        "env.action_space",
        "action is Sequence(",
        {"action_space": spaces.Sequence(spaces.Discrete(3))},
    ),
    "graph in a Dict": Broken(
        Good,
        "fixed-shape",
        "env.observation_space",
        "['g'] is Graph(",
        {"observation_space": spaces.Dict(g=spaces.Graph(BOX, None))},
    ),
    "each has another space": Broken(
        EachHasAnotherSpace, "spaces", "env.observation_space", "(4,), float32) of a second environment"
    ),
    "space changes in reset": Broken(SpaceChangesInReset, "spaces", "env.observation_space", "after the run"),
    "space cannot be pickled": Broken(
        with_a_space_that_cannot_travel, "spaces", "pickling env.action_space", "Can't pickle local object"
    ),
    # action space
    "samples ignore the seed": Broken(
        Good,
        "action-space",
        "action_space.seed()",
        "the same seed gave different samples",
        {"action_space": Unseedable(99)},
    ),
    "samples outside": Broken(
        Good, "action-space", "action_space.sample()", "is not in Discrete(3)", {"action_space": Beyond(3)}
    ),
    # signature
    "reset without seed": Broken(ResetWithoutSeed, "signature", "reset()", "ResetWithoutSeed.reset() -> "),
    "reset without options": Broken(ResetWithoutOptions, "signature", "reset()", "'options'"),
    "reset needs a seed": Broken(ResetNeedsASeed, "signature", "reset()", "missing a required argument: 'seed'"),
    "step without action": Broken(StepWithoutAction, "signature", "step()", "too many positional arguments"),
    "step with more": Broken(StepWithMore, "signature", "step()", "missing a required argument: 'speed'"),
    "a wrapper's reset": Broken(lambda: OldWrapper(Good()), "signature", "reset()", "OldWrapper.reset() -> "),
    "reset inside a wrapper": Broken(
        lambda: gymnasium.wrappers.TimeLimit(ResetWithoutSeed(), 9),
        "signature",
        "reset()",
        "ResetWithoutSeed.reset() -> ",
    ),
    # raises
    "first reset raises": altered("reset", raising(ValueError("unhappy")), "raises", "raised ValueError: unhappy (in"),
    "late reset raises": altered("late reset", raising(KeyError("map")), "raises", "raised KeyError: 'map'"),
    "step raises": altered("step", raising(ValueError("unhappy")), "raises", "raised ValueError: unhappy (in fail, "),
    "step leaves the program": altered("step", raising(SystemExit(0)), "raises", "raised SystemExit: 0"),
    "step raises KeyboardInterrupt": altered(
        "step", raising(KeyboardInterrupt()), "raises", "raised KeyboardInterrupt"
    ),
    "step raises without words": altered("step", raising(BrokenWords()), "raises", "BrokenWords: (its message could"),
    "step is missing": Broken(NoStep, "raises", "step() 1 of episode 1", "raised NotImplementedError"),
    "dislikes an action": Broken(DislikesAnAction, "raises", "step() ", "action 2 is not implemented"),
    # answers of the wrong form
    "reset: observation alone": altered("reset", instead(ZERO), "reset-answer", "ndarray array([0."),
    "reset: a list": altered("late reset", list, "reset-answer", "list of 2 "),
    "reset: three": altered("reset", instead((ZERO, {}, 0)), "reset-answer", "tuple of 3 "),
    "reset: nothing": altered("late reset", instead(None), "reset-answer", "NoneType None"),
    "step: four": altered("step", instead((ZERO, 0.0, False, {})), "step-answer", "tuple of 4 "),
    "step: six": altered("step", lambda answer: (*answer, 1), "step-answer", "tuple of 6 "),
    "step: a list": altered("step", list, "step-answer", "list of 5 "),
    "step: nothing": altered("end", instead(None), "step-answer", "NoneType None"),
    # observation
    "shape": altered("step", observed(np.zeros(4, np.float32)), "observation", "observation = float32 [4]"),
    "broadcastable shape": altered("reset", observed(np.zeros(1, np.float32)), "observation", "= float32 [1]"),
    "dtype": altered("step", observed(np.full(3, 2**24 + 1)), "observation", "in int64 [3]"),
    "list": altered("step", observed([0.0, 0.0]), "observation", "observation = list [0.0, 0.0]"),
    "no last observation": altered("end", observed(None), "observation", "observation = NoneType None"),
    "NaN": altered("step", in_observation(1, np.nan), "observation", "observation = nan"),
    "Inf": altered("late reset", in_observation(1, np.inf), "observation", "observation = inf"),
    "a key is missing": altered("step", observed({"x": ZERO}), "observation", "dict with the keys ['x']", DICT),
    "shape in a Dict": altered(
        "end", in_observation("x", np.zeros(2, np.float32)), "observation", "observation['x'] = float32 [2]", DICT
    ),
    "a list for a Tuple": altered("step", observed([1]), "observation", "observation = list [1]", PAIR),
    "out of Discrete": altered("step", observed(5), "observation", "observation = int 5", spaces.Discrete(5)),
    "a number for Discrete": altered("reset", observed(0.5), "observation", "= float 0.5", spaces.Discrete(5)),
    # bounds
    "above": altered("step", in_observation(2, 5.5), "bounds", "observation[2] = 5.5"),
    "below": altered("reset", in_observation(0, -6), "bounds", "observation[0] = -6.0"),
    "last one above": altered("end", in_observation(0, 7), "bounds", "observation[0] = 7.0"),
    "above in a Dict": altered(
        "late reset", in_observation("x", ZERO + 9), "bounds", "observation['x'][0] = 9.0", DICT
    ),
    "MultiBinary": altered("step", in_observation(1, 2), "bounds", "observation[1] = 2", spaces.MultiBinary(3)),
    "MultiDiscrete": altered(
        "step", in_observation(0, 3), "bounds", "observation[0] = 3", spaces.MultiDiscrete([3, 4])
    ),
    # reward
    "reward None": altered("step", put(1, None), "reward", "NoneType"),
    "reward of a shape": altered("step", put(1, np.zeros(1)), "reward", "ndarray float64 [1]"),
    "reward in words": altered("step", put(1, "1.0"), "reward", "str"),
    "reward NaN": altered("end", put(1, float("nan")), "reward", "nan"),
    "reward beyond float32": altered("step", put(1, 1e39), "reward", "1e+39"),
    # ends
    "terminated 2": altered("step", put(2, 2), "terminated", "int 2"),
    "terminated None": altered("end", put(2, None), "terminated", "NoneType None"),
    "truncated of a shape": altered("step", put(3, np.array([False])), "truncated", "ndarray array([False])"),
    "truncated in words": altered("end", put(3, "timeout"), "truncated", "str 'timeout'"),
    # info
    "reset: info None": altered("reset", put(1, None), "info", "info = NoneType None"),
    "step: info is a list": altered("step", put(4, []), "info", "info = list []"),
    "resets itself": altered("end", put(4, {"final_observation": ZERO}), "autoreset", "['final_observation']"),
    # time limit
    "goes on past its limit": Broken(
        Limited, "time-limit", "step() 3 of episode 1", "truncated=False at step 3", {"limit": 3, "terminated": True}
    ),
    "limit is a termination": Broken(
        Limited, "time-limit", CALLS["end"], "terminated=True, truncated=False", {"limit": LENGTH, "terminated": True}
    ),
    # seeds
    "ignores the seed": Broken(IgnoresTheSeed, "seeding", "reset(seed=...) of episode 1", "different observations"),
    "entropy in observations": Broken(
        Entropy, "seeding", "step() 1 of episode 1", "different observations", {"field": 0}
    ),
    "entropy in rewards": Broken(Entropy, "seeding", "step() 1 of episode 1", "gave reward 0.", {"field": 1}),
    "entropy in terminated": Broken(Entropy, "seeding", "step() ", "gave terminated ", {"field": 2}),
    "entropy in truncated": Broken(Entropy, "seeding", "step() ", "gave truncated ", {"field": 3}),
    "a new generator each time": Broken(
        NewGeneratorEachTime, "continues", CALLS["late reset"], "different observations"
    ),
    "the same episode each time": Broken(
        SameEpisodeEachTime, "continues", "reset()", "8 resets without a seed gave the"
    ),
    "remembers episodes": Broken(
        Remembers, "reseeding", "reset(seed=...) of episode 1", "first seed after other episodes"
    ),
    "seeds once": Broken(SeedsOnce, "reseeding", "reset(seed=...) of episode 1", "different observations"),
    # independence
    "shared position": Broken(SharedPosition, "independence", "step() ", "stepped alternately with another"),
    "shared generator": Broken(SharedGenerator, "independence", "e", "stepped alternately with another"),
    "counts its kind": Broken(CountsItsKind, "independence", "reset(seed=...) of episode 1", "different observations"),
    # global generators
    "NumPy's generator": uses("step", np.random.random, "global-rng", "step() 1 of", GLOBAL + "numpy.random"),
    "NumPy is seeded": uses("constructor", lambda: np.random.seed(1), "global-rng", "the constructor", "numpy.random"),
    "Python's generator": uses("reset", random.random, "global-rng", "reset(seed=...) of", GLOBAL + "random"),
    "Python is seeded": uses("reset", lambda: random.seed(1), "global-rng", "reset(seed=...) of", GLOBAL + "random"),
    "torch's generator": uses("step", lambda: torch.rand(1), "global-rng", "step() 1 of", GLOBAL + "torch"),
    # close
    "close raises": uses("close", raising(OSError("stuck")), "close", "close()", "raised OSError: stuck"),
    "closes once": Broken(ClosesOnce, "close", "the second close()", "raised RuntimeError: no window any more"),
    "leaves a process": Broken(LeavesAProcess, "close", "close()", "of its processes still run: sleep"),
    # hang
    "constructor hangs": uses(
        "constructor", for_ever, "hang", "the constructor", "no answer for 3 s (in for_ever", HANG
    ),
    "reset hangs": uses("reset", for_ever, "hang", "reset() of episode 1", "no answer for 3 s (in for_ever", HANG),
    "step hangs": uses("step", for_ever, "hang", "step() 1", "no answer for 3 s (in for_ever", HANG),
    "close hangs": uses("close", for_ever, "hang", "close()", "no answer for 3 s (in for_ever", HANG),
    # crash
    "constructor is killed": uses(
        "constructor", lambda: os.kill(os.getpid(), signal.SIGKILL), "crash", "the constructor", "killed by SIGKILL"
    ),
    "reset crashes": uses("reset", lambda: ctypes.string_at(0), "crash", "reset() of episode 1", "killed by SIGSEGV"),
    "step exits": uses("step", lambda: os._exit(3), "crash", "step() 1", "its process ended with exit code 3"),
    "close exits": uses("close", lambda: os._exit(0), "crash", "close()", "its process ended with exit code 0"),
}
