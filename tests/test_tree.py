"""Trees: dataclasses, dicts and tuples of arrays; None is an empty tree."""

import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from headrace.buffers.tree import (
    allocate_like,
    tree_concatenate,
    tree_copy_into,
    tree_leaves,
    tree_map,
    tree_paths,
    tree_rows,
    tree_to_numpy,
    tree_to_torch,
)


@dataclass
class Inner:
    logits: Any
    nothing: Any = None


@dataclass
class Outer:
    camera: Any
    inner: Inner


def example() -> Outer:
    return Outer(
        camera={"left": np.arange(6).reshape(3, 2), "right": (np.arange(3.0), None)},
        inner=Inner(np.array([True, False, True])),
    )


def test_map_keeps_the_structure_and_its_types() -> None:
    tree = example()
    doubled = tree_map(lambda leaf: leaf.sum(), tree)
    assert doubled == Outer({"left": 15, "right": (3.0, None)}, Inner(2))
    assert isinstance(doubled.inner, Inner)
    assert tree.camera["left"].shape == (3, 2)  # the argument stays


def test_map_over_several_trees_pairs_leaves_by_position() -> None:
    first, second = (1, {"a": 2, "b": None}), (10, {"b": None, "a": 20})
    assert tree_map(lambda x, y: x + y, first, second) == (11, {"a": 22, "b": None})


def test_map_of_none_is_none_and_of_a_leaf_is_the_function() -> None:
    assert tree_map(lambda leaf: leaf, None) is None
    assert tree_map(lambda leaf: leaf + 1, 4) == 5


@pytest.mark.parametrize(
    ("first", "second", "error"),
    [((1, 2), (1, 2, 3), ValueError), ((1, 2, 3), (1, 2), ValueError), ({"a": 1}, {"b": 1}, KeyError)],
)
def test_map_over_trees_of_different_structure_is_an_error(first: Any, second: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        tree_map(lambda x, y: (x, y), first, second)


def test_leaves_are_in_the_order_of_paths() -> None:
    tree = example()
    paths = [path for path, _ in tree_paths(tree, "obs")]
    assert paths == ["obs.camera['left']", "obs.camera['right'][0]", "obs.inner.logits"]
    assert [id(leaf) for leaf in tree_leaves(tree)] == [id(leaf) for _, leaf in tree_paths(tree)]
    assert tree_leaves(None) == list(tree_paths(None)) == []
    assert list(tree_paths(7, "x")) == [("x", 7)]


@pytest.mark.parametrize(
    ("index", "expected"),
    [(1, [2, 3]), (slice(1, None), [[2, 3], [4, 5]]), ([2, 0], [[4, 5], [0, 1]]), ((slice(None), 1), [1, 3, 5])],
)
def test_rows_index_every_leaf(index: Any, expected: Any) -> None:
    tree = {"x": np.arange(6).reshape(3, 2), "y": (np.arange(6).reshape(3, 2) + 10, None)}
    rows = tree_rows(tree, index)
    assert rows["x"].tolist() == expected
    assert rows["y"][0].tolist() == (np.array(expected) + 10).tolist()
    assert rows["y"][1] is None


def test_rows_by_number_and_slice_are_views() -> None:
    tree = example()
    tree_rows(tree, 1).camera["left"][0] = 77
    tree_rows(tree, slice(2, 3)).camera["left"][0, 1] = 78
    assert tree.camera["left"].tolist() == [[0, 1], [77, 3], [4, 78]]


def test_copy_into_writes_into_existing_arrays() -> None:
    tree, source = example(), tree_map(lambda leaf: leaf * 0, example())
    arrays = tree_leaves(tree)
    tree_copy_into(tree, source)
    assert all(kept is array for kept, array in zip(tree_leaves(tree), arrays, strict=True))
    assert all((leaf == 0).all() for leaf in arrays)


def test_copy_into_a_tree_of_other_structure_is_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        tree_copy_into((np.zeros(2), np.zeros(2)), (np.zeros(2),))


def test_allocate_like_prepends_leading_dims() -> None:
    asked = []

    def allocate(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        asked.append((shape, dtype))
        return np.zeros(shape, dtype)

    tree = allocate_like({"image": np.zeros((4, 3), np.uint8), "none": None, "x": np.float32(0)}, (5, 2), allocate)
    assert asked == [((5, 2, 4, 3), np.dtype("uint8")), ((5, 2), np.dtype("float32"))]
    assert tree["image"].shape == (5, 2, 4, 3)
    assert tree["none"] is None


def test_to_torch_shares_memory() -> None:
    tree = example()
    tensors = tree_to_torch(tree)
    tree.camera["left"][2, 1] = -5
    assert tensors.camera["left"][2, 1] == -5
    assert tensors.inner.logits.dtype == torch.bool
    assert tree_to_torch(tree, "cpu").camera["right"][0].tolist() == [0.0, 1.0, 2.0]


def test_the_module_loads_no_torch() -> None:
    code = "import sys, headrace.buffers.tree, headrace.buffers.samples; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_concatenation_joins_the_rows_of_trees_whatever_the_order_of_keys() -> None:
    first = {"a": np.arange(2), "b": (np.ones((2, 3)), None)}
    second = {"b": (np.zeros((1, 3)), None), "a": np.array([7])}
    joined = tree_concatenate([first, second], "things")
    assert joined["a"].tolist() == [0, 1, 7]
    assert joined["b"][0].tolist() == [[1] * 3, [1] * 3, [0] * 3]
    assert joined["b"][1] is None


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"a": np.zeros(1)}, r"things\['b'\] is an array \[n, 3\] in the first part and missing in another"),
        ({"a": np.zeros(1), "b": np.zeros((1, 3)), "c": np.zeros(1)}, r"things\['c'\] is missing in the first part"),
        (
            {"a": np.zeros(1), "b": np.zeros((1, 4))},
            r"things\['b'\] .* \[n, 3\] in the first part .* \[n, 4\] in another",
        ),
        (np.zeros(1), r"things is missing in the first part and an array \[n\] in another"),
    ],
)
def test_trees_of_different_structure_are_not_concatenated(other: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        tree_concatenate([{"a": np.zeros(2), "b": np.zeros((2, 3))}, other], "things")


def test_tensors_become_arrays_of_the_same_memory_and_arrays_stay() -> None:
    tensor, array = torch.zeros(3), np.zeros(2)
    tree = tree_to_numpy({"tensor": tensor, "array": array})
    tree["tensor"][0] = 5
    assert tensor.tolist() == [5, 0, 0]
    assert tree["array"] is array
