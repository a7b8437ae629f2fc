"""Samplers with an action server on a device, beside what environments and inference allow; run by `on_gpu.sh`.

    python benchmarks/on_gpu.py --out gpu.json
    python benchmarks/on_gpu.py --out gpu.json --device cpu --quick

For each network, environment, number of workers and sampler, in turn with the parts:

    environments   steps/s of bare environments, B/W of them in each of W processes at once
    inference      steps/s of `agent.step` on the device for B rows (alternating: B/2), with the copies there and back
    X              steps/s of the sampler, with `samples_device` on the device
    ratio          X / min(environments, inference), with a bootstrap interval of 95 %

Measurements end when their time is up; what was not reached is missing from the JSON file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from sampling import env_of
from serving import SAMPLERS, Stepping

from headrace.agents.pg import CategoricalPgAgent
from headrace.insight.bench import collecting
from headrace.insight.turns import ratio_of, take_turns, timed_turn
from headrace.processes.affinity import usable_cores
from headrace.types import EnvSpaces, StepInputs

T = 64
GROUPS = {"gpu": 1, "alternating": 2}


class Images(gym.Env[np.ndarray, np.int64]):
    """Four frames of 84 × 84, as of an Atari game, without a game; episodes of 200 steps."""

    observation_space = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    action_space: gym.spaces.Space[np.int64] = gym.spaces.Discrete(6)

    def __init__(self) -> None:
        self._frames = np.zeros((4, 84, 84), np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        self._n = 0
        return self._frames, {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._n += 1
        end = time.perf_counter() + 200e-6  # of one step of an Atari game, without its variation
        while time.perf_counter() < end:
            pass
        return self._frames, 1.0, False, self._n == 200, {}


#: Network → environment, which decides the agent's default network.
ENVS: dict[str, Any] = {"MLP": "CartPole-v1", "MLP, 100 µs": env_of("busy:100"), "CNN": Images}


@dataclass(frozen=True)
class Case:
    """One line. B: environments; W: workers."""

    network: str
    B: int
    W: int
    sampler: str


def spaces_of(env_cls: Any) -> EnvSpaces:
    env = gym.make(env_cls) if isinstance(env_cls, str) else env_cls()
    return EnvSpaces(env.observation_space, env.action_space)


def inference_rate(env_cls: Any, n: int, device: str) -> Callable[[], float]:
    """Steps per second of `agent.step` for n rows, with the copies to the device and back."""
    agent = CategoricalPgAgent()
    spaces = spaces_of(env_cls)
    agent.initialize(spaces, seed=0)
    agent.to_device(device)
    agent.sample_mode(0)
    assert agent.model is not None
    pinned = torch.device(device).type == "cuda"
    rows = torch.from_numpy(np.stack([spaces.observation.sample() for _ in range(n)]))
    rows = rows.pin_memory() if pinned else rows
    zeros = torch.zeros(n, device=device)
    noise = torch.full((n, agent.noise_size), 0.5, device=device)

    def rate() -> float:
        calls, begin = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - begin) < 0.3 or not calls:
            with torch.inference_mode():
                inputs = StepInputs(rows.to(device, non_blocking=True), zeros.long(), zeros, zeros.bool(), noise)
                agent.step(inputs, None).action.cpu()
            calls += 1
        return calls * n / elapsed

    return rate


def measured(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    env_cls = ENVS[case.network]
    stepping = Stepping(env_cls, case.B, case.W, 16)
    infer = inference_rate(env_cls, case.B // GROUPS[case.sampler], args.device)
    infer()
    sampler = SAMPLERS[case.sampler](
        env_cls,
        batch_T=T,
        batch_B=case.B,
        n_workers=case.W,
        device=args.device,
        samples_device=args.device,
        max_decorrelation_steps=0,
    )
    parts: list[tuple[float, float]] = []
    try:
        with sampler.initialize(CategoricalPgAgent(), seed=0, bootstrap_value=True):
            collect = collecting(sampler)
            collect()
            rates = []
            for _ in range(args.rounds):
                parts.append((case.W / stepping.seconds(), infer()))
                turns = take_turns({"sampler": partial(timed_turn, collect, args.seconds)}, 1)
                rates.append(turns["sampler"][0].steps_per_second)
            timing = sampler.timing()
    finally:
        stepping.close()
    limits = [min(part) for part in parts]
    return {
        **asdict(case),
        "device": args.device,
        "environments": statistics.median(part[0] for part in parts),
        "inference": statistics.median(part[1] for part in parts),
        "steps_per_second": statistics.median(rates),
        "ratio": asdict(ratio_of(rates, limits)),
        "timing": asdict(timing),
    }


def cases(quick: bool) -> list[Case]:
    """The most telling first, in case that time is up."""
    if quick:
        return [Case(network, 8, 1, sampler) for network in ("MLP", "CNN") for sampler in GROUPS]
    most = max(1, min(16, usable_cores()))
    workers = sorted({max(1, most - 1), max(1, most - 2), most}, key=lambda W: abs(W - (most - 1)))
    return [
        Case(network, B, W, sampler)
        for W in workers
        for network, B in (("CNN", 256), ("MLP", 256), ("MLP, 100 µs", 256), ("CNN", 1024), ("MLP", 1024))
        for sampler in GROUPS
        if B == 256 or workers[0] == W
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="of a turn")
    parser.add_argument("--limit", type=float, default=240.0, help="seconds after which no further case begins")
    args = parser.parse_args()
    args.rounds = args.rounds or (2 if args.quick else 3)
    args.seconds = args.seconds or (0.2 if args.quick else 1.0)
    torch.set_num_threads(1)
    end = time.monotonic() + args.limit
    found: list[dict[str, Any]] = []
    for case in cases(args.quick):
        if time.monotonic() > end:
            print(f"time is up before {case}")
            break
        one = measured(case, args)
        found.append(one)
        args.out.write_text(json.dumps({"device": args.device, "cores": usable_cores(), "found": found}, indent=1))
        middle, low, high = one["ratio"].values()
        parts = f"environments {one['environments']:>10,.0f}, inference {one['inference']:>10,.0f}"
        print(
            f"{case.network:12} B={case.B:<5d} W={case.W:<3d} {case.sampler:12} "
            f"{one['steps_per_second']:>9,.0f} steps/s, {parts}: {middle:.2f} ({low:.2f} … {high:.2f}) of the smaller",
            flush=True,
        )


if __name__ == "__main__":
    main()
