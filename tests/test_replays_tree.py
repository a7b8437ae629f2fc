"""The sum tree against a naive implementation."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from headrace.replays import sum_tree
from headrace.replays.sum_tree import SumTree

VALUES = st.one_of(st.just(0.0), st.floats(1e-12, 1e12), st.integers(1, 5).map(float))


@st.composite
def changes(draw: st.DrawFn) -> tuple[int, list[tuple[list[int], list[float]]]]:
    """A size, and changes of places to values."""
    size = draw(st.integers(1, 70))
    places = st.lists(st.integers(0, size - 1), min_size=1, max_size=20)
    lists = draw(st.lists(places, max_size=8))
    return size, [(each, draw(st.lists(VALUES, min_size=len(each), max_size=len(each)))) for each in lists]


@settings(deadline=None, max_examples=150)
@given(changes(), st.integers(0, 2**32), st.sampled_from([1, 4, 1024]))
def test_sum_tree_equals_a_list_of_values(
    case: tuple[int, list[tuple[list[int], list[float]]]], seed: int, top: int
) -> None:
    size, steps = case
    tree, naive = SumTree(size), np.zeros(size)
    uniforms = np.random.default_rng(seed).random(40)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sum_tree, "_SEARCHED", top)
        for number, (places, values) in enumerate(steps):
            if number % 2:
                tree.set(np.array(places), np.array(values))
                for place, value in zip(places, values, strict=True):  # the last counts
                    naive[place] = value
            else:
                start = places[0]
                part = np.array(values[: size - start])
                tree.set_range(start, part)
                naive[start : start + len(part)] = part
            assert np.array_equal(tree.values, naive)
            assert np.isclose(tree.total, naive.sum(), rtol=1e-12)
            if not naive.any():
                continue
            found = tree.find(np.concatenate([uniforms, [0.0, np.nextafter(1.0, 0.0)]]))
            assert (naive[found] > 0).all()
            upto = naive.cumsum()
            targets = uniforms * upto[-1]
            for place, target in zip(found, targets, strict=False):
                assert upto[place] >= target * (1 - 1e-12)
                assert upto[place] - naive[place] <= target * (1 + 1e-12)


def test_rounding_never_draws_a_position_of_value_zero() -> None:
    """The largest target in a subtree may round to its sum, and the positions behind may all have value 0."""
    tree = SumTree(8)
    tree.set_range(0, np.array([0.1, 0.2, 0.3, 0.0, 0.0, 0.0, 0.0, 0.0]))
    last = np.nextafter(1.0, 0.0)
    fractions = np.concatenate([np.full(50, last), last - np.arange(200) * 2.0**-53])
    for top in (1, 2, 4, 8):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sum_tree, "_SEARCHED", top)
            assert set(tree.find(fractions).tolist()) == {2}


def test_draw_moved_by_rounding_is_corrected() -> None:
    tree = SumTree(4)
    tree.set_range(0, np.array([1.0, 1.0, 0.0, 0.0]))
    tree._sums[1] = 2.5  # as if its children had been rounded
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sum_tree, "_SEARCHED", 1)
        assert tree.find(np.array([0.0, 0.5, 0.9, 0.99])).tolist() == [0, 1, 1, 1]


def test_draws_are_proportional_to_the_values() -> None:
    tree = SumTree(1000)
    values = np.random.default_rng(0).random(1000)
    values[::3] = 0
    tree.set_range(0, values)
    counts = np.bincount(tree.find((np.arange(400_000) + 0.5) / 400_000), minlength=1000)
    assert np.abs(counts - values / values.sum() * 400_000).max() <= 1.01
