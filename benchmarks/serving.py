"""Samplers with an action server beside the limit of their parts, all measured in one run, interleaved.

    python benchmarks/serving.py --env CartPole-v1 --B 64 --W 1
    python benchmarks/serving.py --env CartPole-v1 --B 64 --W 2 4 --samplers gpu alternating
    python benchmarks/serving.py --env busy:200 --B 16 --W 2
    taskset -c 0 python benchmarks/serving.py --env CartPole-v1 --B 64 --W 1 2
    python benchmarks/serving.py --gap 1.0 --env busy:20 --B 16 --W 1

For each sampler and number of workers, medians over the repeats (and quartiles):

    t_e    µs per step of bare environments, B/W of them stepped in turn in each of W processes at once (so κ is in it)
    t_pi   µs per call of the agent's own `step`, on B rows and on B/2
    X*     the limit: gpu B / (B/W t_e + t_pi(B)); alternating B / max(B/W t_e, 2 t_pi(B/2)), and with W ≥ cores
           never more than C B / (B t_e + 2 t_pi(B/2)) on C cores
    X      the sampler, steps/s; eta: X / X*
    X0     gpu, alternating: the least that processes of this layout can do, see `benchmarks/bare_pair.py`

`--gap SECONDS` measures instead how long after the call of `obtain_samples` the first environment steps, with and
without such a gap before it. `--device` is where the agent acts.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from bare_pair import BarePair
from sampling import bare_step_seconds, collect_seconds, env_of, policy_seconds

from headrace.agents.pg import CategoricalPgAgent
from headrace.processes.affinity import usable_cores
from headrace.samplers import (
    AlternatingSampler,
    BaseSampler,
    CpuSampler,
    GpuSampler,
    NoOverlapAlternatingSampler,
    SerialSampler,
)

SAMPLERS: dict[str, type[BaseSampler]] = {
    "serial": SerialSampler,
    "cpu": CpuSampler,
    "gpu": GpuSampler,
    "alternating": AlternatingSampler,
    "no-overlap": NoOverlapAlternatingSampler,
}


def stepping_process(pipe: Connection, env_name: Any, n: int, rows: int) -> None:
    measure = bare_step_seconds(env_of(env_name), n, rows)
    measure()
    while pipe.recv():
        pipe.send(measure())


class Stepping:
    """W processes that step B/W bare environments each, at the same time."""

    def __init__(self, env_name: Any, B: int, W: int, rows: int) -> None:
        context = multiprocessing.get_context("fork")
        self._pipes, self._processes = [], []
        for _ in range(W):
            ours, theirs = context.Pipe()
            process = context.Process(target=stepping_process, args=(theirs, env_name, -(-B // W), rows), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def seconds(self) -> float:
        """Per step, of the slowest."""
        for pipe in self._pipes:
            pipe.send(True)
        return max(pipe.recv() for pipe in self._pipes)

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.send(False)
        for process in self._processes:
            process.join(5)


def limit(name: str, B: int, W: int, t_e: float, t_pi: float, t_half: float) -> float:
    """Steps per second that the parts allow."""
    cores = usable_cores()
    if name == "serial":
        return B / (B * t_e + t_pi)
    if name == "cpu":
        return min(W, cores) * B / (B * t_e + W * t_pi)
    conserving = cores * B / (B * t_e + (t_pi if name == "gpu" else 2 * t_half))
    if name == "alternating":
        return min(B / max(B / W * t_e, 2 * t_half), conserving)
    return min(B / (B / W * t_e + t_pi), conserving)


def settle(sampler: BaseSampler) -> None:
    """Until it has noticed that the processes measured before it no longer run."""
    end = time.perf_counter() + 1.2
    while time.perf_counter() < end:
        collect_seconds(sampler, 1)


class Clocked(gym.Wrapper[Any, Any, Any, Any]):
    """Says in its info when it stepped."""

    def step(self, action: Any) -> Any:
        now = time.perf_counter()
        *answer, info = self.env.step(action)
        return (*answer, {**info, "at": now})


def first_step_seconds(sampler: BaseSampler, itr: int) -> float:
    begin = time.perf_counter()
    samples, _ = sampler.obtain_samples(itr)
    return float(samples.env.env_info["at"][0].min()) - begin


def measure_gap(args: argparse.Namespace) -> None:
    for name in args.samplers:
        for W in args.W:
            sampler = SAMPLERS[name](
                lambda: Clocked(gym.make(args.env) if not args.env.startswith("busy:") else env_of(args.env)()),
                batch_T=args.T,
                batch_B=args.B,
                n_workers=W,
                env_info_keys={"at": ("float64", ())},
            )
            with sampler.initialize(CategoricalPgAgent(), seed=0):
                collect_seconds(sampler, 3)
                at_once = [first_step_seconds(sampler, itr) for itr in range(30)]
                after_gap = []
                for itr in range(10):
                    time.sleep(args.gap)
                    after_gap.append(first_step_seconds(sampler, itr))
            print(
                f"{name:12} W={W}: first step after the call, median (worst): at once "
                f"{statistics.median(at_once) * 1e6:.0f} µs ({max(at_once) * 1e6:.0f}), after {args.gap:g} s "
                f"{statistics.median(after_gap) * 1e6:.0f} µs ({max(after_gap) * 1e6:.0f})"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--samplers", nargs="+", choices=sorted(SAMPLERS), default=["gpu", "alternating"])
    parser.add_argument("--T", type=int, default=64)
    parser.add_argument("--B", type=int, default=64)
    parser.add_argument("--W", type=int, nargs="+", default=[1])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--batches", type=int, default=8, help="per repeat")
    parser.add_argument("--gap", type=float)
    parser.add_argument("--device")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.gap is not None:
        measure_gap(args)
        return
    rows = max(8, min(args.T, 64))
    kinds = [(name, W) for name in args.samplers for W in (args.W if name != "serial" else [1])]
    stepping = {W: Stepping(args.env, args.B, W, rows) for W in {W for _, W in kinds}}
    agents = [CategoricalPgAgent() for _ in kinds]
    samplers = []
    for (name, W), agent in zip(kinds, agents, strict=True):
        device = {} if args.device is None or name == "cpu" else {"device": args.device}
        sampler = SAMPLERS[name](env_of(args.env), batch_T=args.T, batch_B=args.B, n_workers=W, **device)
        samplers.append(sampler.initialize(agent, seed=0))
        collect_seconds(sampler, 3)
    probe = CategoricalPgAgent()
    probe.initialize(agents[0].spaces, seed=0)  # type: ignore[arg-type]
    probe.sample_mode(0)
    whole, half = policy_seconds(probe, args.B, 200), policy_seconds(probe, -(-args.B // 2), 200)
    groups = {"gpu": 1, "alternating": 2}
    found: dict[tuple[str, int], list[tuple[float, ...]]] = {kind: [] for kind in kinds}
    for _ in range(args.repeats):
        for kind, sampler in zip(kinds, samplers, strict=True):
            name, W = kind
            t_e, t_pi, t_half = stepping[W].seconds(), whole(), half()
            bound = limit(name, args.B, W, t_e, t_pi, t_half)
            settle(sampler)
            rate = args.batches * args.T * args.B / collect_seconds(sampler, args.batches)
            bare = np.nan
            if name in groups:  # made anew each time: its processes never sleep
                pair = BarePair(env_of(args.env), args.B, W, groups[name], probe)
                pair.steps_per_second(args.T)
                bare = pair.steps_per_second(args.batches * args.T)
                pair.close()
            found[kind].append((t_e * 1e6, t_pi * 1e6, t_half * 1e6, bound, rate, rate / bound, bare, rate / bare))
    print(f"{args.env}, T={args.T}, B={args.B}, {usable_cores()} cores")
    for kind, sampler in zip(kinds, samplers, strict=True):
        name, W = kind
        t_e, t_pi, t_half, bound, rate, eta, bare, of_bare = np.median(found[kind], 0)
        etas, of_bares = (np.quantile([row[i] for row in found[kind]], [0.25, 0.75]) for i in (5, 7))
        print(
            f"  {name:12} W={W}: X {rate:>8,.0f} of {bound:>8,.0f} steps/s, "
            f"eta {eta:.3f} ({etas[0]:.3f} … {etas[1]:.3f}); t_e {t_e:.2f}, t_pi {t_pi:.0f}, half {t_half:.0f} µs"
        )
        print(f"      X0 {bare:,.0f}, X / X0 {of_bare:.3f} ({of_bares[0]:.3f} … {of_bares[1]:.3f})")
        print(f"      {sampler.timing()}")
        sampler.shutdown()
    for processes in stepping.values():
        processes.close()
    first = np.array([row[4] for row in found[kinds[0]]])
    for kind in kinds[1:]:
        ratios = np.array([row[4] for row in found[kind]]) / first
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        print(f"  {kind[0]} W={kind[1]} / {kinds[0][0]} W={kinds[0][1]}: {middle:.3f} ({low:.3f} … {high:.3f})")


if __name__ == "__main__":
    main()
