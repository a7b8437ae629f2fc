"""DDPG, TD3 and SAC end to end beside Stable-Baselines3: environment steps with one update each.

    python -m venv ~/peers/sb3 && ~/peers/sb3/bin/pip install torch "stable-baselines3==2.9.*" "gymnasium[mujoco]"
    python benchmarks/qpg.py --sb3-python ~/peers/sb3/bin/python --algos sac td3

Both learn in HalfCheetah-v5 with batches of 256, networks of 256-256 and one torch thread, in a process each, and
take turns: A B, B A, … A turn is `--steps` environment steps and as many updates. Printed are medians over the turns of
wall-clock and CPU time per step, and of the ratios of neighbouring turns, with their range.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

ENV = "HalfCheetah-v5"
#: Environment steps before the first turn, with random actions and without updates.
FIRST = 1024


def headrace_learner(algo: str) -> Callable[[int], None]:
    """Returns a function that trains for so many steps."""
    from headrace.agents.qpg import DdpgAgent, SacAgent, Td3Agent
    from headrace.algos.qpg import DDPG, SAC, TD3, DDPGConfig, SACConfig, TD3Config
    from headrace.samplers import SerialSampler

    agent_cls, algo_cls, config_cls = {
        "ddpg": (DdpgAgent, DDPG, DDPGConfig),
        "td3": (Td3Agent, TD3, TD3Config),
        "sac": (SacAgent, SAC, SACConfig),
    }[algo]
    sampler = SerialSampler(ENV, batch_T=8, batch_B=4, max_decorrelation_steps=0)
    agent: Any = agent_cls(random_itr_max=FIRST // 32)
    learner: Any = algo_cls(config_cls(min_steps_learn=FIRST + 1))
    sampler.initialize(agent, seed=0)
    learner.initialize(agent, n_itr=10**6, batch_spec=sampler.batch_spec)
    itr = 0

    def train(n_steps: int) -> None:
        nonlocal itr
        for _ in range(n_steps // 32):
            agent.sample_mode(itr)
            learner.optimize_agent(itr, sampler.obtain_samples(itr)[0])
            itr += 1

    return train


def sb3_learner(algo: str) -> Callable[[int], None]:
    """Returns a function that trains for so many steps."""
    import gymnasium
    import numpy as np
    import stable_baselines3
    from stable_baselines3.common.noise import NormalActionNoise

    noise = None if algo == "sac" else NormalActionNoise(np.zeros(6), np.full(6, 0.1))
    model = getattr(stable_baselines3, algo.upper())(
        "MlpPolicy",
        gymnasium.make(ENV),
        batch_size=256,
        learning_starts=FIRST,
        policy_kwargs={"net_arch": [256, 256]},
        action_noise=noise,
        seed=0,
    )

    def train(n_steps: int) -> None:
        model.learn(n_steps, reset_num_timesteps=False)

    return train


def serve(library: str, algo: str) -> None:
    """Trains for as many steps as each line of standard input says; answers with seconds, wall and CPU."""
    import torch

    torch.set_num_threads(1)
    train = {"headrace": headrace_learner, "sb3": sb3_learner}[library](algo)
    train(FIRST)
    train(128)
    print("ready", flush=True)
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        train(int(line))
        print(time.perf_counter() - wall, time.process_time() - cpu, flush=True)


@contextmanager
def started(python: str, library: str, algo: str) -> Iterator[Callable[[int], tuple[float, float]]]:
    """Starts a process that trains; yields a function that runs a turn and returns its seconds, wall and CPU."""
    command = [python, __file__, "--serve", library, "--algos", algo]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        to, answers = process.stdin, process.stdout
        if answers.readline() != "ready\n":
            raise SystemExit(f"{library} did not start with {python}")

        def turn(n_steps: int) -> tuple[float, float]:
            print(n_steps, file=to, flush=True)
            wall, cpu = map(float, answers.readline().split())
            return wall, cpu

        yield turn
        to.close()


def compare(algo: str, args: argparse.Namespace) -> None:
    """Prints a row for an algorithm."""
    times: dict[str, list[tuple[float, float]]] = {"headrace": [], "sb3": []}
    with started(sys.executable, "headrace", algo) as ours, started(args.sb3_python, "sb3", algo) as theirs:
        turns = {"headrace": ours, "sb3": theirs}
        for number in range(args.turns):
            for library in sorted(turns, reverse=bool(number % 2)):
                times[library].append(turns[library](args.steps))
    for index, kind in enumerate(("wall", "CPU")):
        medians = {name: statistics.median(one[index] for one in taken) for name, taken in times.items()}
        ratios = sorted(sb3[index] / own[index] for own, sb3 in zip(times["headrace"], times["sb3"], strict=True))
        said = ", ".join(f"{name} {1e3 * median / args.steps:.2f} ms" for name, median in medians.items())
        print(
            f"{algo:5} {kind:4} per step: {said}; ratio {statistics.median(ratios):.2f} "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f})",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--algos", nargs="+", choices=("ddpg", "td3", "sac"), default=["sac", "td3", "ddpg"])
    parser.add_argument("--sb3-python", default=sys.executable, help="interpreter that has Stable-Baselines3")
    parser.add_argument("--steps", type=int, default=256, help="environment steps of a turn, a multiple of 32")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--serve", choices=("headrace", "sb3"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.algos[0])
        return
    for algo in args.algos:
        compare(algo, args)


if __name__ == "__main__":
    main()
