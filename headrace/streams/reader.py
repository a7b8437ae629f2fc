"""Reads messages of samples: what is the same for all messages of one schema is checked for the first of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from typing import Any

import numpy as np

from headrace.errors import FrameRejected
from headrace.streams.codec import Frame, Limits, Received, like, received
from headrace.streams.packing import n_samples, unpacked
from headrace.types import Tree

__all__ = ["SampleReader", "copied"]

_REMEMBERED = 256  # schemas
_LONGEST = 4096  # bytes of a schema that is remembered: hostile ones must not fill the memory


class SampleReader:
    """Returns the samples of messages.

    Args:
        name: the stream; messages of other streams are rejected.
        example: a sample, for its keys, dtypes and dataclasses; None: samples of any kind, dataclasses as dicts.
        limits: what a message may contain.
    """

    def __init__(self, name: str, example: Tree, limits: Limits) -> None:
        self._name = name
        self._example = example
        self._limits = limits
        self._plain = example is None or not _has_dataclasses(example)
        self._checked: dict[bytes, int] = {}  # of a schema: how many samples its messages have
        self._alike: set[bytes] = set()  # the schemas that match the example

    def opened(self, parts: Sequence[Any]) -> tuple[Received, int]:
        """Returns a message, and how many samples it has; raises FrameRejected if it is no message of this stream."""
        message = received(parts, self._limits)
        if message.name != self._name:
            raise FrameRejected(f"a message is of the stream {message.name!r}, expected {self._name!r}")
        n = self._checked.get(message.schema)
        if n is None:
            n = n_samples(message.tree())
            if len(message.schema) <= _LONGEST:
                if len(self._checked) >= _REMEMBERED:
                    self._checked.clear()
                    self._alike.clear()
                self._checked[message.schema] = n
        return message, n

    def samples(self, message: Received, first: int, stop: int, *, copy: bool = False) -> list[Frame]:
        """Returns the samples with these numbers of a message that was opened.

        Args:
            message: the message.
            first: number of the first sample.
            stop: number after the last.
            copy: whether the arrays have memory of their own; else they are views of the message.

        Raises:
            FrameRejected: if they do not match the example.
        """
        name, version, producer, epoch, sequence, schema, *_ = message
        take: Callable[[Any], Any] | None = None
        if copy and stop == 1:  # of a message with one sample, or the first of several
            take = copied
        elif copy:
            take = _rows(first, stop)
            first, stop, sequence = 0, stop - first, sequence + first
        tree = message.tree(take)
        if not self._plain or schema not in self._alike:
            tree = self._like(tree)
            if schema in self._checked:
                self._alike.add(schema)
        if len(tree) == 1:
            return [Frame(tree[0], name, version, producer, epoch, sequence)] if first < stop else []
        samples, versions = tree
        return unpacked(samples, versions, Frame(None, name, version, producer, epoch, sequence), first, stop)

    def _like(self, tree: Tree) -> Tree:
        """Returns a tree of samples with the dataclasses of the example; raises FrameRejected if it does not match."""
        if self._example is None:
            return tree
        samples, *versions = tree
        return (like(self._example, samples, axes=len(versions)), *versions)


def copied(leaf: Any) -> Any:
    """Returns a leaf whose memory is its own."""
    return leaf.copy() if isinstance(leaf, np.ndarray) else leaf


def _rows(first: int, stop: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda leaf: leaf[first:stop].copy()


def _has_dataclasses(tree: Tree) -> bool:
    if isinstance(tree, dict):
        return any(map(_has_dataclasses, tree.values()))
    return any(map(_has_dataclasses, tree)) if isinstance(tree, tuple) else is_dataclass(tree)
