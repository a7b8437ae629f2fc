"""Stores each frame of stacked observations once, and rebuilds the stacks exactly.

A stack slides: its older frames are the newer frames of the row before. At the start of an episode there is no such
row, and `gymnasium.wrappers.FrameStackObservation` repeats the first frame or uses zeros. Which of the two it did is
recognized from the appended observations. Any other padding or stacking is refused.
"""

from __future__ import annotations

import numpy as np

from headrace.replays.ring import FOLLOWS, PADDED, ZEROS, ReplayRing

__all__ = ["check_joint", "check_slides", "padding", "stack_positions", "stacks"]

_ADVICE = "use frames=0, which stores observations as they come"


def stack_positions(flags: np.ndarray, index: np.ndarray, n_frames: int, B: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns where the frames of the stacks at `index` are stored.

    Args:
        flags: uint8 `[n_rows · B]`.
        index: int64 `[N]`, row · B + column.
        n_frames: number of stacked frames.
        B: number of columns.

    Returns:
        The index of each frame, int64 `[N, n_frames]`, newest last, and a mask, bool `[N, n_frames]`, of the frames
        that are zero instead.
    """
    frames = np.empty((len(index), n_frames), np.int64)
    blank = np.zeros((len(index), n_frames), np.bool_)
    frames[:, -1] = index
    for older in range(n_frames - 2, -1, -1):
        known = flags.take(index % len(flags))
        follows = (known & FOLLOWS) != 0
        blank[:, older] = (known & ZEROS) != 0  # a row with zeros before it follows no other, so the index stays there
        index = index - B * follows
        frames[:, older] = index
    return frames, blank


def stacks(frames: np.ndarray, positions: np.ndarray, blank: np.ndarray) -> np.ndarray:
    """Returns the stacks `[N, n_frames, ...]` of frames `[size, ...]`; positions and blank are `[N, n_frames]`."""
    found = np.take(frames, positions, axis=0)
    if blank.any():
        found[blank] = 0
    return found


def padding(observation: np.ndarray, is_first: np.ndarray, ended: np.ndarray) -> np.ndarray:
    """Returns which padding the stacks at the first rows of episodes have: flags `[T, B]`.

    Args:
        observation: `[T, B, n_frames, ...]`.
        is_first: bool `[T, B]`.
        ended: bool `[T, B]`, whether the row before is padding or the end of an episode, so that the episode really
            begins here. Elsewhere the stack may hold any frames.

    Returns:
        uint8 `[T, B]`: PADDED, ZEROS or 0.

    Raises:
        ValueError: for any other padding.
    """
    flags = np.zeros(is_first.shape, np.uint8)
    time, column = is_first.nonzero()
    if not len(time):
        return flags
    stack = observation[time, column].reshape(len(time), observation.shape[2], -1)
    older, newest = stack[:, :-1], stack[:, -1:]
    repeated, zero = (older == newest).all(axis=(1, 2)), ~older.any(axis=(1, 2))
    if not (repeated | zero | ~ended[time, column]).all():
        raise ValueError(
            "the first observation of an episode stacks other frames than its first one repeated, or zeros: either "
            "the padding is of another kind, or a wrapper outside of the frame stack ends episodes of its own (put it "
            f"inside); {_ADVICE}"
        )
    flags[time, column] = np.where(repeated, PADDED, np.where(zero, ZEROS, 0))
    return flags


def check_slides(observation: np.ndarray, follows: np.ndarray) -> None:
    """Raises ValueError if the older frames of a row are not the newer frames of the row before.

    Args:
        observation: `[T, B, n_frames, ...]`.
        follows: bool `[T, B]`, whether the row continues the episode of the row before.
    """
    for t in range(1, len(observation)):
        older, newer = _words(observation[t, :, :-1]), _words(observation[t - 1, :, 1:])
        different = older != newer
        if different.any() and different[follows[t]].any():
            raise ValueError(f"row {t} of the batch does not stack the frames of the row before it; {_ADVICE}")


def check_joint(ring: ReplayRing, first: int, observation: np.ndarray, follows: np.ndarray) -> None:
    """Raises ValueError if the first row of a batch does not continue the stacks in the last row of the ring.

    Args:
        ring: the ring.
        first: number of the batch's first row.
        observation: that row, `[B, n_frames, ...]`.
        follows: bool `[B]`, whether the row continues the episode of the row before.
    """
    B, n_frames = observation.shape[:2]
    flags = ring.flags.reshape(-1)
    index, blank = stack_positions(flags, (first - 1) * B + follows.nonzero()[0], n_frames, B)
    position = index % len(flags)
    expected = stacks(ring.observation.reshape(-1, *observation.shape[2:]), position, blank)[:, 1:]
    # The frames before a row that neither follows another row nor begins an episode are not known.
    clear = (flags.take(position) & (FOLLOWS | PADDED | ZEROS)) != 0
    clear = np.logical_and.accumulate(clear[:, ::-1], axis=1)[:, ::-1]
    known = index[:, 1:] >= ring.oldest[0] * B
    known[:, :-1] &= clear[:, 2:]
    different = (expected != observation[follows, :-1]).any(axis=tuple(range(2, expected.ndim)))
    if (different & known).any():
        raise ValueError(
            "the first row of the batch does not stack the frames of the last row before it: a batch is missing "
            f"between the two (ReplayWriter.cut says so), or frames are not stacked, newest last; {_ADVICE}"
        )


def _words(columns: np.ndarray) -> np.ndarray:
    """Views bytes `[B, ...]` as the widest words that fit, `[B, m]`: comparing them takes an eighth of the time."""
    flat = columns.reshape(len(columns), -1)
    return flat if flat.shape[1] % 8 else flat.view(np.uint64)
