"""How close a sampler comes to the limit of its parts, all measured in one run, interleaved.

    python benchmarks/sampling.py --env CartPole-v1 --sampler serial --T 64 --B 64
    python benchmarks/sampling.py --env CartPole-v1 --sampler cpu --T 64 --B 64 --W 2
    python benchmarks/sampling.py --env busy:100 --sampler cpu --T 64 --B 16 --W 2

Printed, each the median over the repeats (and the quartiles):

    t_e    µs per step of the bare environment, resets included, B environments stepped in turn
    t_pi   µs per call of the agent's own `step` on the rows one process acts for
    X*     the limit, steps/s: serial B / (B t_e + t_pi(B)); cpu: W independent SerialSamplers of B/W, no coupling
    X0     serial only: the bare loop, a row of environment steps and `agent.step` in turn, nothing recorded or checked.
           Below X*, because each finds its caches full of the other's code (benchmarks/cold_caches.py)
    X      the sampler, steps/s
    eta    X / X*, of the same repeat
    omega  1/X − 1/X*, µs per step
    omega0 1/X − 1/X0, µs per step

An environment `busy:N` computes for N µs a step, `busy:N:variable` for N µs on average, exponentially distributed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from headrace import Affinity
from headrace.agents.pg import CategoricalPgAgent, PgAgent
from headrace.buffers.tree import tree_map, tree_to_torch
from headrace.envs.spaces import action_decoder
from headrace.processes.affinity import pin
from headrace.samplers import BaseSampler, CpuSampler, SerialSampler
from headrace.types import StepInputs


class BusyEnv(gym.Env[np.ndarray, np.int64]):
    """Computes for `us` microseconds a step, or for so long on average; episodes of 200 steps."""

    def __init__(self, us: float, variable: bool = False) -> None:
        self.observation_space = gym.spaces.Box(-1, 1, (4,), np.float32)
        self.action_space = gym.spaces.Discrete(2)
        self._seconds = us * 1e-6
        self._variable = variable

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._n = 0
        return np.zeros(4, np.float32), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        begin = time.perf_counter()
        end = begin + (self.np_random.exponential(self._seconds) if self._variable else self._seconds)
        while time.perf_counter() < end:
            pass
        self._n += 1
        return np.zeros(4, np.float32), 1.0, False, self._n == 200, {}


def env_of(name: Any) -> Any:
    if not isinstance(name, str) or not name.startswith("busy:"):
        return name
    _, us, *how = name.split(":")
    return partial(BusyEnv, float(us), how == ["variable"])


def bare_step_seconds(env_cls: Any, B: int, rows: int) -> Callable[[], float]:
    """Seconds per step of B bare environments stepped row by row, resets included."""
    envs: list[Any] = [env_cls() if callable(env_cls) else gym.make(env_cls) for _ in range(B)]
    actions = np.random.default_rng(0).integers(0, envs[0].action_space.n, (rows, B))
    rows_of_actions = [list(row) for row in actions]
    for seed, env in enumerate(envs):
        env.reset(seed=seed)

    def measure() -> float:
        begin = time.perf_counter()
        for row in rows_of_actions:
            for env, action in zip(envs, row, strict=True):
                _, _, terminated, truncated, _ = env.step(action)
                if terminated or truncated:
                    env.reset()
        return (time.perf_counter() - begin) / (rows * B)

    return measure


def policy_seconds(agent: CategoricalPgAgent, n: int, calls: int) -> Callable[[], float]:
    """Seconds per call of `agent.step` on n rows."""
    assert agent.spaces is not None
    space = agent.spaces.observation
    inputs = StepInputs(
        torch.from_numpy(np.stack([space.sample() for _ in range(n)])),
        torch.zeros(n, dtype=torch.int64),
        torch.zeros(n),
        torch.zeros(n, dtype=torch.bool),
        torch.rand(n, 1).clamp(0.01, 0.99),
    )

    def measure() -> float:
        begin = time.perf_counter()
        for _ in range(calls):
            with torch.inference_mode():
                agent.step(inputs, None)
        return (time.perf_counter() - begin) / calls

    return measure


def bare_loop_rate(
    env_cls: Any, agent: PgAgent, B: int, rows: int, env_info_keys: Mapping[str, Any] | None = None
) -> Callable[[], float]:
    """Steps per second of environments and `agent.step` in turn, with nothing around them.

    env_info_keys: the fields of infos to write into arrays, along with observations, rewards and ends, one environment
    after the other, as a careful user does with NumPy; None: nothing is recorded.
    """
    envs: list[Any] = [env_cls() if callable(env_cls) else gym.make(env_cls) for _ in range(B)]
    row = tree_map(lambda *one: np.stack(one), *[env.reset(seed=seed)[0] for seed, env in enumerate(envs)])
    space, zeros = envs[0].action_space, torch.zeros(B)
    decode = action_decoder(space)
    previous = torch.zeros((B, *space.shape), dtype=getattr(torch, str(space.dtype)))
    inputs = StepInputs(tree_to_torch(row), previous, zeros, zeros.bool(), torch.full((B, agent.noise_size), 0.5))
    fields = {name: np.zeros((B, *shape), dtype) for name, (dtype, shape) in (env_info_keys or {}).items()}
    rewards, ends = np.zeros(B, np.float32), np.zeros((2, B), np.bool_)

    def step(actions: Sequence[Any]) -> None:
        for env, action in zip(envs, actions, strict=True):
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()

    def step_and_record(actions: Sequence[Any]) -> None:
        for b, (env, action) in enumerate(zip(envs, actions, strict=True)):
            observation, rewards[b], ends[0, b], ends[1, b], info = env.step(action)
            for name, field in fields.items():
                field[b] = info[name]
            if ends[0, b] or ends[1, b]:
                observation, _ = env.reset()
            if isinstance(observation, dict):
                for name, part in observation.items():
                    row[name][b] = part
            else:
                row[b] = observation

    step_row = step if env_info_keys is None else step_and_record

    def measure() -> float:
        begin = time.perf_counter()
        for _ in range(rows):
            with torch.inference_mode():
                actions = decode(agent.step(inputs, None).action.numpy())
            step_row(actions)
        return rows * B / (time.perf_counter() - begin)

    return measure


def collect_seconds(sampler: BaseSampler, batches: int) -> float:
    begin = time.perf_counter()
    for itr in range(batches):
        sampler.obtain_samples(itr)
    return time.perf_counter() - begin


def independent_process(pipe: Connection, env_cls: Any, T: int, B: int, cpus: tuple[int, ...]) -> None:
    """A SerialSampler on its own; runs as many batches as it is told and answers with the seconds they took."""
    pin(cpus)
    torch.set_num_threads(1)
    with SerialSampler(env_cls, batch_T=T, batch_B=B).initialize(CategoricalPgAgent(), seed=cpus[0]) as sampler:
        collect_seconds(sampler, 3)
        pipe.send(True)
        while (batches := pipe.recv()) is not None:
            pipe.send(collect_seconds(sampler, batches))


class Independent:
    """W processes that know nothing of each other: the limit of a parallel sampler with an agent in each worker."""

    def __init__(self, env_cls: Any, T: int, widths: list[int], cpus: list[tuple[int, ...]]) -> None:
        context = multiprocessing.get_context("fork")
        self._steps = [T * width for width in widths]
        self._pipes, self._processes = [], []
        for width, group in zip(widths, cpus, strict=True):
            ours, theirs = context.Pipe()
            process = context.Process(target=independent_process, args=(theirs, env_cls, T, width, group), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)
        for pipe in self._pipes:
            pipe.recv()

    def rate(self, batches: int) -> float:
        """Steps per second of all together."""
        for pipe in self._pipes:
            pipe.send(batches)
        return sum(batches * steps / pipe.recv() for steps, pipe in zip(self._steps, self._pipes, strict=True))

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join(5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--sampler", choices=["serial", "cpu"], default="serial")
    parser.add_argument("--T", type=int, default=64)
    parser.add_argument("--B", type=int, default=64)
    parser.add_argument("--W", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batches", type=int, default=10, help="per repeat")
    args = parser.parse_args()
    torch.set_num_threads(1)
    env_cls, agent = env_of(args.env), CategoricalPgAgent()
    options: dict[str, Any] = {"batch_T": args.T, "batch_B": args.B}
    independent = None
    n_workers = args.W if args.sampler == "cpu" else 1
    affinity = Affinity.one_core_each(n_workers)
    if args.sampler == "cpu":
        widths = [args.B // args.W + (w < args.B % args.W) for w in range(args.W)]
        assert affinity.workers_cpus is not None
        independent = Independent(env_cls, args.T, widths, list(affinity.workers_cpus))
        sampler: BaseSampler = CpuSampler(env_cls, n_workers=args.W, **options)
    else:
        sampler = SerialSampler(env_cls, **options)
    found: dict[str, list[float]] = {name: [] for name in ("t_e", "t_pi", "X*", "X0", "X", "eta", "omega", "omega0")}
    with sampler.initialize(agent, affinity=affinity, seed=0):
        rows = max(8, min(args.T, 64))
        bare = bare_step_seconds(env_cls, args.B, rows)
        policy = policy_seconds(agent, -(-args.B // n_workers), 200)
        bare_loop = bare_loop_rate(env_cls, agent, args.B, rows)
        collect_seconds(sampler, 3)
        for measure in (bare, policy):
            measure()
        for _ in range(args.repeats):
            t_e, t_pi = bare(), policy()
            limit = independent.rate(args.batches) if independent else args.B / (args.B * t_e + t_pi)
            rate = args.batches * args.T * args.B / collect_seconds(sampler, args.batches)
            loop_rate = bare_loop()
            over, over_loop = (1e6 / rate - 1e6 / limit), (1e6 / rate - 1e6 / loop_rate)
            row = (t_e * 1e6, t_pi * 1e6, limit, loop_rate, rate, rate / limit, over, over_loop)
            for name, value in zip(found, row, strict=True):
                found[name].append(value)
        report = sampler.timing()
    if independent:
        independent.close()
    print(f"{args.env}, {args.sampler}, T={args.T}, B={args.B}" + (f", W={args.W}" if independent else ""))
    units = {"t_e": "µs", "t_pi": "µs", "eta": "", "omega": "µs/step", "omega0": "µs/step"}
    for name, values in found.items():
        if independent and name in ("X0", "omega0"):
            continue
        low, middle, high = statistics.quantiles(values, n=4)
        unit = units.get(name, "steps/s")
        digits = 0 if unit == "steps/s" else 3
        print(f"  {name:6} {middle:>12,.{digits}f} {unit:8} ({low:,.{digits}f} … {high:,.{digits}f})")
    print(f"  {report}")


if __name__ == "__main__":
    main()
