"""Reads sequences of successive time steps from a ring."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from headrace.buffers.tree import tree_leaves, tree_map, tree_to_torch
from headrace.replays.base import Sequences
from headrace.replays.frames import stack_positions, stacks
from headrace.replays.ring import FIRST, FOLLOWS, TERMINATED, TRUNCATED, VALID, ReplayRing, ReplaySpec
from headrace.replays.window import Starts, continued, stacked
from headrace.types import StepInputs, Tree

__all__ = ["SequenceGather", "SequenceShape", "SequenceStarts"]

_ENDS = TERMINATED | TRUNCATED


@dataclass(frozen=True)
class SequenceShape:
    """The parts of a sequence, in time steps; see `Sequences`.

    Args:
        warmup_T: for the recurrent state alone ("burn-in").
        batch_T: to learn from.
        n_step: rewards of a target.
    """

    warmup_T: int
    batch_T: int
    n_step: int

    def __post_init__(self) -> None:
        for name, least in (("warmup_T", 0), ("batch_T", 1), ("n_step", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)!r}")

    @property
    def length(self) -> int:
        """Time steps of a sequence."""
        return self.warmup_T + self.batch_T + self.n_step


class SequenceStarts:
    """See `Starts`: for sequences, which start at rows with a recurrent state.

    Successive rows of a column belong together unless something is missing between them: a row that continues an
    episode must follow the row before. Of the time steps to learn from, one at least must be no padding.

    Args:
        spec: layout of the ring; its batches must have a `state_interval`.
        shape: lengths of the sequences' parts.
    """

    def __init__(self, spec: ReplaySpec, shape: SequenceShape) -> None:
        if not spec.every:
            raise ValueError(
                "sequences start where recurrent states are recorded, and batch_spec.state_interval is None; give the "
                "sampler a state_interval that divides its batch_T"
            )
        self.every = spec.every
        self.ahead = shape.length - 1
        self.behind = max(1, spec.frames - 1)
        self.what = (
            f"sequences of {shape.warmup_T} + {shape.batch_T} + {shape.n_step} time steps (warmup_T + batch_T + n_step)"
        )
        self._shape = shape
        self._frames = spec.frames

    def __call__(self, flags: np.ndarray) -> np.ndarray:
        """See `Starts`."""
        shape, ready = self._shape, np.zeros(flags.shape, np.bool_)
        n = len(flags) - self.ahead
        if n <= 0:
            return ready
        valid, first, follows = ((flags & flag) != 0 for flag in (VALID, FIRST, FOLLOWS))
        known = ~valid | stacked(flags, self._frames)
        goes_on = valid & ((flags & _ENDS) == 0)
        joined = follows | ((first | ~valid) & ~_before(goes_on))
        opening = known & (first | ~valid | continued(follows, valid))
        broken, learned = _sums(~(joined & known)), _sums(valid)
        after, learn = shape.warmup_T, shape.warmup_T + shape.batch_T
        ready[:n] = (
            opening[:n]
            & (broken[shape.length :] == broken[1 : n + 1])
            & (learned[learn : learn + n] > learned[after : after + n])
        )
        return ready


class SequenceGather:
    """Copies sequences out of a ring and sums their n-step returns, as `Gather` does for transitions.

    Args:
        spec: layout of the ring.
        ring: the memory to read.
        shape: lengths of the sequences' parts.
        discount: γ per step.
    """

    def __init__(self, spec: ReplaySpec, ring: ReplayRing, shape: SequenceShape, discount: float) -> None:
        self.starts: Starts = SequenceStarts(spec, shape)
        self.shape = shape
        self._B, self._size, self._frames, self._every = spec.batch.B, spec.size, spec.frames, spec.every
        self._powers = discount ** np.arange(shape.n_step + 1, dtype=np.float64)
        # Time steps −1, for the previous action and reward, to the last one: distances in the ring, `[1 + length, 1]`.
        self._steps = np.arange(-1, shape.length)[:, None] * spec.batch.B
        self._learned = np.arange(shape.warmup_T, shape.warmup_T + shape.batch_T)[:, None]

        def by_place(leaf: np.ndarray) -> np.ndarray:
            return leaf.reshape(leaf.shape[0] * leaf.shape[1], *leaf.shape[2:])

        self._observation, self._action = tree_map(by_place, ring.observation), tree_map(by_place, ring.action)
        self._reward, self._flags, self._final = (by_place(leaf) for leaf in (ring.reward, ring.flags, ring.final))
        self._final_observation = ring.final_observation
        self._state, self._n_states = tree_map(by_place, ring.state), spec.size // spec.every

    def __call__(self, index: np.ndarray, weights: np.ndarray) -> tuple[Sequences, np.ndarray]:
        """See `Reader`; index: int64 `[N]`, place · B + column."""
        W, T, B = self.shape.warmup_T, self.shape.batch_T, self._B
        start = index + (index // B) * ((self._every - 1) * B)  # row · B + column
        steps = start + self._steps
        places = steps % self._size
        flags = self._flags.take(places)
        return_, discount, last = self._targets(flags[1 + W :], self._reward.take(places[1 + W :]))
        begun = (flags[1:] & FIRST) != 0
        cut = (flags[1:] & _ENDS) == TRUNCATED
        cut[:W] = cut[-1] = False  # nothing bootstraps from the final observations of these
        if cut.any():
            row, source, is_final = _with_finals(cut)
            observation, oldest = self._observations(_along(steps[1:], source))
            self._put_finals(observation, is_final, _along(places[1:], source)[is_final])
            before = _along(places, source + is_final)
            is_first, next_row = _along(begun, source) & ~is_final, _along(row, last) + 1
            learned_row = row[W : W + T]
        else:
            observation, oldest = self._observations(steps[1:])
            before, is_first, next_row = places[:-1], begun, last + 1
            learned_row = np.broadcast_to(self._learned, (T, len(index))).copy()
        prev_action, prev_reward = _taken(self._action, before), self._reward.take(before)
        for leaf in (*tree_leaves(prev_action), prev_reward):
            leaf[is_first] = 0
        sequences = Sequences(
            inputs=tree_to_torch(StepInputs(observation, prev_action, prev_reward, is_first)),
            state=tree_to_torch(_taken(self._state, index % self._n_states)),
            action=tree_to_torch(_taken(self._action, places[1 + W : 1 + W + T])),
            row=torch.from_numpy(learned_row),
            return_=torch.from_numpy(return_),
            next_row=torch.from_numpy(next_row),
            discount=torch.from_numpy(discount),
            valid=torch.from_numpy((flags[1 + W : 1 + W + T] & VALID) != 0),
            weights=torch.from_numpy(weights),
            indices=index,
        )
        return sequences, np.minimum(oldest, steps[0] + B * begun[0])

    def put(self, drawn: Sequences, positions: np.ndarray, others: Sequences, chosen: np.ndarray) -> None:
        """See `Reader`."""
        missing = len(others.inputs.is_first) - len(drawn.inputs.is_first)
        if missing > 0:  # rows with final observations: the sequences of `drawn` have fewer
            drawn.inputs = tree_map(
                lambda leaf: torch.cat([leaf, leaf[-1:].expand(missing, *leaf.shape[1:])]), drawn.inputs
            )
        for to, values in zip(tree_leaves(drawn.inputs), tree_leaves(others.inputs), strict=True):
            to[:, positions] = values[-1, chosen]
            to[: len(values), positions] = values[:, chosen]
        for name in ("action", "row", "return_", "next_row", "discount", "valid"):
            to, values = getattr(drawn, name), getattr(others, name)
            for leaf, value in zip(tree_leaves(to), tree_leaves(values), strict=True):
                leaf[:, positions] = value[:, chosen]
        for leaf, value in zip(tree_leaves(drawn.state), tree_leaves(others.state), strict=True):
            leaf[positions] = value[chosen]
        drawn.indices[positions] = others.indices[chosen]

    def _targets(self, flags: np.ndarray, reward: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns Σ γ^k r_{t+k} (summed in float64), the discount of what follows, the time step of the last reward.

        Args:
            flags: uint8 `[T + n, N]`, from the first learned time step on.
            reward: float32 `[T + n, N]`, likewise.

        Returns:
            Three arrays `[T, N]`; the first two are 0 for padding.
        """
        T, ended = self.shape.batch_T, (flags & _ENDS) != 0
        total, steps, goes_on = reward[:T].astype(np.float64), np.zeros((T, flags.shape[1]), np.int64), np.True_
        for k, power in enumerate(self._powers[1:-1], 1):
            goes_on = goes_on & ~ended[k - 1 : k - 1 + T]
            total += goes_on * (power * reward[k : k + T])
            steps += goes_on
        counted = (flags[:T] & VALID) != 0
        last = steps + np.arange(T)[:, None]
        counted_on = counted & ((_along(flags, last) & TERMINATED) == 0)
        return_ = np.where(counted, total, 0.0).astype(np.float32)
        discount = np.where(counted_on, self._powers.take(steps + 1), 0.0).astype(np.float32)
        return return_, discount, last + self.shape.warmup_T

    def _observations(self, index: np.ndarray) -> tuple[Tree, np.ndarray]:
        """Returns observations `[L, N, ...]` and the oldest row that those of each sequence were built from, `[N]`."""
        if not self._frames:
            return _taken(self._observation, index % self._size), index[0]
        positions, blank = stack_positions(self._flags, index.reshape(-1), self._frames, self._B)
        found = stacks(self._observation, positions % self._size, blank)
        return found.reshape(*index.shape, *found.shape[1:]), positions[: index.shape[1], 0]

    def _put_finals(self, observation: Tree, is_final: np.ndarray, last_place: np.ndarray) -> None:
        """Writes final observations of the episodes that end at `last_place` into the rows `is_final`."""
        finals = _taken(self._final_observation, self._final.take(last_place))
        if self._frames:
            slid = observation[is_final]
            slid[:, :-1] = slid[:, 1:]
            slid[:, -1] = finals
            observation[is_final] = slid
            return
        for to, values in zip(tree_leaves(observation), tree_leaves(finals), strict=True):
            to[is_final] = values


