"""DQN runs that are killed repeatedly lose at most one checkpoint interval, and their replay stays intact."""

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headrace.agents.dqn import DqnAgent
from headrace.algos.dqn import DQN, DQNConfig
from headrace.replays import ReplayFile, ReplayRing, UniformReplay, build_ring, replay_spec
from headrace.runners import AsyncRl, Callback, MinibatchRl, Runner, RunnerConfig, load_checkpoint
from headrace.runners.logging.logger import Logger
from headrace.samplers import AsyncAlternatingSampler, AsyncCpuSampler, AsyncSerialSampler, BaseSampler, SerialSampler
from headrace.types import BatchSpec
from tests.leftovers import DEADLINE
from tests.light import Numbered
from tests.test_resume import assert_equal

pytestmark = pytest.mark.programs

BATCH = BatchSpec(8, 4)
N_ITR, INTERVAL = 50, 2  # batches; of a run, and between its checkpoints
REPLAY_SIZE = 800  # half of a run
N_STEP = 3
SPEC = replay_spec(BATCH, np.zeros(2, np.float32), np.zeros((), np.int64), REPLAY_SIZE)
ARRAYS = ["observation", "action", "reward", "flags", "final", "totals", "final_observation", "final_row"]
slow = partial(pytest.param, marks=pytest.mark.slow)
_SEGMENT = re.compile(r"rows-[0-9]+\.bin")


