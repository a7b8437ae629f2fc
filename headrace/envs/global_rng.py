"""The process-wide random generators of NumPy, Python and torch.

The library draws from none of them, but environments may. So they are seeded in each worker process, which would
otherwise draw the same numbers as the other workers, and `isolated` gives each environment its own copy of such
generators.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from numpy.random import mtrand

from headrace.processes.late_import import LateImport
from headrace.rng import GeneratorSeeds, Stream, generator_seeds

__all__ = [
    "ISOLATE",
    "GlobalRandomness",
    "IsolatedEnv",
    "Isolation",
    "gaussian_kept",
    "isolated",
    "seed_global_generators",
]

#: The remedy for an environment that draws from the global generators.
ISOLATE = "make it draw from self.np_random, or pass isolate_rng=True to the sampler"


def seed_global_generators(seeds: GeneratorSeeds) -> None:
    """Seeds the global generators of NumPy, Python and, once imported, torch; for the library's processes only."""
    numpy_seed, python_seed, torch_seed = seeds
    mtrand.set_bit_generator(_mt19937(numpy_seed))
    random.seed(python_seed)
    if "torch" in sys.modules:
        _seed_torch(torch_seed)
    else:
        LateImport("torch", partial(_seed_torch, torch_seed))


def _seed_torch(seed: int) -> None:
    sys.modules["torch"].manual_seed(seed)


def _mt19937(seed: int) -> np.random.MT19937:
    return np.random.MT19937(np.random.SeedSequence(seed))


class GlobalRandomness:
    """Detects use or seeding of the global generators."""

    def __init__(self) -> None:
        self._states = _states()

    def touched(self) -> list[str]:
        """Returns the names of the generators that changed since the last call; takes 0.1 ms."""
        states, before = _states(), self._states
        self._states = states
        return [name for name, state in states.items() if name in before and state != before[name]]


def _states() -> dict[str, Any]:
    name, keys, *position = np.random.get_state(legacy=True)
    states = {"numpy.random": (name, np.asarray(keys).tobytes(), *position), "random": random.getstate()}
    torch = sys.modules.get("torch")
    if torch is not None:
        states["torch"] = torch.get_rng_state().numpy().tobytes()
    return states


# ---- generators for each environment ----


@dataclass(frozen=True)
class Isolation:
    """Source of the seeds of each environment's generators, see `headrace.rng.generator_seeds`.

    Args:
        seed: the run's seed.
        stream: the stream of training or evaluation environments.
        incarnation: see `headrace.rng.env_seeds`.
    """

    seed: int
    stream: Stream
    incarnation: int

    def seeds(self, env_id: int) -> GeneratorSeeds:
        """Returns the seeds for one environment."""
        return generator_seeds(self.seed, self.stream, env_id, self.incarnation)


def isolated(make: Callable[[], gymnasium.Env[Any, Any]], seeds: GeneratorSeeds) -> IsolatedEnv:
    """Returns the environment that `make` makes, with its own copy of the global generators from its constructor on."""
    generators = _Generators(seeds)
    return IsolatedEnv(generators.call(make), generators)


class IsolatedEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Swaps the environment's own generators in for the global ones during every call.

    Its pickle includes their states. A call costs 60 µs: the state of Python's generator is read and written twice.

    Args:
        env: the environment.
        generators: its generators.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], generators: _Generators) -> None:
        super().__init__(env)
        self._generators = generators

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Resets with exactly the arguments that were given."""
        given: dict[str, Any] = {} if seed is None else {"seed": seed}
        if options is not None:
            given["options"] = options
        answer: tuple[Any, dict[str, Any]] = self._generators.call(partial(self.env.reset, **given))
        return answer

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """See `gymnasium.Env`."""
        answer: tuple[Any, Any, Any, Any, dict[str, Any]] = self._generators.call(self.env.step, action)
        return answer

    def close(self) -> None:
        """See `gymnasium.Env`."""
        self._generators.call(self.env.close)

    def get_wrapper_attr(self, name: str) -> Any:
        """Returns an attribute; methods are called with the environment's own generators."""
        value = self.env.get_wrapper_attr(name)
        return partial(self._generators.call, value) if callable(value) else value


class _Generators:
    """The global generators of one environment, and their exchange with those of the process."""

    def __init__(self, seeds: GeneratorSeeds) -> None:
        numpy_seed, python_seed, self._torch_seed = seeds
        self._numpy: Any = _mt19937(numpy_seed)
        self._python = random.Random(python_seed).getstate()
        self._torch: np.ndarray | None = None  # its state, once torch is imported

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls `function(*args)` with these generators in place.

        NumPy's generators are exchanged, because copying their states takes 70 µs. The exchange loses a normal number
        that a generator holds in reserve; see `gaussian_kept`.
        """
        numpy_outside, python_outside = mtrand.get_bit_generator(), random.getstate()
        mtrand.set_bit_generator(self._numpy)
        random.setstate(self._python)
        torch_outside: list[Any] = []
        late: LateImport | None = None
        if "torch" in sys.modules:
            self._put_torch_in(torch_outside)
        else:
            late = LateImport("torch", partial(self._put_torch_in, torch_outside))
        try:
            return function(*args)
        finally:
            self._numpy, self._python = mtrand.get_bit_generator(), random.getstate()
            mtrand.set_bit_generator(numpy_outside)
            random.setstate(python_outside)
            if late is not None:
                late.forget()
            if torch_outside:
                torch = sys.modules["torch"]
                self._torch = torch.get_rng_state().numpy()
                torch.set_rng_state(torch_outside[0])

    def _put_torch_in(self, outside: list[Any]) -> None:
        torch = sys.modules["torch"]
        outside.append(torch.get_rng_state())
        if self._torch is None:
            torch.default_generator.manual_seed(self._torch_seed)
        else:
            torch.set_rng_state(torch.from_numpy(self._torch))


@contextmanager
def gaussian_kept() -> Iterator[None]:
    """Restores the normal number that NumPy's global generator holds in reserve, which `IsolatedEnv` loses."""
    before: Any = np.random.get_state(legacy=False)
    try:
        yield
    finally:
        if before["has_gauss"]:
            now: Any = np.random.get_state(legacy=False)
            np.random.set_state({**now, "has_gauss": 1, "gauss": before["gauss"]})