def _with_finals(cut: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns where time steps are if a row is added after each cut, `cut[j]`, for the final observation.

    Args:
        cut: bool `[R, N]`, by time step.

    Returns:
        row: int64 `[R, N]`, row of each time step.
        source: int64 `[L, N]`, time step of each row; added rows have that of the cut, rows after the end the last one.
        is_final: bool `[L, N]`, which rows are added.
    """
    (R, N), upto = cut.shape, cut.cumsum(axis=0)
    step = np.arange(R)[:, None]
    row = step + upto - cut
    source = np.full((R + upto[-1].max(), N), R - 1)
    is_final = np.zeros(source.shape, np.bool_)
    np.put_along_axis(source, row, step, axis=0)
    time, column = cut.nonzero()
    added = row[time, column] + 1
    source[added, column], is_final[added, column] = time, True
    return row, source, is_final


def _along(leaf: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Returns `leaf[step[i, j], j]`, for leaf `[R, N]` and step `[L, N]`."""
    found: np.ndarray = np.take_along_axis(leaf, step, axis=0)
    return found


def _before(mask: np.ndarray) -> np.ndarray:
    """Returns the mask of the row before; False in the first row."""
    shifted = np.zeros_like(mask)
    shifted[1:] = mask[:-1]
    return shifted


def _sums(mask: np.ndarray) -> np.ndarray:
    """Returns, for each row and the one after the last, how often the mask is set before it."""
    sums = np.zeros((len(mask) + 1, *mask.shape[1:]), np.int32)
    mask.cumsum(axis=0, out=sums[1:])
    return sums


def _taken(tree: Tree, place: np.ndarray) -> Tree:
    """Returns `leaf[place]` of every leaf; `take` is faster than indexing."""
    return tree_map(lambda leaf: leaf.take(place, axis=0), tree)
