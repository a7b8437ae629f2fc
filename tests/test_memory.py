"""Shared memory: alignment, the same layout in every process, refusals when memory is short, and no leaks."""

import gc
import mmap
import os
import resource
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from headrace.agents.pg import CategoricalPgAgent
from headrace.buffers.samples import SlotSpec, build_slot
from headrace.buffers.shared import Allocate, Arena, measure
from headrace.buffers.tree import tree_leaves, tree_paths
from headrace.errors import NotEnoughMemory, SamplerClosed, SamplerError
from headrace.memory import anonymous_file, available_memory
from headrace.samplers import BaseSampler, CpuSampler, SerialSampler
from headrace.types import BatchSpec
from tests.environments import EpisodeStep
from tests.leftovers import descriptors, other_processes

MIB = 2**20

#: Shapes and dtypes that leave the next array unaligned, if nobody takes care.
ODD = [((7,), "bool"), ((3, 5), "float32"), ((1,), "uint8"), ((), "int64"), ((0, 4), "float64"), ((65,), "int8")]

SPEC = SlotSpec(
    batch=BatchSpec(5, 7),
    widths=(4, 3),
    observation={"image": np.zeros((3, 3), np.uint8), "x": (np.zeros((), np.float64), np.zeros(2, np.float32))},
    action=np.zeros((), np.int64),
    agent_info={"value": np.zeros((), np.float32)},
    env_info={"flag": np.zeros((), np.bool_)},
    state=np.zeros(3, np.float32),
    bootstrap=True,
)


def build_odd(allocate: Allocate) -> list[np.ndarray]:
    return [allocate(shape, np.dtype(dtype)) for shape, dtype in ODD]


