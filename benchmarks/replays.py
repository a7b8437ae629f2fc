"""Replay buffers against the least that the same bytes take: sampling, appending, memory.

    python benchmarks/replays.py

Everything compared is timed in turns within one run, the median of the turns is taken, and what counts are the ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch

from headrace.buffers.samples import Final, Samples, SlotSpec, build_slot
from headrace.buffers.shared import measure
from headrace.replays import (
    PrioritizedReplay,
    PrioritizedSequenceReplay,
    ReplaySpec,
    SequenceShape,
    build_ring,
    make_replay,
    make_sequence_replay,
    replay_spec,
)
from headrace.types import BatchSpec

ACTION = np.zeros((), np.int64)
STACK = np.zeros((4, 84, 84), np.uint8)


def in_turns(works: Mapping[str, Callable[[], object]], turns: int, calls: int = 1) -> dict[str, float]:
    """Microseconds a call of each, the median over turns."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(turns + 1):
        for name, work in works.items():
            begin = time.perf_counter()
            for _ in range(calls):
                work()
            if turn:
                taken[name].append((time.perf_counter() - begin) / calls * 1e6)
    return {name: statistics.median(times) for name, times in taken.items()}


def batch_of(batch: BatchSpec, observation: np.ndarray) -> Samples:
    """A batch in the middle of episodes, with observations that slide as stacked frames do."""
    slot = build_slot(SlotSpec(batch, (batch.B,), observation, ACTION), np.zeros)
    slot.valid[:] = True
    slot.is_first[0] = True
    slot.reward[:] = 1
    if observation.ndim == 3:
        frames = np.random.default_rng(0).integers(0, 256, (batch.T, batch.B, *observation.shape[1:]), np.uint8)
        for t in range(batch.T):
            for k in range(len(observation)):
                slot.observation[t, :, k] = frames[max(0, t - len(observation) + 1 + k)]
    nobody = torch.zeros(0, dtype=torch.int64)
    final = Final(nobody, nobody, torch.from_numpy(slot.observation[0, :0]), nobody, torch.zeros(0), None)
    return Samples.of(slot).with_final(final)


def sampling(size: int, n: int) -> None:
    """Prioritized sampling of `n` from `size` entries: the tree's part and the gather's."""
    batch, observation = BatchSpec(64, 64), np.zeros(4, np.float32)
    writer, replay = make_replay(batch, observation, ACTION, size, prioritized=True)
    assert isinstance(replay, PrioritizedReplay)
    samples = batch_of(batch, observation)
    while replay.n_appended < size:
        writer.append(samples)
    indices = replay.sample(n).indices
    replay.update_priorities(indices, torch.rand(n))
    weights = replay._weights(replay._priorities(indices))
    rows, flat = torch.from_numpy(np.sort(indices) % replay.spec.size), torch.zeros(replay.spec.size, 4)
    times = in_turns(
        {
            "tree: draw": lambda: replay._draw(n),
            "tree: weights": lambda: replay._weights(replay._priorities(indices)),
            "gather": lambda: replay._gather(indices, weights),
            "sample, all of it": lambda: replay.sample(n),
            "update_priorities": lambda: replay.update_priorities(indices, torch.ones(n)),
            "two bare index_select of observations": lambda: (
                torch.index_select(flat, 0, rows),
                torch.index_select(flat, 0, rows),
            ),
        },
        turns=7,
        calls=200,
    )
    print(f"prioritized, {n} of {len(replay):,} transitions, observations of 16 bytes")
    for name, microseconds in times.items():
        print(f"  {name:40} {microseconds:8.1f} µs")


