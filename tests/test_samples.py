"""The batch as users see it: slicing, columns with their final entries, copies, and the NumPy view."""

import copy
import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from headrace.buffers.samples import Final, FinalRegion, Samples, Slot, SlotSpec, build_slot
from headrace.buffers.tree import tree_leaves, tree_map, tree_paths
from headrace.types import BatchSpec

T, B = 4, 5
#: (time, column) of the ended episodes.
ENDS = [(0, 3), (1, 0), (1, 4), (2, 3), (3, 1), (3, 3)]


@dataclass
class Info:
    logits: Any
    value: Any


def filled(state: bool = True) -> tuple[Slot, Samples]:
    """Returns a slot in which every byte of every array is different, and its samples."""
    spec = SlotSpec(
        batch=BatchSpec(T, B),
        widths=(B,),
        observation={"image": np.zeros((2, 2), np.uint8), "x": (np.zeros(3, np.float32), np.zeros((), np.int64))},
        action=np.zeros(2, np.float32),
        agent_info=Info(np.zeros(3, np.float32), np.zeros((), np.float32)),
        env_info={"speed": np.zeros((), np.float32), "grid": np.zeros((2, 2), np.int32)},
        state=(np.zeros(6, np.float32),) if state else None,
        bootstrap=True,
    )
    slot = build_slot(spec, lambda shape, dtype: np.zeros(shape, dtype))
    for number, leaf in enumerate(tree_leaves(slot)):
        leaf[...] = (np.arange(leaf.size) * (number + 1) % 251).reshape(leaf.shape)
    slot.valid[...] = True
    region = slot.final[0]
    region.time[: len(ENDS)], region.column[: len(ENDS)] = np.array(ENDS).T
    final = torch_final(region, len(ENDS))
    return slot, Samples.of(slot).with_final(final)


def torch_final(region: FinalRegion, count: int) -> Final:
    return Final(**vars(tree_map(lambda leaf: torch.from_numpy(leaf[:count].copy()), region)))


def equal(tree: Any, other: Any) -> bool:
    pairs = list(zip(tree_paths(tree), tree_paths(other), strict=True))
    return all(path == other_path and np.array_equal(leaf, leaf2) for (path, leaf), (other_path, leaf2) in pairs)


def test_every_field_is_a_view_of_its_part_of_the_slot() -> None:
    slot, samples = filled()
    env, agent = samples.env, samples.agent
    for tensor, array in [
        (env.observation["image"], slot.observation["image"][:T]),
        (env.observation["x"][1], slot.observation["x"][1][:T]),
        (env.last_observation["image"], slot.observation["image"][T:]),
        (env.is_first, slot.is_first[:T]),
        (env.prev_reward, slot.prev_reward[:T]),
        (env.reward, slot.reward),
        (env.terminated, slot.terminated),
        (env.truncated, slot.truncated),
        (env.valid, slot.valid),
        (env.env_info["grid"], slot.env_info["grid"]),
        (agent.action, slot.action),
        (agent.prev_action, slot.prev_action[:T]),
        (agent.agent_info.logits, slot.agent_info.logits),
        (agent.version, slot.version),
        (agent.bootstrap_value, slot.bootstrap_value),
        (agent.first_state[0], slot.first_state[0]),
        (agent.last_state[0], slot.last_state[0]),
    ]:
        assert isinstance(tensor, torch.Tensor)
        assert np.shares_memory(tensor.numpy(), array)
        assert tensor.shape == array.shape
        assert np.array_equal(tensor.numpy(), array)
    assert samples.batch_spec == BatchSpec(T, B)
    assert isinstance(agent.agent_info, Info)


def test_done_is_terminated_or_truncated() -> None:
    _, samples = filled()
    samples.env.terminated[:] = False
    samples.env.truncated[:] = False
    samples.env.terminated[1, 2] = samples.env.truncated[3, 0] = True
    samples.env.terminated[2, 2] = samples.env.truncated[2, 2] = True
    assert samples.env.done.nonzero().tolist() == [[1, 2], [2, 2], [3, 0]]


@pytest.mark.parametrize("t", [0, 2, -1])
def test_time_index_of_env_samples(t: int) -> None:
    _, samples = filled()
    row = samples.env[t]
    assert torch.equal(row.reward, samples.env.reward[t])
    assert torch.equal(row.observation["x"][0], samples.env.observation["x"][0][t])
    assert torch.equal(row.env_info["grid"], samples.env.env_info["grid"][t])
    assert row.done.shape == (B,)
    assert torch.equal(row.last_observation["image"], samples.env.last_observation["image"])  # has no time


