"""Appends batches to a ring. Importing this module loads no torch, because the writer may be a process without it."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from headrace.buffers.samples import Samples
from headrace.buffers.tree import tree_copy_into, tree_leaves, tree_map, tree_paths, tree_rows
from headrace.memory import fence
from headrace.replays.frames import check_joint, check_slides, padding
from headrace.replays.ring import (
    FIRST,
    FOLLOWS,
    TERMINATED,
    TRUNCATED,
    VALID,
    ReplayRing,
    ReplaySpec,
    row_slices,
    with_final,
)
from headrace.types import Tree

__all__ = ["ReplayWriter"]


class ReplayWriter:
    """The only writer of a ring. If the writer process died, a new writer may continue."""

    def __init__(self, spec: ReplaySpec, ring: ReplayRing) -> None:
        self.spec = spec
        self.ring = ring
        self._lock = threading.Lock()

    def cut(self) -> None:
        """Marks that the next batch does not continue the last one: batches between the two were lost."""
        self.ring.cut[0] = self.ring.cursor[0]

    def append(self, samples: Samples) -> None:
        """Copies a batch `[T, B]` into the ring; its memory may be reused afterwards.

        Append all batches of one sampler, in order: episodes continue from one batch to the next.

        Args:
            samples: batch of the spec's shapes and dtypes.

        Raises:
            ValueError: if the batch has other shapes than the spec, lacks the final observation of an episode,
                has more ends of episodes to keep them for than `n_finals`, or stacks frames in another way than
                `gymnasium.wrappers.FrameStackObservation`. The ring is then unchanged.
        """
        spec, ring = self.spec, self.ring
        first: int = ring.cursor[0]
        observation, action, state = self._checked(samples)
        flags = self._flags(samples, first, observation)
        time, column, entries = _finals(samples, flags, observation, spec)
        n_steps, n_entries = (ring.totals[(first - 1) % spec.n_rows] if first else np.zeros(2, np.int64)).tolist()
        if len(time) > spec.n_finals:
            raise ValueError(
                f"{len(time)} episodes of one batch {_ended(spec)} and there is room for n_finals={spec.n_finals}; "
                "give the replay more"
            )
        numbers = n_entries + np.arange(len(time))
        slots = numbers % spec.n_finals
        given_up = ring.final_row[slots[numbers >= spec.n_finals]]
        given_up = given_up[given_up < first]  # the others belong to an append that was never finished
        finals = np.bincount(time, minlength=spec.batch.T)
        totals = np.stack([n_steps + _counts(flags & VALID), n_entries + finals.cumsum()], axis=1)

        # `oldest` must never move back: a writer that died may have overwritten rows up to its value.
        ring.oldest[0] = max(ring.oldest[0], first + spec.batch.T - spec.n_rows, given_up.max(initial=-1) + 1)
        fence(self._lock)
        reward, errors = _array(samples.env.reward), self._errors(samples)
        stored = observation[:, :, -1] if spec.frames else observation
        for here, there in row_slices(first, spec.batch.T, spec.n_rows):
            tree_copy_into(tree_rows(ring.observation, there), tree_rows(stored, here))
            tree_copy_into(tree_rows(ring.action, there), tree_rows(action, here))
            ring.reward[there] = reward[here]
            ring.flags[there] = flags[here]
            ring.totals[there] = totals[here]
            if ring.error is not None and errors is not None:
                ring.error[there] = errors[here]
        if ring.state is not None:
            every = spec.every
            for here, there in row_slices(first // every, spec.batch.n_states, spec.n_rows // every):
                tree_copy_into(tree_rows(ring.state, there), tree_rows(state, here))
        if len(time):
            ring.final[(first + time) % spec.n_rows, column] = slots
            ring.final_row[slots] = first + time
            for to, value in zip(tree_leaves(ring.final_observation), tree_leaves(entries), strict=True):
                to[slots] = value
        fence(self._lock)
        ring.cursor[0] = first + spec.batch.T

    def _checked(self, samples: Samples) -> tuple[Tree, Tree, Tree]:
        """Returns observation (all of its frames), action and state as arrays; raises ValueError for other shapes."""
        T, B = self.spec.batch.T, self.spec.batch.B
        observation, action = tree_map(_array, samples.env.observation), tree_map(_array, samples.agent.action)
        state = None if self.spec.state is None else tree_map(_array, samples.agent.state)
        for name, n_rows, example, tree in (
            ("env.observation", T, self.spec.observation, observation),
            ("agent.action", T, self.spec.action, action),
            ("agent.state", self.spec.batch.n_states, self.spec.state, state),
        ):
            expected = [(path, (n_rows, B, *leaf.shape), leaf.dtype) for path, leaf in tree_paths(example)]
            found = [(path, leaf.shape, leaf.dtype) for path, leaf in tree_paths(tree)]
            if expected != found:
                raise ValueError(
                    f"samples.{name} is {_described(found) or None} and this replay was made for "
                    f"{_described(expected)}; make it for the sampler's batch_spec and spaces"
                )
        return observation, action, state

    def _errors(self, samples: Samples) -> np.ndarray | None:
        """Returns the errors `[T, B]` that `ReplaySpec.errors` computes; raises ValueError if they do not fit."""
        if self.spec.errors is None:
            return None
        errors, valid = np.asarray(self.spec.errors(samples)), _array(samples.env.valid)
        if errors.shape != valid.shape or np.isinf(errors).any():
            raise ValueError(
                f"ReplaySpec.errors returned {errors.dtype} {list(errors.shape)}, {np.isinf(errors).sum()} of them "
                f"infinite; expected finite numbers {list(valid.shape)}, NaN where an error is not known"
            )
        return np.where(valid, np.abs(errors), np.float32(np.nan))

    def _flags(self, samples: Samples, first: int, observation: Tree) -> np.ndarray:
        """Returns the flags `[T, B]`, see `ReplayRing`."""
        env, ring = samples.env, self.ring
        valid, is_first = _array(env.valid), _array(env.is_first) & _array(env.valid)
        flags = np.where(valid, np.uint8(VALID), np.uint8(0))
        for mask, flag in ((is_first, FIRST), (_array(env.terminated), TERMINATED), (_array(env.truncated), TRUNCATED)):
            flags[mask & valid] |= flag
        before = np.zeros_like(flags)
        before[1:] = flags[:-1]
        joined = first > 0 and ring.cut[0] != first
        if joined:
            before[0] = ring.flags[(first - 1) % self.spec.n_rows]
        goes_on = (before & (VALID | TERMINATED | TRUNCATED)) == VALID
        follows = valid & ~is_first & goes_on
        flags[follows] |= FOLLOWS
        if self.spec.frames:
            check_slides(observation, follows)
            if joined:
                check_joint(ring, first, observation[0], follows[0])
            # The first row of a sampler may be in the middle of an episode and hold frames of its beginning.
            ended = ~goes_on
            ended[0] &= joined
            flags |= padding(observation, is_first, ended)
        return flags


def _finals(
    samples: Samples, flags: np.ndarray, observation: Tree, spec: ReplaySpec
) -> tuple[np.ndarray, np.ndarray, Tree]:
    """Returns (time `[N]`, column `[N]`, stored part `[N, ...]`) of the final observations to keep (`with_final`)."""
    kept = with_final(spec, flags)
    time, column = _array(samples.final.time), _array(samples.final.column)
    chosen = kept[time, column]
    time, column = time[chosen], column[chosen]
    if len(time) != np.count_nonzero(kept):
        raise ValueError(
            f"{np.count_nonzero(kept)} episodes of the batch {_ended(spec)} and samples.final has the last observation "
            f"of {len(time)}; append batches as the sampler gave them"
        )
    if not len(time):
        return time, column, tree_map(lambda leaf: np.empty((0, *leaf.shape), leaf.dtype), spec.stored)
    entries = tree_map(lambda leaf: _array(leaf)[chosen], samples.final.observation)
    if spec.frames:
        if not np.array_equal(entries[:, :-1], observation[time, column, 1:]):
            raise ValueError(
                "a final observation does not stack the frames of the row before it; use frames=0, which stores "
                "observations as they come"
            )
        entries = entries[:, -1]
    return time, column, entries


def _ended(spec: ReplaySpec) -> str:
    """Returns the verb for episodes whose final observations are kept."""
    return "ended" if spec.all_finals else "were truncated"


def _counts(mask: np.ndarray) -> np.ndarray:
    """Returns, for each row, the number of set entries up to and including it."""
    return np.cumsum(np.count_nonzero(mask, axis=1))


def _array(leaf: Any) -> np.ndarray:
    """Returns a tensor on any device, or an array, as an array."""
    array: np.ndarray = leaf if isinstance(leaf, np.ndarray) else leaf.numpy(force=True)
    return array


def _described(leaves: list[tuple[str, tuple[int, ...], np.dtype[Any]]]) -> str:
    return ", ".join(f"{path} {dtype} {list(shape)}".strip() for path, shape, dtype in leaves)
