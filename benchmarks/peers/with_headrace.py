"""headrace's samplers. Imported by an interpreter that has headrace, and `make_envpool` by one that has EnvPool too."""

from __future__ import annotations

from typing import Any

from loop import Collect
from worlds import ENV_IDS, WORKERS, WORLDS, T, torch_threads

from headrace.agents.pg import CategoricalPgAgent
from headrace.envs import VectorEnvs, make_envpool
from headrace.samplers import AlternatingSampler, BaseSampler, CpuSampler, GpuSampler, SerialSampler

SAMPLERS: dict[str, type[BaseSampler]] = {
    "serial": SerialSampler,
    "cpu": CpuSampler,
    "gpu": GpuSampler,
    "alternating": AlternatingSampler,
    "vector": SerialSampler,
    "envpool": SerialSampler,
    "envpool-cpu": CpuSampler,
}


def collector(mode: str, world: str, B: int) -> Collect:
    """mode: serial, cpu, gpu, alternating; vector and envpool: a SerialSampler of a vector environment;
    envpool-cpu: a CpuSampler whose workers have one each.
    """
    env_cls: Any = WORLDS[world]
    env_kwargs: dict[str, Any] = {}
    if mode == "vector":
        env_cls = VectorEnvs(ENV_IDS[world])
    elif mode in ("envpool", "envpool-cpu"):
        env_cls = VectorEnvs(make_envpool)
        n_threads = torch_threads(world) if mode == "envpool" else 1
        env_kwargs = {"task_id": ENV_IDS[world], "config": {"num_threads": n_threads}}
    n_workers = WORKERS if mode.endswith("cpu") else max(1, WORKERS - 1)
    sampler = SAMPLERS[mode](env_cls, env_kwargs, batch_T=T, batch_B=B, n_workers=n_workers)
    sampler.initialize(CategoricalPgAgent(), seed=0, bootstrap_value=True)
    itr = 0

    def collect(n_batches: int) -> int:
        nonlocal itr
        steps = 0
        for _ in range(n_batches):
            samples, _ = sampler.obtain_samples(itr)
            steps += int(samples.env.valid.sum())
            itr += 1
        return steps

    return collect