@pytest.mark.parametrize("rows", [slice(1, 3), [2, 0], torch.tensor([3, 3])])
def test_time_slice_of_agent_samples(rows: Any) -> None:
    _, samples = filled()
    part = samples.agent[rows]
    assert torch.equal(part.action, samples.agent.action[rows])
    assert torch.equal(part.agent_info.value, samples.agent.agent_info.value[rows])
    for name in ("bootstrap_value", "first_state", "last_state"):
        assert equal(getattr(part, name), getattr(samples.agent, name))


@pytest.mark.parametrize("columns", [slice(1, 4), slice(None, None, 2), [4, 0], 3, torch.tensor([1, 2])])
def test_columns_of_a_part_include_fields_without_time(columns: Any) -> None:
    _, samples = filled()
    agent, env = samples.agent[:, columns], samples.env[:, columns]
    assert torch.equal(agent.action, samples.agent.action[:, columns])
    assert torch.equal(agent.agent_info.logits, samples.agent.agent_info.logits[:, columns])
    assert agent.bootstrap_value is not None
    assert samples.agent.bootstrap_value is not None
    assert torch.equal(agent.bootstrap_value, samples.agent.bootstrap_value[:, columns])
    assert torch.equal(agent.last_state[0], samples.agent.last_state[0][:, columns])
    assert torch.equal(env.last_observation["x"][0], samples.env.last_observation["x"][0][:, columns])
    assert torch.equal(env.is_first, samples.env.is_first[:, columns])


def test_time_and_column_slices_together() -> None:
    _, samples = filled()
    part = samples.env[1:3, 2:4]
    assert torch.equal(part.reward, samples.env.reward[1:3, 2:4])
    assert torch.equal(part.last_observation["image"], samples.env.last_observation["image"][:, 2:4])


def test_slices_are_views() -> None:
    slot, samples = filled()
    samples.env[2].reward[1] = -7
    samples.agent[:, 3:].action[0, 0] = -8
    samples[:, 1:3].env.reward[3, 0] = -9
    assert slot.reward[2, 1] == -7
    assert (slot.action[0, 3] == -8).all()
    assert slot.reward[3, 1] == -9


def wanted(columns: Any) -> list[int]:
    return torch.arange(B)[columns].reshape(-1).tolist()


@pytest.mark.parametrize(
    "columns", [slice(None), slice(1, 4), slice(3, None), slice(2, 3), [3, 1], [4, 0, 3], 3, -1, torch.tensor([0, 4])]
)
def test_columns_of_a_batch_filter_and_renumber_the_final_entries(columns: Any) -> None:
    _, samples = filled()
    part, kept = samples[:, columns], wanted(columns)
    assert part.batch_spec == BatchSpec(T, len(kept))
    assert torch.equal(part.env.reward, samples.env.reward[:, kept])
    assert part.agent.bootstrap_value is not None
    assert samples.agent.bootstrap_value is not None
    assert torch.equal(part.agent.bootstrap_value, samples.agent.bootstrap_value[:, kept])
    entries = sorted((time, kept.index(column), row) for row, (time, column) in enumerate(ENDS) if column in kept)
    rows = [row for _, _, row in entries]
    assert part.final.time.tolist() == [time for time, _, _ in entries]
    assert part.final.column.tolist() == [column for _, column, _ in entries]
    assert torch.equal(part.final.observation["x"][0], samples.final.observation["x"][0][rows])
    assert torch.equal(part.final.prev_action, samples.final.prev_action[rows])
    assert torch.equal(part.final.prev_reward, samples.final.prev_reward[rows])
    assert torch.equal(part.final.state[0], samples.final.state[0][rows])
    assert len(part.final) == len(rows)
    assert samples.final.column.tolist() == [column for _, column in ENDS]  # the whole stays


@pytest.mark.parametrize("mask", [torch.tensor([0, 1, 0, 1, 0]).bool(), np.array([False, True, False, True, False])])
def test_columns_by_boolean_mask(mask: Any) -> None:
    _, samples = filled()
    part = samples[:, mask]
    assert torch.equal(part.env.reward, samples.env.reward[:, [1, 3]])
    assert part.final.column.tolist() == [1, 1, 0, 1]


def test_columns_of_selected_columns() -> None:
    _, samples = filled()
    part = samples[:, 1:][:, [2, 0]]
    assert torch.equal(part.env.reward, samples.env.reward[:, [3, 1]])
    assert part.final.column.tolist() == [0, 0, 0, 1]


def test_no_column_is_an_empty_batch() -> None:
    _, samples = filled()
    part = samples[:, 5:]
    assert part.batch_spec == BatchSpec(T, 0)
    assert len(part.final) == 0


@pytest.mark.parametrize("index", [0, slice(0, 2), (0, slice(None)), (slice(1, None), slice(None)), [0, 1]])
def test_time_slice_of_a_whole_batch_is_refused_with_the_remedy(index: Any) -> None:
    """A part in time has neither a bootstrap value nor final entries of its own."""
    _, samples = filled()
    with pytest.raises(TypeError, match=r"samples\.env\[t\]"):
        samples[index]


