"""Batches as samplers return them, with episodes in which every number shows where it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
import torch

from headrace.buffers.samples import Final, Samples, SlotSpec, build_slot
from headrace.buffers.tree import tree_leaves
from headrace.replays.base import Transitions
from headrace.types import BatchSpec

TERMINATED, TRUNCATED, BOTH = (True, False), (False, True), (True, True)


@dataclass(frozen=True)
class World:
    """Episode e of column c has a length, an end, and in each step k a reward, an action and an observation.

    mode: "mid_batch", "wait" (a column that ended waits for the next batch) or "next_step" (a row of padding after each
    end); first_step: the step of the first episodes when sampling begins; n_frames: 0, or the observation is a stack of
    so many frames, padded by "reset", "zero" or "custom".
    """

    seed: int = 0
    mode: str = "mid_batch"
    longest: int = 7
    first_step: int = 0
    n_frames: int = 0
    padding: str = "reset"

    def draw(self, *address: int) -> int:
        return crc32(repr((self.seed, *address)).encode())

    def length(self, c: int, e: int) -> int:
        return 1 + self.draw(c, e, 0) % self.longest + (self.first_step if e == 0 else 0)

    def end(self, c: int, e: int) -> tuple[bool, bool]:
        return (TERMINATED, TRUNCATED, BOTH)[self.draw(c, e, 1) % 3]

    def reward(self, c: int, e: int, k: int) -> float:
        return self.draw(c, e, k, 2) % 1000 / 8

    def action(self, c: int, e: int, k: int) -> int:
        return 1 + self.draw(c, e, k, 3) % 9

    def frame(self, c: int, e: int, k: int) -> np.ndarray:
        """Returns a frame, uint8 `[2, 4]`: the address (c, e, k) and noise."""
        noise = self.draw(c, e, k, 4)
        return np.array([c, e & 255, e >> 8, k, *noise.to_bytes(4, "little")], np.uint8).reshape(2, 4)

    def observation(self, c: int, e: int, k: int) -> np.ndarray:
        if not self.n_frames:
            return np.array([c, e, k], np.float32)
        steps = range(k - self.n_frames + 1, k + 1)
        nine = np.full((2, 4), 9, np.uint8)
        before = {"reset": self.frame(c, e, 0), "zero": np.zeros_like(nine), "custom": nine}
        return np.stack([self.frame(c, e, step) if step >= 0 else before[self.padding] for step in steps])

    def place(self, observation: Any) -> tuple[int, int, int]:
        """Returns the address (c, e, k) of an observation."""
        if not self.n_frames:
            return tuple(int(value) for value in observation)  # type: ignore[return-value]
        c, e, high, k = (int(value) for value in observation[-1].reshape(-1)[:4])
        return c, e + 256 * high, k

    @property
    def example(self) -> np.ndarray:
        return np.zeros_like(self.observation(0, 0, 0))


ACTION = np.zeros((), np.int64)


class Sampler:
    """Returns batches of a world, all in the same memory.

    rows: for each row and column the step (c, e, k) that was recorded there, or None for padding.
    """

    def __init__(self, world: World, batch: BatchSpec) -> None:
        self.world, self.batch = world, batch
        spec = SlotSpec(batch, (batch.B,), world.example, ACTION)
        self._slot = build_slot(spec, np.zeros)
        self._samples = Samples.of(self._slot)
        self._episode = [0] * batch.B
        self._step = [world.first_step] * batch.B
        self._fresh = [True] * batch.B
        self._padding = [False] * batch.B
        self.rows: list[list[tuple[int, int, int] | None]] = []

    def next(self) -> Samples:
        slot, world, T = self._slot, self.world, self.batch.T
        for leaf in tree_leaves(slot):  # whatever is not written is wrong
            leaf[...] = 77 if leaf.dtype != np.bool_ else True
        finals: list[tuple[int, int, np.ndarray, int, float]] = []
        for c in range(self.batch.B):
            if world.mode == "wait":
                self._padding[c] = False
            for t in range(T):
                if c == 0:
                    self.rows.append([])
                self._row(t, c, finals)
        finals.sort(key=lambda entry: entry[:2])
        return self._samples.with_final(self._final(finals))

    def _row(self, t: int, c: int, finals: list[Any]) -> None:
        slot, world = self._slot, self.world
        if self._padding[c]:
            slot.valid[t, c] = slot.is_first[t, c] = slot.terminated[t, c] = slot.truncated[t, c] = False
            self._padding[c] = world.mode == "wait"
            self.rows[len(self.rows) - self.batch.T + t if c else -1].append(None)
            return
        e, k = self._episode[c], self._step[c]
        self.rows[len(self.rows) - self.batch.T + t if c else -1].append((c, e, k))
        slot.observation[t, c] = world.observation(c, e, k)
        slot.action[t, c], slot.reward[t, c] = world.action(c, e, k), world.reward(c, e, k)
        slot.is_first[t, c], slot.valid[t, c] = self._fresh[c], True
        ended = k + 1 == world.length(c, e)
        slot.terminated[t, c], slot.truncated[t, c] = world.end(c, e) if ended else (False, False)
        self._step[c], self._fresh[c] = k + 1, ended
        if ended:
            finals.append((t, c, world.observation(c, e, k + 1), world.action(c, e, k), world.reward(c, e, k)))
            self._episode[c], self._step[c] = e + 1, 0
            self._padding[c] = world.mode != "mid_batch"

    def _final(self, finals: list[Any]) -> Final:
        if not finals:
            nobody = torch.zeros(0, dtype=torch.int64)
            return Final(nobody, nobody, torch.zeros(0, 1), nobody, torch.zeros(0), None)
        time, column, observation, action, reward = zip(*finals, strict=True)
        return Final(
            torch.tensor(time),
            torch.tensor(column),
            torch.from_numpy(np.stack(observation)),
            torch.tensor(action),
            torch.tensor(reward),
            None,
        )


def check(world: World, transitions: Transitions, n_step: int, discount: float) -> list[tuple[int, int, int]]:
    """Compares every number of transitions with the world; returns the steps at which they start."""
    places = []
    for i in range(len(transitions.return_)):
        c, e, k = world.place(transitions.inputs.observation[i].numpy())
        places.append((c, e, k))
        length, (terminated, _) = world.length(c, e), world.end(c, e)
        m = min(n_step, length - k)
        assert m > 0
        first = bool(transitions.inputs.is_first[i])
        assert first == (k == (world.first_step if e == 0 else 0))
        assert np.array_equal(transitions.inputs.observation[i], world.observation(c, e, k))
        assert transitions.inputs.prev_action[i] == (0 if first else world.action(c, e, k - 1))
        assert transitions.inputs.prev_reward[i] == (0 if first else world.reward(c, e, k - 1))
        assert transitions.action[i] == world.action(c, e, k)
        rewards = [discount**j * world.reward(c, e, k + j) for j in range(m)]
        assert np.isclose(transitions.return_[i], sum(rewards), rtol=1e-6)
        over = k + m == length and terminated
        assert np.isclose(transitions.discount[i], 0 if over else discount**m, rtol=1e-6)
        then = k + m - 1 if over else k + m  # nothing is after a terminated step, but what is there must be harmless
        assert np.array_equal(transitions.next_inputs.observation[i], world.observation(c, e, then))
        assert transitions.next_inputs.prev_action[i] == world.action(c, e, k + m - 1)
        assert transitions.next_inputs.prev_reward[i] == world.reward(c, e, k + m - 1)
        assert not transitions.next_inputs.is_first[i]
    return places


def startable(world: World, rows: list[list[Any]], oldest: int, n_step: int) -> set[tuple[int, int, int]]:
    """Returns the steps of `rows`, from `oldest` on, at which transitions can start."""
    there = {step: t for t, row in enumerate(rows) for step in row if step is not None and t >= oldest}
    found = set()
    for c, e, k in there:
        start = world.first_step if e == 0 else 0
        length = world.length(c, e)
        m = min(n_step, length - k)
        ahead = [(c, e, k + j) for j in range(m)] + ([] if k + m == length else [(c, e, k + m)])
        behind = [(c, e, k - 1)] if k > start else []
        if world.n_frames:
            # What the frames before the first row were is not known, unless it began there.
            oldest_frame = k - world.n_frames + 1
            if oldest_frame < start > 0:
                continue
            behind += [(c, e, j) for j in range(max(oldest_frame, start), k)]
        if all(step in there for step in ahead + behind):
            found.add((c, e, k))
    return found
