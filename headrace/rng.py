"""Random numbers by address: a draw is a function of (seed, stream, env_id, step), never of earlier draws.

An environment therefore sees the same randomness in every sampler, with any number of workers, and after a resume.

`uniforms` hashes the address with the finalizer of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom
number generators", OOPSLA 2014), twice, with a 64-bit key per (seed, stream, env_id) from NumPy's `SeedSequence`
between the two rounds: without the key there, two environments would draw the same sequence at two offsets. NumPy's
generators draw for one environment at a time; this draws for a whole batch in one call (10 ns per number, 2
where it is compiled).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np

from headrace import compiled

__all__ = ["GeneratorSeeds", "Stream", "draw_seed", "env_keys", "env_seeds", "generator_seeds", "uniforms"]

#: Seeds of the global generators of NumPy, Python and torch, 32 bits each.
GeneratorSeeds = tuple[int, int, int]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


class Stream(IntEnum):
    """Purposes of random numbers. Training environments use `spawn_key=(env_id,)`; others add the stream's number."""

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
    PARAMETERS = 13
    UPDATE = 14


def draw_seed() -> int:
    """Returns a new seed from the operating system, with 31 bits so that it is easy to write down."""
    return int(np.random.SeedSequence().generate_state(1)[0]) & 0x7FFFFFFF


def env_seeds(seed: int, env_id: int, stream: Stream | None = None, incarnation: int = 0) -> tuple[int, int]:
    """Returns the seeds of an environment and of its action space, 31 bits each (some simulators accept no more).

    Training uses `SeedSequence(seed, spawn_key=(env_id,))`.

    Args:
        seed: seed of the run.
        env_id: global number of the environment.
        stream: None: training environments; evaluation environments have their own stream.
        incarnation: how many times the environments were started anew, by resumes that could not restore them.
    """
    spawn_key: tuple[int, ...] = (env_id,) if stream is None else (int(stream), env_id)
    if incarnation:  # three numbers, because two would be the key of another stream
        spawn_key = (int(Stream.ENV_AGAIN if stream is None else stream), env_id, incarnation)
    env_seed, space_seed = np.random.SeedSequence(seed, spawn_key=spawn_key).generate_state(2)
    return int(env_seed) & 0x7FFFFFFF, int(space_seed) & 0x7FFFFFFF


def generator_seeds(seed: int, stream: Stream, *address: int) -> GeneratorSeeds:
    """Returns the seeds of the global generators of a process or an environment; see `headrace.envs.global_rng`."""
    numpy_seed, python_seed, torch_seed = np.random.SeedSequence(
        seed, spawn_key=(int(stream), *address)
    ).generate_state(3)
    return int(numpy_seed), int(python_seed), int(torch_seed)


def env_keys(seed: int, stream: Stream, env_ids: Sequence[int]) -> np.ndarray:
    """Returns the 64-bit keys, uint64 `[len(env_ids)]`, that `uniforms` draws from."""
    keys = [
        np.random.SeedSequence(seed, spawn_key=(int(stream), int(env_id))).generate_state(1, np.uint64)[0]
        for env_id in env_ids
    ]
    return np.array(keys, dtype=np.uint64)


def uniforms(keys: np.ndarray, first_step: int, n_steps: int, size: int) -> np.ndarray:
    """Draws uniforms strictly inside (0, 1) for steps first_step, first_step + 1, …

    Each is 23 random bits plus one half, so 0 and 1 cannot occur. (24 bits plus one half would round up to 1 in
    float32.)

    Args:
        keys: keys of the environments, see `env_keys`.
        first_step: number of the first step.
        n_steps: number of steps.
        size: numbers per environment and step.

    Returns:
        float32 `[n_steps, len(keys), size]`.
    """
    if compiled.batch is not None:
        drawn = np.empty((n_steps, len(keys), size), np.float32)
        compiled.batch.uniforms(keys, first_step * size % 2**64, drawn)
        return drawn
    first = np.uint64(first_step * size % 2**64)
    counter = first + np.arange(n_steps * size, dtype=np.uint64)
    address = _mix(counter * _GAMMA).reshape(n_steps, 1, size)
    bits = _mix(address ^ keys.reshape(1, -1, 1)) >> np.uint64(41)
    return (bits.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23)


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * _MIX1
    x = (x ^ (x >> np.uint64(27))) * _MIX2
    return np.asarray(x ^ (x >> np.uint64(31)))