def test_column_selected_twice_has_its_final_entries_twice() -> None:
    _, samples = filled()
    part = samples[:, [0, 3, 3]]
    assert torch.equal(part.env.reward, samples.env.reward[:, [0, 3, 3]])
    assert list(zip(part.final.time.tolist(), part.final.column.tolist(), strict=True)) == [
        (0, 1),
        (0, 2),
        (1, 0),
        (2, 1),
        (2, 2),
        (3, 1),
        (3, 2),
    ]


def test_copy_is_equal_and_independent() -> None:
    slot, samples = filled()
    kept = samples.copy()
    assert equal(kept, samples)
    for (path, leaf), (_, mine) in zip(tree_paths(samples), tree_paths(kept), strict=True):
        assert not np.shares_memory(leaf.numpy(), mine.numpy()), path
    before = kept.copy()
    for leaf in tree_leaves(slot):
        leaf[...] = 0
    assert equal(kept, before)


def test_numpy_shares_memory() -> None:
    _, samples = filled()
    arrays = samples.numpy()
    for (path, tensor), (other, array) in zip(tree_paths(samples), tree_paths(arrays), strict=True):
        assert path == other
        assert isinstance(array, np.ndarray), path
        assert np.shares_memory(tensor.numpy(), array), path
    arrays.env.reward[1, 1] = 42
    assert samples.env.reward[1, 1] == 42


def test_numpy_samples_slice_like_torch_samples() -> None:
    _, samples = filled()
    part, arrays = samples[:, [3, 1]], samples.numpy()[:, [3, 1]]
    assert equal(arrays, part)
    assert all(isinstance(leaf, np.ndarray) for leaf in tree_leaves(arrays))
    assert np.array_equal(samples.numpy().env[2].reward, samples.env[2].reward)


def test_a_batch_without_recurrent_state_has_none() -> None:
    _, samples = filled(state=False)
    part = samples[:, 1:3].copy()
    assert part.agent.first_state is part.agent.last_state is part.final.state is None


def test_a_batch_can_be_pickled_and_deep_copied() -> None:
    _, samples = filled()
    assert equal(pickle.loads(pickle.dumps(samples)), samples)
    assert equal(copy.deepcopy(samples), samples)


def test_final_inputs_are_the_inputs_of_value() -> None:
    _, samples = filled()
    inputs = samples.final.inputs()
    assert inputs.observation is samples.final.observation
    assert torch.equal(inputs.prev_reward, samples.final.prev_reward)
    assert torch.equal(inputs.prev_action, samples.final.prev_action)
    assert inputs.is_first.dtype == torch.bool
    assert inputs.is_first.tolist() == [False] * len(ENDS)


def test_final_entries_that_fit_and_that_overflow() -> None:
    def region(count: int, offset: int = 0) -> FinalRegion:
        numbers = np.arange(offset, offset + count)
        return FinalRegion(
            numbers, numbers * 2, {"x": numbers * 3.0}, numbers * 4, numbers.astype(np.float32), numbers * 6
        )

    space = tree_map(np.zeros_like, region(4))
    assert space.fill(region(3, 10)) is None
    assert space.time.tolist() == [10, 11, 12, 0]
    assert space.state.tolist() == [0, 0, 0, 0]  # the agent's part
    rest = space.fill(region(6, 20))
    assert space.time.tolist() == [20, 21, 22, 23]
    assert space.observation["x"].tolist() == [60, 63, 66, 69]
    assert rest is not None
    assert rest.time.tolist() == [24, 25]
    assert rest.prev_action.tolist() == [96, 100]


def test_slices_of_a_slot_have_separate_columns_and_final_regions() -> None:
    spec = SlotSpec(BatchSpec(3, 7), (4, 3), np.zeros(2, np.float32), np.zeros((), np.int64), bootstrap=True)
    slot = build_slot(spec, lambda shape, dtype: np.zeros(shape, dtype))
    first, second = slot.slice(spec, 0), slot.slice(spec, 1)
    assert first.reward.shape == (3, 4)
    assert second.reward.shape == (3, 3)
    second.reward[:] = 1
    assert second.bootstrap_value is not None
    second.bootstrap_value[:] = 2
    assert slot.reward.tolist() == [[0, 0, 0, 0, 1, 1, 1]] * 3
    assert slot.bootstrap_value is not None
    assert slot.bootstrap_value.tolist() == [[0, 0, 0, 0, 2, 2, 2]]
    assert second.final[0] is slot.final[1]
    assert [spec.first_column(index) for index in (0, 1)] == [0, 4]