class Notes(Callback):
    """Writes what the replay held at first, and then the progress of the run, to a file, as far as a kill allows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT)
        self._told: dict[str, int] = {}

    def on_batch(self, runner: Runner, itr: int, samples: Any, traj_infos: Any) -> None:
        if not self._told:
            assert isinstance(runner.algo, DQN)
            ring = runner.algo._ring
            cursor: int = ring.cursor[0]  # first, and oldest last: a sampler process may append meanwhile
            arrays = [vars(ring)[name].copy() for name in ARRAYS]
            np.savez(self._path.with_suffix(".npz"), *arrays, np.array([ring.oldest[0], cursor]))
            self._told = {"begun": itr, "held": runner.algo._replay.n_appended}

    def on_optimize(self, runner: Runner, itr: int, opt_info: Any) -> None:
        self._note(done=itr + 1)
        time.sleep(0.005)  # so that there is time to be killed in

    def on_checkpoint(self, runner: Runner, path: Path) -> None:
        self._note(saved=runner.counters.itr)

    def _note(self, **more: int) -> None:
        self._told |= more
        os.pwrite(self._file, json.dumps(self._told).ljust(200).encode(), 0)


def runner(cls: type[BaseSampler], **options: Any) -> Runner:
    settings = DQNConfig(
        batch_size=16,
        replay_ratio=2,
        min_steps_learn=64,
        replay_size=REPLAY_SIZE,
        n_step=N_STEP,
        prioritized_replay=True,
    )
    sampler = cls(Numbered, batch_T=BATCH.T, batch_B=BATCH.B, n_workers=2, deterministic=True, start_method="fork")
    config = RunnerConfig(n_steps=N_ITR * BATCH.size, seed=0, log_interval_steps=INTERVAL * BATCH.size)
    Runners = MinibatchRl if cls is SerialSampler else AsyncRl
    return Runners(DQN(settings), DqnAgent(eps_itr_max=20), sampler, config, logger=Logger(), **options)


def train(cls: type[BaseSampler], folder: Path, notes: Path, dies_at: int, seed: int) -> None:
    """Trains in a separate process. dies_at: number of the write to the replay in which it is killed, 0 for none."""
    torch.set_num_threads(1)
    if dies_at:
        os.fsync = dies_writing(folder / "replay", dies_at, random.Random(seed))  # type: ignore[assignment]
    place: dict[str, Any] = {"resume_from": folder} if (folder / "checkpoint.pt").exists() else {"log_dir": folder}
    runner(cls, callbacks=[Notes(notes)], **place).train()


def dies_writing(folder: Path, at: int, rng: random.Random) -> Callable[[int], None]:
    """Replaces `os.fsync` by a function that keeps only a part of what was appended to a segment, and kills its
    process.
    """
    sizes = {path.name: path.stat().st_size for path in folder.glob("rows-*.bin")}
    fsync, n_saves = os.fsync, 0

    def dying(descriptor: int) -> None:
        nonlocal n_saves
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
        size = os.fstat(descriptor).st_size
        if _SEGMENT.fullmatch(name):
            n_saves += 1
            if n_saves == at:
                os.ftruncate(descriptor, rng.randint(min(sizes.get(name, 0), size), size))
                os.kill(os.getpid(), signal.SIGKILL)
            sizes[name] = size
        fsync(descriptor)

    return dying


def told(path: Path) -> dict[str, int]:
    found: dict[str, int] = json.loads(path.read_text())
    return found


def contents(folder: Path, copy: Path, state: dict[str, Any]) -> ReplayRing:
    """Returns the replay that a resumed run finds; loads a copy, because loading cuts off torn tails."""
    shutil.copytree(folder / "replay", copy)
    ring = build_ring(SPEC, np.zeros)
    ReplayFile(copy, SPEC).load(ring, until=state["algo"]["n_rows"])
    return ring


def held(path: Path) -> ReplayRing:
    """Returns what the replay of a process held at first, from its `Notes`."""
    with np.load(path.with_suffix(".npz")) as file:
        *arrays, (oldest, cursor) = (file[name] for name in file.files)
    ring = build_ring(SPEC, np.zeros)
    for leaf, values in zip([vars(ring)[name] for name in ARRAYS], arrays, strict=True):
        leaf[...] = values
    ring.oldest[0], ring.cursor[0] = oldest, cursor
    return ring


def rows(ring: ReplayRing, first: int, stop: int) -> list[np.ndarray]:
    """Returns all data of these rows."""
    at = np.arange(first, stop) % len(ring.reward)
    slots = ring.final[at][(ring.flags[at] & 24) == 16]
    by_row = [ring.observation[at], ring.action[at], ring.reward[at], ring.flags[at], ring.totals[at]]
    return [*by_row, slots, ring.final_observation[slots], ring.final_row[slots]]


def assert_same_rows(one: ReplayRing, other: ReplayRing) -> None:
    first, stop = max(one.oldest[0], other.oldest[0]), min(one.cursor[0], other.cursor[0])
    assert first < stop
    for ours, theirs in zip(rows(one, first, stop), rows(other, first, stop), strict=True):
        assert np.array_equal(ours, theirs)


def assert_whole(ring: ReplayRing) -> None:
    """Transitions join steps of one episode, with the rewards between them."""
    transitions = UniformReplay(SPEC, ring, n_step=N_STEP, discount=1.0).sample(2000)
    episode, step = transitions.inputs.observation.unbind(-1)
    next_episode, next_step = transitions.next_inputs.observation.unbind(-1)
    assert torch.equal(episode, next_episode)
    terminated = transitions.discount == 0
    length = (next_step - step)[~terminated]
    assert length.min() >= 1
    assert length.max() <= N_STEP
    paid = sum((step + k) * (step + k <= next_step) for k in range(1, N_STEP + 1))
    assert torch.equal(transitions.return_[~terminated], torch.as_tensor(paid)[~terminated])


def killed_and_resumed(cls: type[BaseSampler], n_kills: int, writing: bool, tmp_path: Path) -> Path:
    """Kills and resumes a run so often, checks the files after each kill, lets it end, and returns its folder."""
    folder, fork = tmp_path / "killed", multiprocessing.get_context("fork")
    rng = random.Random(f"{cls.__name__} {n_kills} {writing}")
    before: ReplayRing | None = None
    expected, saved = 0, 0  # batches that the next process begins with; and those that were in a checkpoint, at least
    for attempt in range(n_kills + 1):
        last, notes = attempt == n_kills, tmp_path / f"notes-{attempt}"
        # The first dies when there is a checkpoint to go on from; others may before they began.
        dies_at = rng.randint(2, 6) if writing and not last else 0
        process = fork.Process(target=train, args=(cls, folder, notes, dies_at, attempt))
        process.start()
        if not last and not writing:
            deadline = time.monotonic() + DEADLINE
            while not attempt and not (folder / "checkpoint.pt").exists():
                assert time.monotonic() < deadline
                assert process.is_alive()
                time.sleep(0.01)
            process.join(rng.uniform(0.0, 0.3))
            process.kill()
        process.join(DEADLINE)
        assert process.exitcode == (0 if last else -signal.SIGKILL)
        process.close()
        noted = told(notes) if notes.exists() and notes.stat().st_size else {}
        if "begun" in noted:
            assert noted["begun"] == expected
            # A sampler process has added the first batch by now, and may have added the next one.
            found = 0 if before is None else before.cursor[0]
            new = noted["held"] - found * BATCH.B
            assert new in ([0] if cls is SerialSampler else [BATCH.size, 2 * BATCH.size])
            if before is not None:
                assert_same_rows(before, held(notes))
        state = load_checkpoint(folder / "checkpoint.pt")
        saved = max(saved, noted.get("saved", 0))
        assert state["itr"] >= max(saved, expected)
        assert noted.get("done", 0) - state["itr"] <= INTERVAL
        expected = state["itr"]
        ring = contents(folder, tmp_path / f"copy-{attempt}", state)
        # Each process leaves a batch that it was ahead, which those after it learn from but do not count.
        ahead = ring.cursor[0] - expected * BATCH.T
        assert 0 <= ahead <= (0 if cls is SerialSampler else (attempt + 1) * BATCH.T)
        assert ring.cursor[0] == state["algo"]["n_rows"]
        assert ring.cut[0] == 0, "nothing is missing between what was saved and what comes"
        assert_whole(ring)
        before = ring
    assert expected == N_ITR
    return folder


@pytest.mark.parametrize(("n_kills", "writing"), [(2, True), slow(2, False), slow(5, True), slow(5, False)])
def test_resumed_run_after_a_kill_ends_like_an_uninterrupted_one(n_kills: int, writing: bool, tmp_path: Path) -> None:
    undisturbed = runner(SerialSampler, log_dir=tmp_path / "one")
    undisturbed.train()
    folder = killed_and_resumed(SerialSampler, n_kills, writing, tmp_path)
    states = [load_checkpoint(run / "checkpoint.pt") for run in (tmp_path / "one", folder)]
    for part in ("agent", "algo"):
        assert_equal(*(state[part] for state in states))
    rings = [contents(run, tmp_path / f"copy of {run.name}", states[0]) for run in (tmp_path / "one", folder)]
    assert rings[0].oldest[0] > 0, "the ring has gone round"
    assert (rings[0].oldest[0], rings[0].cursor[0]) == (rings[1].oldest[0], rings[1].cursor[0])
    assert_same_rows(*rings)
    assert isinstance(undisturbed.algo, DQN)
    assert_same_rows(undisturbed.algo._ring, rings[1])


@pytest.mark.parametrize(
    ("cls", "n_kills", "writing"),
    [
        (AsyncCpuSampler, 2, False),
        slow(AsyncCpuSampler, 2, True),
        *(
            slow(cls, 5, writing)
            for cls in (AsyncCpuSampler, AsyncSerialSampler, AsyncAlternatingSampler)
            for writing in (False, True)
        ),
    ],
)
def test_replay_filled_by_a_sampler_process_is_intact_after_kills(
    cls: type[BaseSampler], n_kills: int, writing: bool, tmp_path: Path
) -> None:
    killed_and_resumed(cls, n_kills, writing, tmp_path)
