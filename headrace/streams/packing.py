"""Several samples in one message, and several samples as one batch.

The tree of a message of samples is a tuple: of one sample; or of the arrays of n samples of the same shapes, stacked
along a new first axis, and their versions. Small samples cost a tenth that way.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from headrace.buffers.tree import tree_leaves, tree_map, tree_paths
from headrace.errors import FrameRejected, StreamError
from headrace.streams.codec import Frame
from headrace.types import Tree

__all__ = ["Post", "Sequences", "leading_alike", "n_samples", "packed", "stacked", "unpacked"]


class Post(NamedTuple):
    """A sample that was posted.

    Args:
        tree: the sample.
        version: of the parameters.
        sequence: its number among those of its producer.
    """

    tree: Tree
    version: int
    sequence: int


def leading_alike(posts: Sequence[Post], n: int, nbytes: int) -> int:
    """Returns how many of the first posts go into one message: those of the same shapes as the first.

    Args:
        posts: at least one.
        n: how many at most.
        nbytes: how many bytes at most, unless there is just one.
    """
    first: list[Any] = []
    size = _describe(posts[0].tree, first)
    most = min(n, nbytes // max(size, 1))
    count = 1
    for post in islice(posts, 1, most):
        other: list[Any] = []
        _describe(post.tree, other)
        if other != first:
            break
        count += 1
    return count


def _describe(tree: Tree, found: list[Any]) -> int:
    """Appends what two trees have in common if they can be stacked, and returns the bytes of the arrays."""
    if isinstance(tree, np.ndarray):
        found.append(tree.dtype)
        found.append(tree.shape)
        return tree.nbytes
    if tree is None:
        found.append(None)
        return 0
    names = getattr(type(tree), "__dataclass_fields__", None)
    found.append(type(tree))
    if isinstance(tree, dict):
        items: Any = tree.items()
    elif isinstance(tree, tuple):
        items = enumerate(tree)
    elif names is not None:
        items = [(name, getattr(tree, name)) for name in names]
    else:
        found.append(object())  # numbers and strings are not stacked: this equals nothing
        return 0
    size = 0
    for key, value in items:
        found.append(key)
        size += _describe(value, found)
    return size


def packed(posts: Sequence[Post]) -> Tree:
    """Returns the tree of a message of these posts, which are alike."""
    if len(posts) == 1:
        return (posts[0].tree,)
    trees = [post.tree for post in posts]
    versions = np.array([post.version for post in posts], np.int64)
    return tree_map(_stacked_first, trees[0], *trees[1:]), versions


def _stacked_first(*leaves: np.ndarray) -> np.ndarray:
    """Does what `np.stack` does, in a fifth of the time."""
    shape = leaves[0].shape
    return np.concatenate(leaves).reshape(len(leaves), *shape) if shape else np.array(leaves)


def n_samples(frame: Frame) -> int:
    """Returns how many samples a message has.

    Raises:
        FrameRejected: if it is no message of samples.
    """
    tree = frame.tree
    if not isinstance(tree, tuple) or len(tree) not in (1, 2):
        raise FrameRejected("a message has no samples, expected one or several stacked ones")
    if len(tree) == 1:
        return 1
    samples, versions = tree
    if not isinstance(versions, np.ndarray) or versions.dtype != np.int64 or versions.ndim != 1 or not len(versions):
        raise FrameRejected("a message of several samples has no versions")
    n = len(versions)
    if any(not isinstance(leaf, np.ndarray) or leaf.shape[:1] != (n,) for leaf in tree_leaves(samples)):
        raise FrameRejected(f"a message of {n} samples has an array of another number")
    return n


def unpacked(frame: Frame, first: int, stop: int) -> list[Frame]:
    """Returns the samples with these numbers of a message whose `n_samples` was checked; their arrays are views."""
    if len(frame.tree) == 1:
        return [Frame(frame.tree[0], frame.name, frame.version, frame.producer, frame.epoch, frame.sequence)]
    samples, versions = frame.tree
    name, producer, epoch, sequence = frame.name, frame.producer, frame.epoch, frame.sequence
    return [
        Frame(tree_map(_Row(index), samples), name, version, producer, epoch, sequence + index)
        for index, version in enumerate(versions[first:stop].tolist(), first)
    ]


class _Row:
    """Returns row `index` of an array, as an array also where the array has one dimension."""

    def __init__(self, index: int) -> None:
        self._index = (index, ...)

    def __call__(self, leaf: np.ndarray) -> np.ndarray:
        row: np.ndarray = leaf[self._index]
        return row


def stacked(frames: Sequence[Frame]) -> Tree:
    """Returns the samples as one tree `[T, n, ...]`, in new memory.

    Raises:
        StreamError: if they have different shapes.
    """
    trees = [frame.tree for frame in frames]
    try:
        return tree_map(_stacked_second, trees[0], *trees[1:])
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        different = {str(_shapes(tree)): None for tree in trees}
        raise StreamError(
            f"the samples of a batch have different shapes: {' and '.join([*different][:2])}; post samples of equal "
            "length, or use a consumer without batch_size"
        ) from error


def _stacked_second(*leaves: Any) -> np.ndarray:
    if isinstance(leaves[0], np.ndarray) and leaves[0].ndim:
        return np.stack(leaves, axis=1)
    return np.array(leaves)


def _shapes(tree: Tree) -> dict[str, Any]:
    return {path: list(leaf.shape) if isinstance(leaf, np.ndarray) else "a number" for path, leaf in tree_paths(tree)}


class Sequences:
    """Finds what arrives twice and what does not arrive, by the numbers of the samples of each producer.

    Args:
        most: how many producers to remember; the one that has been silent for longest is forgotten first.
    """

    def __init__(self, most: int = 4096) -> None:
        self._most = most
        self._next: OrderedDict[tuple[bytes, int], int] = OrderedDict()

    def arrived(self, frame: Frame, n: int) -> tuple[int, int]:
        """Returns how many of the samples of a message came before, and how many are missing before it.

        Counting begins with the first message of a producer that arrives here.

        Args:
            frame: the message.
            n: how many samples it has.
        """
        if not frame.producer:
            return 0, 0
        key = (frame.producer, frame.epoch)
        expected = self._next.get(key, frame.sequence)
        self._next[key] = max(expected, frame.sequence + n)
        self._next.move_to_end(key)
        if len(self._next) > self._most:
            self._next.popitem(last=False)
        return min(n, max(0, expected - frame.sequence)), max(0, frame.sequence - expected)
