"""Previous actions, previous rewards and `is_first`: the same whether they are written row by row or once a batch."""

from typing import Any

import pytest
import torch

from headrace.agents.pg import CategoricalPgAgent
from headrace.buffers.samples import Samples
from headrace.samplers import AlternatingSampler, CpuSampler, GpuSampler, SerialSampler
from headrace.samplers.collection.slot_view import SlotView

T, B = 40, 6  # an untrained agent's episodes are shorter


def check(samples: Samples, last: dict[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
    """Compares the inputs of each row with what happened in the row before; returns those of the row after the last."""
    done = samples.env.done
    action = torch.where(done, 0, samples.agent.action)
    reward = torch.where(done, 0.0, samples.env.reward)
    assert torch.equal(samples.agent.prev_action[1:], action[:-1])
    assert torch.equal(samples.env.prev_reward[1:], reward[:-1])
    assert torch.equal(samples.env.is_first[1:], done[:-1])
    if last is not None:
        assert torch.equal(samples.agent.prev_action[0], last["action"])
        assert torch.equal(samples.env.prev_reward[0], last["reward"])
        assert torch.equal(samples.env.is_first[0], last["done"])
    return {"action": action[-1].clone(), "reward": reward[-1].clone(), "done": done[-1].clone()}


@pytest.mark.parametrize("observed", [False, True], ids=["default model", "model with a hook"])
@pytest.mark.parametrize("cls", [SerialSampler, CpuSampler, GpuSampler, AlternatingSampler])
def test_inputs_of_a_row_are_the_outcome_of_the_row_before(
    cls: Any, observed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once: list[int] = []
    write = SlotView.write_previous

    def counted(view: SlotView, n_rows: int, *ends: Any) -> None:
        at_once.append(n_rows)
        write(view, n_rows, *ends)

    monkeypatch.setattr(SlotView, "write_previous", counted)
    workers = {} if cls is SerialSampler else {"n_workers": 2}
    agent, last, ended = CategoricalPgAgent(), None, 0
    with cls("CartPole-v1", batch_T=T, batch_B=B, **workers).initialize(agent, seed=0) as sampler:
        if observed:  # the agent must then be called with the inputs of each row
            agent.model.register_forward_hook(lambda *args: None)
        for itr in range(4):
            samples, _ = sampler.obtain_samples(itr)
            last = check(samples, last)
            ended += int(samples.env.done.sum())
    assert ended > 4
    if cls is SerialSampler:
        assert at_once == ([] if observed else [T] * 4)
