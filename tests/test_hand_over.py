"""Hand-over of batches between learner and sampler processes: reports in shared memory, and as messages."""

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from multiprocessing import connection
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from headrace.agents.pg import CategoricalPgAgent
from headrace.buffers.samples import FinalRegion, SlotSpec
from headrace.buffers.shared import private
from headrace.buffers.tree import tree_paths
from headrace.errors import WorkerCrashed
from headrace.processes.affinity import cpu_quota
from headrace.samplers import (
    AsyncCpuSampler,
    AsyncGpuSampler,
    AsyncSerialSampler,
    BaseSampler,
    CpuSampler,
    SerialSampler,
)
from headrace.samplers.collection.slice import SliceReport
from headrace.samplers.timing import ServerTiming
from headrace.samplers.traj_info import Episodes
from headrace.samplers.workers.hand_over import HandOver, HandOverSpec, ReportRegion
from headrace.types import BatchSpec, Timing
from tests.environments import numbers_of
from tests.leftovers import DEADLINE, until

CAPACITIES = [3, 5]


def episodes(n: int, infos: list[dict[str, Any]] | None = None) -> Episodes:
    whole = np.arange(n)
    return Episodes(
        time=whole,
        env_id=whole + 7,
        length=whole + 20,
        ret=whole / 3,
        discounted=-whole / 7,
        nonzero=whole * 2,
        finished=np.ones(n, np.bool_),
        infos=[{} for _ in whole] if infos is None else infos,
        own=None,
    )


def report(n: int) -> SliceReport:
    return SliceReport(n, None, episodes(n), [], Timing(rows=64, steps=n, env_ns=2**40, turned_to_ns=n))


def region() -> ReportRegion:
    return private(lambda allocate: ReportRegion(CAPACITIES, allocate))[1]


@pytest.mark.parametrize("servers", [[], [ServerTiming(2**50, 3)]])
def test_a_report_is_read_as_it_was_written(servers: list[ServerTiming]) -> None:
    memory = region()
    for counts in [(2, 5), (0, 0), (3, 1)]:
        written = [report(n) for n in counts]
        assert memory.write((written, servers))
        found = memory.read()
        assert found is not None
        reports, timings = found
        assert timings == servers
        for ours, theirs in zip(reports, written, strict=True):
            assert (ours.n_final, ours.overflow, ours.notes, ours.timing) == (theirs.n_final, None, [], theirs.timing)
            for name, values in vars(theirs.episodes).items():
                np.testing.assert_array_equal(getattr(ours.episodes, name), values, err_msg=name)


def test_a_report_that_was_read_does_not_change_with_the_next() -> None:
    memory = region()
    memory.write(([report(2), report(4)], []))
    found = memory.read()
    assert found is not None
    other = report(5)
    other.episodes.env_id += 100
    memory.write(([report(0), other], []))
    np.testing.assert_array_equal(found[0][1].episodes.env_id, [7, 8, 9, 10])