@contextmanager
def limit(what: int, amount: int) -> Iterator[None]:
    before = resource.getrlimit(what)
    resource.setrlimit(what, (amount, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(what, before)


def small_files() -> AbstractContextManager[None]:
    """Limits the size of files, so that a check that fails to refuse does not use up the machine's memory."""
    return limit(resource.RLIMIT_FSIZE, 64 * MIB)


def test_arrays_are_aligned_disjoint_and_zero() -> None:
    arena = Arena(measure(build_odd))
    arrays = build_odd(arena.allocate)
    assert [(array.shape, array.dtype.name) for array in arrays] == ODD
    assert all(array.ctypes.data % 64 == 0 for array in arrays)
    assert all(not array.any() for array in arrays)
    for value, array in enumerate(arrays, start=1):
        array.reshape(-1).view(np.uint8)[...] = value
    assert [set(array.tobytes()) for array in arrays] == [{1}, {2}, {3}, {4}, set(), {6}]
    arena.close_fd()


def test_measure_equals_the_size_of_the_arena() -> None:
    assert measure(build_odd) == 64 + 64 + 64 + 64 + 0 + 128
    arena = Arena(measure(build_odd))
    build_odd(arena.allocate)
    with pytest.raises(ValueError, match="do not fit in"):
        arena.allocate((1,), np.dtype("uint8"))
    arena.close_fd()


def test_measure_reserves_nothing() -> None:
    """It works for a batch that does not fit into any machine's memory."""
    spec = SlotSpec(BatchSpec(10**7, 10**4), (10**4,), np.zeros((4, 84, 84), np.uint8), np.zeros((), np.int64))
    assert measure(lambda allocate: build_slot(spec, allocate)) > 10**7 * 10**4 * 4 * 84 * 84


def test_attached_arena_has_the_same_layout() -> None:
    def build(allocate: Allocate) -> Any:
        return build_slot(SPEC, allocate)

    arena = Arena(measure(build))
    slot = build(arena.allocate)
    assert arena.fd is not None
    attached = Arena(measure(build), os.dup(arena.fd))
    other = build(attached.allocate)
    assert len(tree_leaves(slot)) == len(tree_leaves(other)) > 20
    for number, leaf in enumerate(tree_leaves(slot), start=1):
        leaf.view(np.uint8)[...] = number
    for number, (path, leaf) in enumerate(tree_paths(other), start=1):
        assert set(leaf.tobytes()) == {number}, path
    for leaf in tree_leaves(other):
        leaf.view(np.uint8)[...] = 0xAB
    assert all(set(leaf.tobytes()) == {0xAB} for leaf in tree_leaves(slot))
    arena.close_fd()
    attached.close_fd()


def test_a_child_process_sees_what_is_written() -> None:
    arena = Arena(64)
    array = arena.allocate((8,), np.dtype("int64"))
    child = os.fork()
    if child == 0:
        array[:] = np.arange(8)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert array.tolist() == list(range(8))
    arena.close_fd()


def test_rows_of_a_batch_are_contiguous() -> None:
    """Row t of every [T, B] array is used as an inference batch without a copy."""
    slot = build_slot(SPEC, lambda shape, dtype: np.zeros(shape, dtype))
    for path, leaf in tree_paths(slot):
        assert leaf.flags.c_contiguous, path
    assert slot.observation["image"].shape == (6, 7, 3, 3)
    assert slot.is_first.shape == slot.prev_reward.shape == slot.prev_action.shape == (6, 7)
    assert slot.reward.shape == slot.version.shape == slot.agent_info["value"].shape == (5, 7)
    assert slot.bootstrap_value is not None
    assert slot.bootstrap_value.shape == (1, 7)
    assert slot.first_state.shape == slot.last_state.shape == (1, 7, 3)
    assert [len(region.time) for region in slot.final] == [8, 6]


def test_the_final_region_grows_with_long_batches() -> None:
    spec = SlotSpec(BatchSpec(160, 6), (4, 2), np.zeros(2, np.float32), np.zeros((), np.int64))
    slot = build_slot(spec, lambda shape, dtype: np.zeros(shape, dtype))
    assert [len(region.time) for region in slot.final] == [160 * 4 // 8, 160 * 2 // 8]


def test_memory_lives_as_long_as_its_arrays_and_has_no_name() -> None:
    shm, before = set(Path("/dev/shm").iterdir()), descriptors()
    arena = Arena(1 * MIB)
    array = arena.allocate((1 * MIB,), np.dtype("uint8"))
    assert set(Path("/dev/shm").iterdir()) == shm
    arena.close_fd()
    arena.close_fd()  # twice is fine
    del arena
    gc.collect()
    array[:] = 9
    assert array.sum() == 9 * MIB
    del array
    assert descriptors() <= before


@pytest.mark.parametrize("cls", [SerialSampler, CpuSampler])
def test_samplers_leak_no_descriptor_and_no_name(cls: type[BaseSampler]) -> None:
    def round_trip() -> None:
        sampler = cls(EpisodeStep, batch_T=4, batch_B=3, n_workers=2, start_method="fork", eval_n_envs=2)
        with sampler.initialize(CategoricalPgAgent(), seed=5):
            sampler.obtain_samples(0)
            sampler.evaluate_agent(0)
            assert set(Path("/dev/shm").iterdir()) == shm

    shm = set(Path("/dev/shm").iterdir())
    round_trip()  # what the first use opens for good, like /dev/urandom
    before = descriptors()
    for _ in range(3):
        round_trip()
    assert descriptors() <= before


def test_too_large_arena_is_refused_with_needed_and_free_memory() -> None:
    before, free = descriptors(), available_memory()
    with small_files(), pytest.raises(NotEnoughMemory) as caught:
        anonymous_file(2**50)
    words = str(caught.value)
    assert f"{2**20:.2f} GiB" in words  # 2^50 bytes
    said_free = float(
        words.split(" are free")[0].split("memory, but only ")[1].removesuffix(" GiB").removesuffix(" MiB")
    )
    assert said_free > 0
    assert "reduce batch_T, batch_B" in words
    assert descriptors() <= before
    assert available_memory() > free / 2
    assert isinstance(caught.value, MemoryError)
    assert isinstance(caught.value, SamplerError)


def test_slightly_too_large_arena_is_refused() -> None:
    with small_files(), pytest.raises(NotEnoughMemory, match="are free"):
        Arena(available_memory() + 1024 * MIB)


@pytest.mark.parametrize("cls", [SerialSampler, CpuSampler])
def test_too_large_batch_is_refused_and_the_sampler_is_closed(cls: type[BaseSampler]) -> None:
    before = descriptors()
    sampler = cls(EpisodeStep, batch_T=10**13, batch_B=4, n_workers=2, start_method="fork", max_decorrelation_steps=0)
    with small_files(), pytest.raises(NotEnoughMemory, match="are free"):
        sampler.initialize(CategoricalPgAgent(), seed=5)
    with pytest.raises(SamplerClosed) as caught:
        sampler.obtain_samples(0)
    assert isinstance(caught.value.__cause__, NotEnoughMemory)
    assert other_processes() == set()
    del sampler, caught
    assert descriptors() <= before


def test_memory_refused_by_the_system_is_an_error_and_leaves_no_descriptor() -> None:
    """A limit on the size of files bounds anonymous ones too."""
    before = descriptors()
    with limit(resource.RLIMIT_FSIZE, 1 * MIB), pytest.raises(NotEnoughMemory) as caught:
        anonymous_file(2 * MIB)
    assert "refused 2.0 MiB" in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    assert descriptors() <= before


def test_memory_that_cannot_be_mapped_is_an_error_and_leaves_no_descriptor() -> None:
    before = descriptors()
    gc.collect()
    with limit(resource.RLIMIT_AS, psutil.Process().memory_info().vms + 16 * MIB):
        error = caught(lambda: Arena(64 * MIB))
    assert isinstance(error, NotEnoughMemory)
    del error
    assert descriptors() <= before


def caught(call: Any) -> Exception | None:
    """The exception `call` raises: pytest's own machinery needs memory, and there is little."""
    try:
        call()
    except Exception as error:
        return error.with_traceback(None)
    return None


def test_memory_is_reserved_and_zero() -> None:
    """Its pages exist, so writing to them cannot raise SIGBUS."""
    fd = anonymous_file(4 * MIB)
    try:
        assert os.fstat(fd).st_size == 4 * MIB
        assert os.fstat(fd).st_blocks * 512 >= 4 * MIB
        with mmap.mmap(fd, 4 * MIB) as view:
            assert view[:] == bytes(4 * MIB)
    finally:
        os.close(fd)


def test_descriptor_is_not_inherited_by_started_programs() -> None:
    fd = anonymous_file(10)
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_empty_arena_is_allowed() -> None:
    fd = anonymous_file(0)
    assert os.fstat(fd).st_size == 0
    os.close(fd)
    arena = Arena(0)
    assert arena.allocate((0, 3), np.dtype("float32")).shape == (0, 3)
    arena.close_fd()


def test_available_memory_is_at_most_that_of_the_machine() -> None:
    assert 0 < available_memory() <= psutil.virtual_memory().total
