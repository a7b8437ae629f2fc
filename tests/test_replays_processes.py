"""A replay that another process fills and that is killed at any moment: what is read is always intact."""

import itertools
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import pytest
import torch

from headrace.replays import PrioritizedReplay, Replay, ReplayRing, ReplayWriter, Transitions, UniformReplay
from tests.leftovers import DEADLINE
from tests.replay_processes import (
    LENGTH,
    SPEC,
    Descriptor,
    append_and_die,
    append_for_ever,
    append_until_line,
    attached,
    batch_from,
)

B = SPEC.batch.B
N_STEP = 3


@pytest.fixture
def ring() -> Iterator[tuple[int, ReplayRing]]:
    """The descriptor of a ring in shared memory, and the ring."""
    arena, ring = attached()
    yield arena.fd, ring
    arena.close_fd()


@contextmanager
def process(method: str, target: Any, *args: Any) -> Iterator[BaseProcess]:
    child = get_context(method).Process(target=target, args=args)  # type: ignore[attr-defined]
    child.start()
    try:
        yield child
    finally:
        child.kill()
        child.join(20)


def whole(replay: Replay[Transitions], n: int) -> np.ndarray:
    """Samples and checks every number; returns the rows."""
    transitions = replay.sample(n)
    index = torch.from_numpy(transitions.indices)
    row = index // B
    observation = transitions.inputs.observation
    assert torch.equal(observation, index[:, None].expand_as(observation))
    assert torch.equal(transitions.action, index)
    steps = torch.minimum(torch.tensor(N_STEP), LENGTH - row % LENGTH)  # of the transition
    last = index + (steps - 1) * B
    ended = (last // B) % LENGTH == LENGTH - 1
    terminated = ended & (row // LENGTH % 2 == 1)
    expected = torch.where(terminated, last, torch.where(ended, -last, last + B))
    observation = transitions.next_inputs.observation
    assert torch.equal(observation, expected[:, None].expand_as(observation))
    assert torch.equal(transitions.next_inputs.prev_action, last)
    assert torch.equal(transitions.discount, torch.where(terminated, 0.0, 0.5**steps))
    rewards = [(index + k * B) % 1000 * (k < steps) * 0.5**k for k in range(N_STEP)]
    assert torch.allclose(transitions.return_, torch.stack(rewards).sum(0).float())
    first = row % LENGTH == 0
    assert torch.equal(transitions.inputs.is_first, first)
    assert torch.equal(transitions.inputs.prev_action, torch.where(first, 0, index - B))
    return row.numpy()


def replays(ring: ReplayRing) -> list[Replay[Transitions]]:
    settings = {"n_step": N_STEP, "discount": 0.5}
    return [UniformReplay(SPEC, ring, **settings), PrioritizedReplay(SPEC, ring, **settings)]  # type: ignore[arg-type]


def filled(ring: ReplayRing, child: BaseProcess, rows: int) -> None:
    """Waits until so many have been appended."""
    deadline = time.monotonic() + DEADLINE
    while ring.cursor[0] < rows:
        assert time.monotonic() < deadline
        assert child.is_alive(), child.exitcode
        time.sleep(0.001)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_another_process_appends_while_this_one_samples(method: str, ring: tuple[int, ReplayRing]) -> None:
    fd, own = ring
    both = replays(own)
    # A spawned process has no torch to begin with: the writer's side needs none.
    place = Descriptor(fd) if method == "spawn" else fd
    with process(method, append_for_ever, place, method == "spawn", 0.0005) as child:
        filled(own, child, 120)
        seen: set[int] = set()
        deadline = time.monotonic() + DEADLINE
        while len(seen) < 500 or max(seen) - min(seen) < 2000:
            assert child.is_alive(), child.exitcode
            assert time.monotonic() < deadline, len(seen)
            for replay in both:
                rows = whole(replay, 16)
                seen |= set(rows.tolist())
                replay.update_priorities(rows * B, torch.rand(16))
                assert replay.n_appended % SPEC.batch.size == 0


@pytest.mark.parametrize("after", [0, 1, 7, 20])
def test_writer_killed_during_an_append_leaves_earlier_rows(after: int, ring: tuple[int, ReplayRing]) -> None:
    fd, own = ring
    both = replays(own)
    with process("fork", append_and_die, fd, after) as child:
        child.join(DEADLINE)
        assert child.exitcode == -signal.SIGKILL
    T = SPEC.batch.T
    assert own.cursor[0] == after * T
    oldest = max(0, (after + 1) * T - SPEC.n_rows)
    for replay in both:
        if after:
            assert {oldest, oldest + 1} & set(whole(replay, 2000).tolist())
        else:
            assert len(replay) == 0
    ReplayWriter(SPEC, own).append(batch_from(own.cursor[0]))
    for replay in both:
        assert max(whole(replay, 2000)) >= (after + 1) * T - N_STEP - 1


def test_replay_is_intact_after_kills_at_every_tenth_line_of_an_append(ring: tuple[int, ReplayRing]) -> None:
    """Each writer continues after the last kill; what can be sampled is always intact."""
    fd, own = ring
    both = replays(own)
    writer = ReplayWriter(SPEC, own)
    for _ in range(1 + SPEC.n_rows // SPEC.batch.T):  # from here on each append overwrites rows
        writer.append(batch_from(own.cursor[0]))
    in_mid_append = 0
    for line in itertools.count(10, 10):
        before = own.cursor[0]
        with process("fork", append_until_line, fd, line) as child:
            child.join(DEADLINE)
        if own.cursor[0] > before:  # the append has fewer lines
            assert child.exitcode == 0
            break
        assert child.exitcode == -signal.SIGKILL
        in_mid_append += own.oldest[0] > own.cursor[0] - SPEC.n_rows
        for replay in both:
            assert whole(replay, 300).min() >= own.oldest[0]
            assert len(replay) > SPEC.size - 3 * SPEC.batch.size
        writer.append(batch_from(before))
    assert in_mid_append > 3  # kills behind the first of the lines that overwrite something


def test_replay_is_intact_after_kills_at_random_moments(ring: tuple[int, ReplayRing]) -> None:
    """Also within a line, while NumPy copies."""
    fd, own = ring
    both = replays(own)
    moments = random.Random(0)
    ReplayWriter(SPEC, own).append(batch_from(0))
    for _ in range(20):
        before = own.cursor[0]
        with process("fork", append_for_ever, fd, False) as child:
            filled(own, child, before + SPEC.batch.T)
            end = time.monotonic() + moments.random() * 0.01
            while time.monotonic() < end:
                whole(both[moments.randrange(2)], 4)
        for replay in both:
            assert whole(replay, 300).min() >= own.oldest[0]
            assert len(replay) > SPEC.size - 3 * SPEC.batch.size or own.cursor[0] < SPEC.n_rows
