"""Which CPUs and devices processes use: `Affinity`, and the dicts that rlpyt's `make_affinity` builds."""

from typing import Any

import pytest
import torch

from headrace.agents.pg import CategoricalPgAgent
from headrace.algos.pg import A2C
from headrace.processes.affinity import Affinity
from headrace.runners import MinibatchRl, RunnerConfig
from headrace.runners.logging import Logger
from headrace.samplers import (
    AlternatingSampler,
    AsyncCpuSampler,
    AsyncGpuSampler,
    BaseSampler,
    CpuSampler,
    GpuSampler,
    NoOverlapAlternatingSampler,
    SerialSampler,
)

#: As rlpyt's `make_affinity(n_cpu_core=2, n_gpu=0, cpu_per_run=2)` returns it, without hyperthreads.
CPU: dict[str, Any] = {
    "all_cpus": (0, 1),
    "master_cpus": (0, 1),
    "workers_cpus": ((0,), (1,)),
    "master_torch_threads": 2,
    "worker_torch_threads": 1,
    "alternating": False,
    "set_affinity": True,
}
#: … with `n_gpu=1`.
GPU: dict[str, Any] = {**CPU, "cuda_idx": 0}
#: … and `alternating=True`: each CPU for a worker of each group.
ALTERNATING = {**GPU, "workers_cpus": ((0,), (1,), (0,), (1,)), "alternating": True}
#: … of an asynchronous run with two GPUs that sample.
ASYNC: dict[str, Any] = {
    "all_cpus": (0, 1, 2),
    "optimizer": [{"cpus": (0,), "cuda_idx": 0, "torch_threads": 1, "set_affinity": True}],
    "sampler": [
        {
            "all_cpus": (cpu,),
            "master_cpus": (cpu,),
            "workers_cpus": ((cpu,),),
            "master_torch_threads": 1,
            "worker_torch_threads": 1,
            "cuda_idx": cpu,
            "alternating": False,
            "set_affinity": True,
        }
        for cpu in (1, 2)
    ],
    "set_affinity": True,
}
#: … and of one whose workers act on CPUs.
ASYNC_CPU = {**ASYNC, "sampler": {**CPU, "cuda_idx": None}}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (CPU, Affinity(((0,), (1,)), master_cpus=(0, 1), master_torch_threads=2, alternating=False)),
        (GPU, Affinity(((0,), (1,)), master_cpus=(0, 1), master_torch_threads=2, cuda_idx=0, alternating=False)),
        (
            {**GPU, "set_affinity": False, "workers_cpus": None},
            Affinity(master_cpus=(0, 1), master_torch_threads=2, set_affinity=False, cuda_idx=0, alternating=False),
        ),
        (ALTERNATING, Affinity(((0,), (1,)), master_cpus=(0, 1), master_torch_threads=2, cuda_idx=0, alternating=True)),
        (
            ASYNC,
            Affinity(
                ((1,), (2,)),
                master_cpus=(0,),
                master_torch_threads=1,
                cuda_idx=0,
                sampler_cuda_idx=(1, 2),
                alternating=False,
            ),
        ),
        (
            ASYNC_CPU,
            Affinity(((0,), (1,)), master_cpus=(0,), master_torch_threads=1, cuda_idx=0, alternating=False),
        ),
    ],
    ids=["cpu", "gpu", "unpinned", "alternating", "async", "async cpu"],
)
def test_dicts_of_make_affinity_are_accepted(given: dict[str, Any], expected: Affinity) -> None:
    assert Affinity.of(given) == expected


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({**CPU, "worker_cpus": 1}, ValueError, "unknown keys ['worker_cpus']"),
        ({**ASYNC, "optimizer": ASYNC["optimizer"] * 2}, ValueError, "2 learners, but one process learns"),
        ({**ASYNC, "sampler": {**CPU, "gpus": 1}}, ValueError, "affinity sampler has unknown keys ['gpus']"),
        ({**ASYNC, "master_cpus": (0,)}, ValueError, "unknown keys ['master_cpus']"),
        ({"optimizer": [{}]}, ValueError, "needs the keys optimizer and sampler"),
        ({**ASYNC, "optimizer": [3]}, TypeError, "affinity optimizer must be a dict"),
        ([GPU, GPU], TypeError, "pass the entry of one learner"),
        ({**GPU, "cuda_idx": "0"}, ValueError, "cuda_idx must be the number of a GPU, got '0'"),
    ],
)
def test_dicts_without_an_equivalent_are_refused(given: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error) as caught:
        Affinity.of(given)
    assert says in str(caught.value)


