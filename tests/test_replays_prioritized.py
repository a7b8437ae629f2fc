"""Prioritized replay: probabilities, weights, and late updates of priorities."""

import io
from typing import Any

import numpy as np
import pytest
import torch

from headrace.replays import PrioritizedReplay, ReplayNotReady
from tests.replay_worlds import Sampler, World, check, startable
from tests.test_replays import made


def prioritized(world: World, **settings: Any) -> tuple[Any, PrioritizedReplay, Sampler]:
    writer, replay, sampler = made(world, prioritized=True, **settings)
    assert isinstance(replay, PrioritizedReplay)
    return writer, replay, sampler


def all_indices(replay: PrioritizedReplay) -> np.ndarray:
    len(replay)
    return replay._window.index_of(replay._window.ready.nonzero()[0])


@pytest.mark.parametrize("mode", ["mid_batch", "wait", "next_step"])
def test_sampled_transitions_equal_the_appended_ones_for_any_priorities(mode: str) -> None:
    world = World(3, mode, first_step=2)
    writer, replay, sampler = prioritized(world, n_step=3)
    with pytest.raises(ReplayNotReady):
        replay.sample(1)
    old: list[Any] = []
    random = np.random.default_rng(0)
    for number in range(14):
        writer.append(sampler.next())
        expected = startable(world, sampler.rows, max(0, number * 5 + 5 - 19), 3)
        assert len(replay) == len(expected)
        positive = replay._tree.values > 0
        assert np.array_equal(positive, replay._window.ready)
        if not expected:
            continue
        transitions = replay.sample(20)
        assert set(check(world, transitions, 3, 0.99)) <= expected
        replay.update_priorities(transitions.indices, torch.from_numpy(random.random(20) * 10))
        old.append(transitions.indices)
        for indices in old[:-1]:  # they have left the ring by and by, or their places are others' now
            replay.update_priorities(indices, torch.full((20,), 1e-3))
        assert np.array_equal(replay._tree.values > 0, replay._window.ready)


def test_probabilities_and_weights_follow_the_paper() -> None:
    writer, replay, sampler = prioritized(World(1), alpha=0.7, beta=0.5)
    for _ in range(3):
        writer.append(sampler.next())
    indices = all_indices(replay)
    errors = np.random.default_rng(0).normal(size=len(indices)) * 5
    replay.update_priorities(indices, torch.from_numpy(errors))
    p = (np.abs(errors) + 1e-6) ** 0.7
    probability = p / p.sum()
    n = 50_000
    transitions = replay.sample(n)
    counts = np.array([(transitions.indices == index).sum() for index in indices])
    assert np.abs(counts - n * probability).max() <= 2  # stratified
    weights = (len(indices) * probability) ** -0.5
    expected = dict(zip(indices.tolist(), weights / weights[counts > 0].max(), strict=True))
    found = dict(zip(transitions.indices.tolist(), transitions.weights.tolist(), strict=True))
    assert found == pytest.approx({index: expected[index] for index in found}, rel=1e-5)
    assert transitions.weights.max() == 1
    replay.beta = 0.0
    assert (replay.sample(50).weights == 1).all()


def test_alpha_zero_is_uniform() -> None:
    writer, replay, sampler = prioritized(World(1), alpha=0.0)
    writer.append(sampler.next())
    indices = all_indices(replay)
    replay.update_priorities(indices, torch.arange(len(indices)))
    counts = np.unique(replay.sample(len(indices) * 100).indices, return_counts=True)[1]
    assert (np.abs(counts - 100) <= 1).all()


def test_new_transitions_have_the_largest_priority_so_far() -> None:
    writer, replay, sampler = prioritized(World(1), alpha=1.0)
    writer.append(sampler.next())
    values = replay._tree.values
    first = all_indices(replay)
    assert values[values > 0].tolist() == [1.0] * len(first)
    replay.update_priorities(first, torch.full((len(first),), 0.25))
    replay.update_priorities(first[:1], torch.tensor([6.0]))
    replay.update_priorities(first[:1], torch.tensor([2.0]))
    writer.append(sampler.next())
    new = np.setdiff1d(all_indices(replay), first)
    assert values[new % replay.spec.size] == pytest.approx(6.0, rel=1e-4)
    assert values[first[1:] % replay.spec.size] == pytest.approx(0.25, rel=1e-4)