def sequences(observation: np.ndarray, n_sequences: int, n: int = 32) -> None:
    """Prioritized sampling of `n` sequences of 40 + 80 + 5 steps, and a bare gather of the same rows."""
    batch, shape, hidden = BatchSpec(40, 50, 40), SequenceShape(40, 80, 5), np.zeros(64, np.float32)
    size = n_sequences * 40
    writer, replay = make_sequence_replay(
        batch, observation, ACTION, (hidden, hidden), size, shape, prioritized=True, n_finals=batch.size
    )
    assert isinstance(replay, PrioritizedSequenceReplay)
    samples = batch_of(batch, observation)
    samples.env.terminated[-1] = True  # the next batch begins with new episodes
    states = torch.zeros(1, batch.B, 64)
    samples.agent.state = (states, states)
    while replay.n_appended < size:
        writer.append(samples)
    replay.update_priorities(replay.sample(n).indices, torch.rand(n))
    indices = replay.sample(n).indices
    weights = np.ones(n, np.float32)
    rows = indices // batch.B * 40 + np.arange(-1, shape.length)[:, None]
    places = rows % writer.spec.n_rows * batch.B + indices % batch.B
    flat = [leaf.reshape(-1, *leaf.shape[2:]) for leaf in (writer.ring.observation, writer.ring.action)]
    small = [leaf.reshape(-1) for leaf in (writer.ring.reward, writer.ring.flags)]
    kept = [leaf.reshape(-1, 64) for leaf in writer.ring.state]
    at = indices % len(kept[0])

    def bare() -> object:
        """Every array that a sequence is made of, copied once, with indices that are ready."""
        return (
            [flat[0].take(places[1:], axis=0), flat[1].take(places[:-1]), flat[1].take(places[41:121])],
            [leaf.take(places) for leaf in small],
            [leaf.take(at, axis=0) for leaf in kept],
        )

    times = in_turns(
        {
            "bare gather": bare,
            "gather": lambda: replay._gather(indices, weights),
            "sample, all of it": lambda: replay.sample(n),
        },
        turns=11,
        calls=10,
    )
    kind = f"{observation.dtype} {list(observation.shape)}"
    print(f"prioritized, {n} sequences of 40 + 80 + 5 from {len(replay):,}, observations of {kind}")
    for name, microseconds in times.items():
        print(f"  {name:40} {microseconds:8.1f} µs, {microseconds / times['bare gather']:.2f} of the bare gather")


def appending(frames: int) -> None:
    """A `[64, 64]` batch of Atari observations, against a bare copy of the bytes that are stored and of the batch."""
    batch = BatchSpec(64, 64)
    writer, replay = make_replay(batch, STACK, ACTION, 4 * batch.size, frames=frames)
    samples = batch_of(batch, STACK)
    source = samples.env.observation.numpy()
    rings = np.zeros((4, *source.shape), np.uint8)
    stored = np.ascontiguousarray(source[:, :, -1]) if frames else source
    rings_stored = np.zeros((4, *stored.shape), np.uint8)
    turn = iter(range(10**9))

    def bare(to: np.ndarray, what: np.ndarray) -> None:
        np.copyto(to[next(turn) % 4], what)

    times = in_turns(
        {
            "append": lambda: writer.append(samples),
            "copy of what is stored": lambda: bare(rings_stored, stored),
            "copy of the batch": lambda: bare(rings, source),
        },
        turns=12,
    )
    print(f"append [64, 64] of [4, 84, 84], frames={frames}: {times['append'] / 1e3:.1f} ms")
    for name in ("copy of what is stored", "copy of the batch"):
        print(f"  of a bare {name:28} {times['append'] / times[name]:.2f} ({times[name] / 1e3:.1f} ms)")
    times = in_turns({"sample": lambda: replay.sample(256)}, turns=7)
    print(f"  sampling 256 of them {times['sample'] / 1e3:16.2f} ms")


def needed(spec: ReplaySpec) -> int:
    """Bytes of a replay."""
    return measure(lambda allocate: build_ring(spec, allocate))


def memory() -> None:
    """Of a million Atari steps."""
    for frames in (0, 4):
        spec = replay_spec(BatchSpec(64, 64), STACK, ACTION, 1_000_000, frames=frames)
        print(f"1 M steps of [4, 84, 84], frames={frames}: {needed(spec) / 1e9:.2f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=1_000_000)
    parser.add_argument("--n", type=int, default=256)
    args = parser.parse_args()
    torch.set_num_threads(1)
    sampling(int(args.size), args.n)
    sequences(np.zeros(4, np.float32), 100_000)
    sequences(np.zeros((84, 84), np.uint8), 1_000)
    for frames in (0, 4):
        appending(frames)
    memory()


if __name__ == "__main__":
    main()