def sampler_of(cls: type[BaseSampler], **options: Any) -> BaseSampler:
    return cls("CartPole-v1", batch_T=2, batch_B=2, **options)


@pytest.mark.parametrize(
    ("cls", "given", "says"),
    [
        (GpuSampler, ALTERNATING, "alternating=True, but GpuSampler is not alternating; use AlternatingSampler"),
        (SerialSampler, {"alternating": True}, "SerialSampler is not alternating"),
        (AlternatingSampler, GPU, "alternating=False, but AlternatingSampler is alternating; use GpuSampler"),
        (NoOverlapAlternatingSampler, GPU, "use GpuSampler, or leave the key out"),
    ],
)
def test_affinity_for_another_kind_of_sampler_is_refused(
    cls: type[BaseSampler], given: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the text is looked at below)
        sampler_of(cls).initialize(CategoricalPgAgent(), given, seed=0)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("cls", "given", "device"),
    [
        (GpuSampler, GPU, torch.device("cuda:0")),
        (SerialSampler, GPU, torch.device("cuda:0")),
        (AlternatingSampler, ALTERNATING, torch.device("cuda:0")),
        (AsyncGpuSampler, ASYNC, (torch.device("cuda:1"), torch.device("cuda:2"))),
        (AsyncGpuSampler, GPU, torch.device("cuda:0")),
        (CpuSampler, GPU, None),  # it acts in its workers: the GPU is the learner's
        (AsyncCpuSampler, ASYNC_CPU, None),
        (GpuSampler, CPU, None),
    ],
)
def test_cuda_idx_is_the_device_of_the_sampler(
    cls: type[BaseSampler], given: dict[str, Any], device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    settings = sampler_of(cls)._config.placed(cls.__name__, cls.layout, Affinity.of(given))
    assert settings.options.device == device


def test_two_devices_for_one_sampler_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="affinity selects cuda:0, but device='cuda:1'; make them the same"):
        sampler_of(GpuSampler, device="cuda:1").initialize(CategoricalPgAgent(), GPU, seed=0)


@pytest.mark.skipif(torch.cuda.device_count() > 0, reason="there is a GPU")
def test_missing_gpu_is_a_one_sentence_error() -> None:
    agent, config = CategoricalPgAgent(), RunnerConfig(n_steps=4, seed=0)
    for refused in (
        lambda: sampler_of(GpuSampler, device="cuda:0"),
        lambda: sampler_of(GpuSampler).initialize(agent, GPU, seed=0),
        lambda: MinibatchRl(A2C(), agent, sampler_of(CpuSampler), config, GPU, logger=Logger()),
        lambda: agent.to_device("cuda"),
    ):
        with pytest.raises(ValueError, match=r"^[^\n]* does not exist \(torch sees 0 GPUs here[^\n]*$"):
            refused()


def test_rlpyt_affinity_dict_pins_a_run() -> None:
    sampler = CpuSampler("CartPole-v1", batch_T=2, batch_B=2)
    given, config = (
        {**CPU, "set_affinity": False},
        RunnerConfig(n_steps=8, seed=0),
    )  # pinned, this process would stay so
    runner = MinibatchRl(A2C(), CategoricalPgAgent(), sampler, config, given, logger=Logger())
    runner.train()
    assert runner.counters.steps == 8