EMPTY = np.zeros(1)
CHANGES: Mapping[str, Callable[[SliceReport], SliceReport]] = {
    "entries that did not fit into the slot": lambda one: replace(
        one, overflow=FinalRegion(EMPTY, EMPTY, EMPTY, EMPTY, EMPTY, None)
    ),
    "a log message": lambda one: replace(one, notes=[(20, "a cast")]),
    "a last info": lambda one: replace(one, episodes=episodes(2, [{}, {"lives": 1}])),
    "fields of the user's TrajInfo": lambda one: replace(one, episodes=replace(one.episodes, own=[{}, {}])),
    "too many episodes": lambda one: replace(one, episodes=episodes(6)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_report_with_more_than_numbers_is_left_to_a_message(change: Callable[[SliceReport], SliceReport]) -> None:
    memory = region()
    assert memory.write(([report(2), report(2)], []))
    assert not memory.write(([report(2), change(report(2))], []))
    assert memory.read() is None
    assert memory.write(([report(2), report(2)], []))
    assert memory.read() is not None


def test_commands_of_all_slots_are_kept_apart() -> None:
    spec = SlotSpec(BatchSpec(4, 2), (2,), np.zeros(3), np.zeros(1))
    _, memory = private(lambda allocate: HandOver(HandOverSpec(spec, 3, (1,)), allocate))
    for number in range(7):
        memory.command(number, (10 * number, number, number + 100))
        for earlier in range(max(0, number - 2), number + 1):
            assert memory.commanded(earlier) == (10 * earlier, earlier, earlier + 100)


class Countdown(gym.Env[np.ndarray, np.int64]):
    """Episodes of 3 to 6 steps; every other one ends with an info, or with an array that is not in the last one."""

    observation_space = gym.spaces.Box(-10, 10, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, Any]:
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(3, 7))
        self.talks = bool(self.np_random.integers(2))
        return np.array([self.left, 0], np.float32), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        ended = self.left == 0
        info = {"talks": self.left, "array": np.arange(3)} if ended and self.talks else {}
        return np.array([self.left, action], np.float32), float(self.left), ended, False, info


SETTINGS: dict[str, Any] = {"batch_T": 3, "batch_B": 4, "eval_n_envs": 2, "deterministic": True, "start_method": "fork"}


class SlowAtFirst(Countdown):
    """The environments of the first sampler process take longer, so that the others report ahead of it."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, Any]:
        if seed is not None:
            self.pause = 0.01 if numbers_of(3)[seed] < 2 else 0.0
        return super().reset(seed=seed, options=options)

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        time.sleep(self.pause)
        return super().step(action)


def test_messages_ahead_of_others_wait_for_their_turn() -> None:
    """A process sends reports with infos for several batches, while the learner waits for the other process."""
    found = []
    several = {"n_workers": 2, "n_slots": 4, "device": ("cpu", "cpu")}
    classes: list[tuple[type[BaseSampler], dict[str, Any]]] = [(SerialSampler, {}), (AsyncGpuSampler, several)]
    for cls, kwargs in classes:
        settings: dict[str, Any] = {**SETTINGS, "eval_n_envs": 0, "batch_T": 8, **kwargs}
        with cls(SlowAtFirst, **settings).initialize(CategoricalPgAgent(), seed=3) as sampler:
            found.append([[str(vars(info)) for info in sampler.obtain_samples(itr)[1]] for itr in range(8)])
    assert any("talks" in info for info in found[0][-1])
    assert found[0] == found[1]


class Silent(Countdown):
    """Its reports are numbers alone."""

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return *super().step(action)[:4], {}


@pytest.mark.parametrize("cls", [Silent, Countdown])
def test_a_process_that_died_is_reported_although_its_batch_is_ready(cls: type[gym.Env[Any, Any]]) -> None:
    sampler = AsyncSerialSampler(cls, **{**SETTINGS, "eval_n_envs": 0, "batch_T": 8})
    sampler.initialize(CategoricalPgAgent(), seed=0).obtain_samples(0)
    engine: Any = sampler._engine
    assert until(lambda: not engine.dispatcher._handoff.lagging(2))  # the batch ahead
    os.kill(engine.workers.pids[0], signal.SIGKILL)
    assert connection.wait([engine.workers._members.processes[0].sentinel], DEADLINE)
    with pytest.raises(WorkerCrashed):
        sampler.obtain_samples(1)


def test_cpu_sampler_polls_between_batches_for_half_a_millisecond_at_most() -> None:
    cls = partial(CpuSampler, Countdown, **{**SETTINGS, "eval_n_envs": 0}, n_workers=2)
    with cls().initialize(CategoricalPgAgent(), seed=0) as sampler:
        spin_ns = sampler._engine._memory.hand_over.spin_ns  # type: ignore[attr-defined]
        assert spin_ns[0] == 500_000 or (cpu_quota() or 3) < 3
        sampler._engine._patience._measured_at -= 10  # type: ignore[attr-defined]
        sampler._engine._patience._foreign -= 1000  # type: ignore[attr-defined]
        sampler.obtain_samples(0)  # other programs have used a hundred cores for ten seconds
        assert spin_ns[0] == 0


def collected(cls: type[BaseSampler], **kwargs: Any) -> list[Any]:
    found: list[Any] = []
    with cls(Countdown, **SETTINGS, **kwargs).initialize(CategoricalPgAgent(), seed=3) as sampler:
        for itr in range(9):
            samples, infos = sampler.obtain_samples(itr)
            found += [(path, leaf.clone()) for path, leaf in tree_paths(samples) if "version" not in path]
            found += [sorted((name, str(value)) for name, value in vars(info).items()) for info in infos]
            if itr in (3, 4):  # commands between batches, with batches ahead
                found += [info.Length for info in sampler.evaluate_agent(itr)]
    return found


@pytest.mark.parametrize(
    ("cls", "kwargs"),
    [
        (CpuSampler, {"n_workers": 2}),
        (AsyncSerialSampler, {"n_slots": 2}),
        (AsyncCpuSampler, {"n_slots": 4, "n_workers": 2}),
    ],
)
def test_batches_with_and_without_infos_arrive_in_order(cls: type[BaseSampler], kwargs: dict[str, Any]) -> None:
    ours = collected(cls, **kwargs)
    theirs = collected(SerialSampler)
    assert any("talks" in str(one) for one in theirs)
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        if isinstance(mine, tuple):
            assert mine[0] == other[0]
            assert torch.equal(mine[1], other[1]), mine[0]
        else:
            assert mine == other
