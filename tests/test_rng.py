"""Addressed random numbers: a draw depends on its address and nothing else."""

import numpy as np
import pytest

from headrace.rng import Stream, draw_seed, env_keys, env_seeds, uniforms

#: batch_B=256, world_size=4.
ENV_IDS = range(1024)


@pytest.fixture(scope="module")
def keys() -> np.ndarray:
    return env_keys(0, Stream.ACTION, ENV_IDS)


def test_draw_depends_on_its_address_and_not_on_the_grouping(keys: np.ndarray) -> None:
    whole = uniforms(keys[:8], 0, 30, 3)
    assert whole.shape == (30, 8, 3)
    for columns in ([0], [7], [2, 3, 4], [6, 1]):
        assert np.array_equal(uniforms(keys[columns], 0, 30, 3), whole[:, columns])
    for first, n_steps in ((0, 1), (29, 1), (7, 16)):
        assert np.array_equal(uniforms(keys[:8], first, n_steps, 3), whole[first : first + n_steps])


def test_keys_depend_on_the_env_id_and_not_on_its_position(keys: np.ndarray) -> None:
    assert np.array_equal(env_keys(0, Stream.ACTION, [900, 3, 17]), keys[[900, 3, 17]])


def test_draws_equal_recorded_values() -> None:
    """Resumes and other machines rely on it."""
    draws = uniforms(env_keys(3, Stream.ACTION, [0, 5]), 10, 2, 1)[:, :, 0]
    assert (draws * 2**24).astype(np.int64).tolist() == [[5070111, 13652503], [8447159, 15751803]]
    assert env_seeds(3, 5) == (523213049, 1937461429)
    assert env_seeds(3, 5, Stream.EVAL_ENV) == (1148957157, 1829252604)


def test_draws_are_strictly_inside_0_and_1(keys: np.ndarray) -> None:
    draws = uniforms(keys, 0, 2000, 1)
    assert draws.dtype == np.float32
    assert 0 < draws.min() < 1e-5
    assert 1 - 1e-5 < draws.max() < 1


def test_the_smallest_and_the_largest_draw_are_inside_0_and_1() -> None:
    """Keys made so that step 0 hashes to no bit set, and to all of them."""
    low, high = uniforms(np.array([0, unmixed(2**64 - 1)], np.uint64), 0, 1, 1)[0, :, 0]
    assert low == 2.0**-24
    assert high == 1 - 2.0**-24


def unmixed(x: int) -> int:
    """The inverse of SplitMix64's finaliser."""
    x ^= x >> 31 ^ x >> 62
    x = x * pow(0x94D049BB133111EB, -1, 2**64) % 2**64
    x ^= x >> 27 ^ x >> 54
    x = x * pow(0xBF58476D1CE4E5B9, -1, 2**64) % 2**64
    return x ^ x >> 30 ^ x >> 60


def test_streams_of_environments_are_distinct(keys: np.ndarray) -> None:
    """1,024 streams: no 100 first draws are equal, and no stream runs through a piece of another at another offset."""
    draws = uniforms(keys, 0, 100, 1)[:, :, 0].T
    assert len(np.unique(draws, axis=0)) == len(ENV_IDS)
    windows = np.lib.stride_tricks.sliding_window_view(draws, 4, axis=1).reshape(-1, 4)
    assert len(np.unique(windows, axis=0)) == len(windows) == 1024 * 97


def test_other_streams_and_seeds_give_other_draws() -> None:
    draws = [
        uniforms(env_keys(seed, stream, range(16)), 0, 50, 1).tobytes() for seed in (0, 1, 2**40) for stream in Stream
    ]
    assert len(set(draws)) == len(draws) == 3 * len(Stream)


def test_draws_are_uniform_and_independent(keys: np.ndarray) -> None:
    """Bounds are five standard deviations of what truly independent uniforms would show."""
    draws = uniforms(keys[:500], 0, 400, 1)[:, :, 0].astype(np.float64)
    n = draws.size
    counts = np.histogram(draws, bins=64, range=(0, 1))[0]
    assert abs(((counts - n / 64) ** 2 / (n / 64)).sum() - 63) < 5 * np.sqrt(2 * 63)
    centred = (draws - 0.5) * np.sqrt(12)
    for pairs in (centred[:, 1:] * centred[:, :-1], centred[1:] * centred[:-1]):  # neighbours in env id and in time
        assert abs(pairs.mean()) < 5 / np.sqrt(pairs.size)
    for means, count in ((draws.mean(axis=0), 400), (draws.mean(axis=1), 500)):  # no stream and no step leans
        assert np.abs(means - 0.5).max() < 5 * np.sqrt(1 / 12 / count)


def test_low_and_high_bits_are_both_random(keys: np.ndarray) -> None:
    bits = (uniforms(keys[:256], 0, 256, 1).astype(np.float64) * 2**23).astype(np.int64).reshape(-1)
    for bit in range(23):
        assert abs(((bits >> bit) & 1).mean() - 0.5) < 5 * 0.5 / np.sqrt(len(bits))


def test_large_step_numbers_work(keys: np.ndarray) -> None:
    far = uniforms(keys[:3], 2**62 - 1, 3, 2)
    assert np.array_equal(far[1:], uniforms(keys[:3], 2**62, 2, 2))
    assert len(np.unique(far)) == far.size


def test_no_noise_is_an_empty_array(keys: np.ndarray) -> None:
    assert uniforms(keys[:3], 0, 4, 0).shape == (4, 3, 0)


def test_seeds_of_environments_and_their_action_spaces_are_all_distinct() -> None:
    train = [env_seeds(0, env_id) for env_id in ENV_IDS]
    evaluation = [env_seeds(0, env_id, Stream.EVAL_ENV) for env_id in ENV_IDS]
    seeds = [seed for pair in (*train, *evaluation) for seed in pair]
    assert len(set(seeds)) == len(seeds) == 4 * 1024
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_seeded_environments_differ() -> None:
    """The generator Gymnasium makes of a seed: 1,024 environments, no two with the same 100 first draws."""
    draws = [np.random.default_rng(env_seeds(0, env_id)[0]).random(100) for env_id in ENV_IDS]
    assert len(np.unique(np.stack(draws), axis=0)) == 1024


def test_consecutive_seeds_share_no_environment_seed() -> None:
    """Seed 1 env 0 is not seed 0 env 1."""
    seeds = [env_seeds(seed, env_id)[0] for seed in range(32) for env_id in range(32)]
    assert len(set(seeds)) == 1024


def test_drawn_seeds_are_31_bits_and_differ() -> None:
    seeds = [draw_seed() for _ in range(20)]
    assert len(set(seeds)) == 20
    assert all(0 <= seed < 2**31 for seed in seeds)
