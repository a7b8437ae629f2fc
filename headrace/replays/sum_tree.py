"""Sum tree: draws positions in proportion to their values, and changes values, in logarithmic time."""

from __future__ import annotations

import numpy as np

__all__ = ["SumTree"]

_SEARCHED = 1024  # nodes of the level that is searched as a whole, which is as fast as searching the levels above it


class SumTree:
    """Non-negative values, float64 `[size]`; each node of the tree holds the sum of its two children.

    See Schaul et al., "Prioritized experience replay", 2016, appendix B.2.1. Values are float64, and a draw that
    rounding moves to a position of value 0 is corrected; in float32 this would not even be rare.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._n_levels = max(size - 1, 1).bit_length()
        self._n_leaves = 1 << self._n_levels
        # Node 1 is the root, the children of node i are 2i and 2i + 1, and the leaves are the last nodes.
        self._sums = np.zeros(2 * self._n_leaves)

    @property
    def total(self) -> float:
        """Sum of all values."""
        return float(self._sums[1])

    @property
    def values(self) -> np.ndarray:
        """All values, `[size]`: a view that must only be read."""
        return self._sums[self._n_leaves : self._n_leaves + self.size]

    def set(self, places: np.ndarray, values: np.ndarray) -> None:
        """Sets values `[n]` at positions `[n]`; if a position occurs twice, its last value counts."""
        node = places + self._n_leaves
        self._sums[node] = values
        for _ in range(self._n_levels):
            node = node >> 1
            self._sums[node] = self._sums.take(2 * node) + self._sums.take(2 * node + 1)

    def set_range(self, start: int, values: np.ndarray) -> None:
        """Sets the values of positions start, start + 1, …"""
        if not len(values):
            return
        first, last = start + self._n_leaves, start + self._n_leaves + len(values) - 1
        self._sums[first : last + 1] = values
        for _ in range(self._n_levels):
            first, last = first >> 1, last >> 1
            below = self._sums[2 * first : 2 * last + 2]
            np.add(below[::2], below[1::2], out=self._sums[first : last + 1])

    def find(self, uniforms: np.ndarray) -> np.ndarray:
        """Returns the positions `[n]` at fractions `[n]`, in [0, 1), of the total; the total must not be 0."""
        width = min(self._n_leaves, _SEARCHED)
        upto = np.zeros(width + 1)
        self._sums[width : 2 * width].cumsum(out=upto[1:])
        target = np.minimum(uniforms * upto[-1], np.nextafter(upto[-1], 0.0))
        node = upto[1:].searchsorted(target, side="right")
        target -= upto.take(node)
        node += width
        while width < self._n_leaves:
            node <<= 1
            left = self._sums.take(node)
            right = target >= left
            node += right
            target -= left * right
            width <<= 1
        place = node - self._n_leaves
        for drawn in (self._sums.take(node) == 0).nonzero()[0]:
            # Rounding moved the draw past the last value of a subtree.
            place[drawn] = self.values[: place[drawn]].nonzero()[0][-1]
        return np.asarray(place)