def test_transition_completed_by_a_later_batch_has_the_largest_priority() -> None:
    writer, replay, sampler = prioritized(World(1, longest=100), n_step=3)
    writer.append(sampler.next())
    assert len(replay) == 6  # rows 0 and 1
    replay.update_priorities(all_indices(replay), torch.full((6,), 0.5))
    writer.append(sampler.next())
    assert len(replay) == 21
    values = replay._tree.values[all_indices(replay)]
    assert values.tolist() == pytest.approx([0.5**0.6] * 6 + [1.0] * 15, rel=1e-4)


@pytest.mark.parametrize(
    ("priorities", "message"),
    [
        (torch.tensor([1.0, float("nan")]), "must be finite"),
        (torch.tensor([float("inf"), 1.0]), "must be finite"),
        (torch.ones(3), r"the shape of indices, \[2\], got \[3\]"),
    ],
)
def test_invalid_priorities_are_refused(priorities: torch.Tensor, message: str) -> None:
    writer, replay, sampler = prioritized(World(1))
    writer.append(sampler.next())
    indices = all_indices(replay)[:2]
    before = replay._tree.values.copy()
    with pytest.raises(ValueError, match=message):
        replay.update_priorities(indices, priorities)
    assert np.array_equal(replay._tree.values, before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"alpha": -1.0}, "alpha=-1.0"), ({"beta": -1.0}, "beta must be at least 0, got -1.0"), ({"eps": 0.0}, "eps=0.0")],
)
def test_invalid_settings_are_refused(settings: dict[str, float], message: str) -> None:
    writer, _, _ = made(World())
    with pytest.raises(ValueError, match=message):
        PrioritizedReplay(writer.spec, writer.ring, **settings)  # type: ignore[arg-type]


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def test_sampling_continues_from_a_state_bit_for_bit() -> None:
    world = World(1)
    writer, replay, sampler = prioritized(world, n_step=2)
    random = np.random.default_rng(0)

    def train(which: PrioritizedReplay) -> None:
        transitions = which.sample(16)
        which.update_priorities(transitions.indices, torch.from_numpy(random.random(16)))

    for _ in range(9):
        writer.append(sampler.next())
        train(replay)
    replay.beta = 0.7
    again = PrioritizedReplay(writer.spec, writer.ring, n_step=2, seed=99)
    again.load_state_dict(through_a_file(replay.state_dict()))
    assert again.beta == 0.7
    for _ in range(5):
        one, two = replay.sample(16), again.sample(16)
        assert np.array_equal(one.indices, two.indices)
        assert torch.equal(one.weights, two.weights)
        writer.append(sampler.next())
        priorities = torch.from_numpy(random.random(16))
        replay.update_priorities(one.indices, priorities)
        again.update_priorities(two.indices, priorities)


def test_rows_after_a_saved_state_have_the_largest_priority() -> None:
    writer, replay, sampler = prioritized(World(1), alpha=1.0)
    for _ in range(4):
        writer.append(sampler.next())
    indices = all_indices(replay)
    replay.update_priorities(indices, torch.linspace(1, 3, len(indices)))
    state = replay.state_dict()
    values = dict(zip(indices.tolist(), np.linspace(1, 3, len(indices)), strict=True))
    writer.append(sampler.next())
    again = PrioritizedReplay(writer.spec, writer.ring, alpha=1.0)
    again.load_state_dict(state)
    now = all_indices(again)
    assert again._tree.values[now % replay.spec.size] == pytest.approx(
        [values.get(index, 3.0) for index in now.tolist()], rel=1e-4
    )
    assert (again._tree.values > 0).sum() == len(now)
    other, _, _ = made(World(1), n_rows=30)
    with pytest.raises(
        ValueError, match=r"priorities is a Tensor torch.float64 \[57\], expected a tensor torch.float64 \[90\]"
    ):
        PrioritizedReplay(other.spec, other.ring).load_state_dict(state)
