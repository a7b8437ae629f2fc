"""Random numbers by address: a draw is a function of (seed, stream, env_id, step), never of who asked before.

So the same environment sees the same randomness in every sampler, with any number of workers, and after a resume.

`uniforms` hashes the address with the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom
number generators", OOPSLA 2014), twice, with a 64-bit key per (seed, stream, env_id) from NumPy's `SeedSequence`
between the rounds: without the key inside, two environments would walk the same sequence at two offsets. NumPy's own
generators make one environment's numbers at a time; this makes a batch's in one call (10 ns a number).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np

__all__ = ["GeneratorSeeds", "Stream", "draw_seed", "env_keys", "env_seeds", "generator_seeds", "uniforms"]

#: For the global generators of NumPy, Python and torch, 32 bits each.
GeneratorSeeds = tuple[int, int, int]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


class Stream(IntEnum):
    """What randomness is for. Training environments use the bare `spawn_key=(env_id,)`; the others add their number."""

    ACTION = 1
    DECORRELATION = 2
    WEIGHTS = 3
    EVAL_ENV = 4
    EVAL_ACTION = 5
    MINIBATCH = 6
    ENV_AGAIN = 7
    REPLAY = 8
    LEARNING = 9
    PROCESS = 10
    ENV_GLOBAL = 11
    EVAL_ENV_GLOBAL = 12


def draw_seed() -> int:
    """A fresh seed from the operating system, for those who gave none; 31 bits, so it is easy to write down."""
    return int(np.random.SeedSequence().generate_state(1)[0]) & 0x7FFFFFFF


def env_seeds(seed: int, env_id: int, stream: Stream | None = None, incarnation: int = 0) -> tuple[int, int]:
    """The seeds of environment `env_id` and of its action space, 31 bits each (some simulators take no more).

    `stream` None is training: `SeedSequence(seed, spawn_key=(env_id,))`; evaluation has its own stream. incarnation:
    how often the environments were begun anew, by resumes that could not go on with the old ones.
    """
    spawn_key: tuple[int, ...] = (env_id,) if stream is None else (int(stream), env_id)
    if incarnation:  # three numbers: two would be another stream's
        spawn_key = (int(Stream.ENV_AGAIN if stream is None else stream), env_id, incarnation)
    env_seed, space_seed = np.random.SeedSequence(seed, spawn_key=spawn_key).generate_state(2)
    return int(env_seed) & 0x7FFFFFFF, int(space_seed) & 0x7FFFFFFF


def generator_seeds(seed: int, stream: Stream, *address: int) -> GeneratorSeeds:
    """Those of a process, or of one environment; see `headrace.envs.global_rng`."""
    numpy_seed, python_seed, torch_seed = np.random.SeedSequence(
        seed, spawn_key=(int(stream), *address)
    ).generate_state(3)
    return int(numpy_seed), int(python_seed), int(torch_seed)


def env_keys(seed: int, stream: Stream, env_ids: Sequence[int]) -> np.ndarray:
    """The 64-bit keys `[len(env_ids)]` from which `uniforms` draws."""
    keys = [
        np.random.SeedSequence(seed, spawn_key=(int(stream), int(env_id))).generate_state(1, np.uint64)[0]
        for env_id in env_ids
    ]
    return np.array(keys, dtype=np.uint64)


def uniforms(keys: np.ndarray, first_step: int, n_steps: int, size: int) -> np.ndarray:
    """Uniforms strictly inside (0, 1), float32 `[n_steps, len(keys), size]`, for steps first_step, first_step + 1, …

    23 random bits and a half: 0 and 1 cannot occur. (24 bits and a half would round up to 1 in float32.)
    """
    first = np.uint64(first_step * size % 2**64)
    counter = first + np.arange(n_steps * size, dtype=np.uint64)
    address = _mix(counter * _GAMMA).reshape(n_steps, 1, size)
    bits = _mix(address ^ keys.reshape(1, -1, 1)) >> np.uint64(41)
    return (bits.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23)


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * _MIX1
    x = (x ^ (x >> np.uint64(27))) * _MIX2
    return np.asarray(x ^ (x >> np.uint64(31)))
