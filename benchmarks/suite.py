"""Every sampler on every kind of environment, beside the bare loop of the same layout, in turn.

    python benchmarks/suite.py --out suite.json                 # all of it, three quarters of an hour on two cores
    python benchmarks/suite.py --out suite.json --quick         # a small part, minutes
    python benchmarks/suite.py --out suite.json --rounds 7 --seconds 1      # narrower intervals, hours
    python benchmarks/suite.py --out suite.json --envs CartPole-v1 dict --samplers serial cpu --B 64

X0 is the bare loop: environments and `agent.step` in turn, nothing recorded, checked or named. serial: in one process
(`sampling.py`); cpu: in W processes that know nothing of each other; gpu and alternating: a bare pair (`bare_pair.py`),
for actions of one number and observations that are vectors. Vector environments: the vector environment and
`agent.step` in turn (`vector_envs.py`). Asynchronous samplers have no learner to wait for here, and are compared with
the loop of the sampler that they run. Where there is no bare loop of the same layout, X0 is that of `serial`.

X1 is the bare loop of `serial` that also writes observations, rewards, ends and the declared fields of infos into
arrays with NumPy, as a careful user does; there is none for vector environments.

Batches are of 64 time steps, or of fewer where one would take longer than a turn.

Printed and written as JSON: steps per second, CPU µs per step, and X / X0 with a bootstrap interval of 95 %, of
`serial` also X / X1; for each environment a picture of X / X0 beside the JSON file. Environments that lack a package
are named and left out.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from bare_pair import BarePair
from plain_cartpole import PlainCartPole
from sampling import BusyEnv, bare_loop_rate, env_of
from vector_envs import bare_loop_seconds, vector_cartpole

from headrace import Affinity
from headrace.agents.pg import CategoricalPgAgent, GaussianPgAgent, PgAgent
from headrace.cli.place import SAMPLERS
from headrace.envs import VectorEnvs, make_atari, make_envpool
from headrace.insight.bench import collecting
from headrace.insight.turns import Turn, ratio_of, take_turns, timed_turn
from headrace.plotting import plot_bars
from headrace.processes.affinity import pin
from headrace.types import EnvSpaces

MOST_T = 64


class DictEnv(gym.Env[dict[str, Any], np.int64]):
    """Observations of eight arrays, of 4 numbers each."""

    def __init__(self) -> None:
        box = gym.spaces.Box(-1, 1, (4,), np.float32)
        parts: Any = {f"part{index}": box for index in range(8)}
        self.observation_space = gym.spaces.Dict(parts)
        self.action_space = gym.spaces.Discrete(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        self._n = 0
        return self._observation(), {}

    def step(self, action: np.int64) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self._n += 1
        return self._observation(), 1.0, False, self._n == 200, {}

    def _observation(self) -> dict[str, Any]:
        return {f"part{index}": np.zeros(4, np.float32) for index in range(8)}


class InfoEnv(PlainCartPole):
    """Says sixteen things of each step, as simulators of robots do."""

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, _ = super().step(action)
        return observation, reward, terminated, truncated, {f"term{index}": reward for index in range(16)}


@dataclass(frozen=True)
class World:
    """An environment as samplers take it. vector: makes the vector environment of the bare loop; None: single ones."""

    env_cls: Any
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    vector: Callable[..., Any] | None = None
    continuous: bool = False


def atari_vector(num_envs: int) -> Any:
    from ale_py.vector_env import AtariVectorEnv

    return AtariVectorEnv("pong", num_envs=num_envs, num_threads=1)


def pool(num_envs: int) -> Any:
    return make_envpool(num_envs, task_id="CartPole-v1", config={"num_threads": 1})


WORLDS: dict[str, World] = {
    "null": World(partial(BusyEnv, 0.0)),
    **{f"busy:{us}{how}": World(env_of(f"busy:{us}{how}")) for us in (10, 100, 1000) for how in ("", ":variable")},
    "plain CartPole": World(PlainCartPole),
    "CartPole-v1": World("CartPole-v1"),
    "CartPole vector": World(VectorEnvs("CartPole-v1"), vector=vector_cartpole),
    "CartPole EnvPool": World(VectorEnvs(pool), vector=pool),
    "Pendulum-v1": World("Pendulum-v1", continuous=True),
    "HalfCheetah-v5": World("HalfCheetah-v5", continuous=True),
    "Pong": World(make_atari),
    "Pong vector": World(VectorEnvs(atari_vector), vector=atari_vector),
    "dict": World(DictEnv),
    "info": World(InfoEnv, options={"env_info_keys": {f"term{index}": ("float32", ()) for index in range(16)}}),
}
QUICK = ("null", "busy:100:variable", "CartPole-v1", "CartPole vector", "Pendulum-v1", "dict", "info")
#: The bare loop of `serial` that records.
RECORDING = "X1"
#: The layout whose bare loop a sampler is compared with.
LAYOUTS = {
    "serial": "serial",
    "cpu": "cpu",
    "gpu": "gpu",
    "alternating": "alternating",
    "alternating-no-overlap": "gpu",
}


def layout_of(sampler: str) -> str:
    return LAYOUTS[sampler.removeprefix("async-")]


def new_agent(world: World) -> PgAgent:
    return GaussianPgAgent() if world.continuous else CategoricalPgAgent()


def spaces_here(world: World) -> EnvSpaces:
    """Returns the spaces; making the environment raises what is missing."""
    if world.vector is not None:
        envs = world.vector(num_envs=1)
        return EnvSpaces(envs.single_observation_space, envs.single_action_space)
    env = gym.make(world.env_cls) if isinstance(world.env_cls, str) else world.env_cls()
    return EnvSpaces(env.observation_space, env.action_space)


def acting(world: World, spaces: EnvSpaces) -> Any:
    agent = new_agent(world)
    agent.initialize(spaces, seed=0)
    agent.sample_mode(0)
    return agent


def bare_rate(
    world: World, spaces: EnvSpaces, B: int, rows: int, env_info_keys: Mapping[str, Any] | None = None
) -> Callable[[], float]:
    """Steps per second of the bare loop in one process; env_info_keys: see `bare_loop_rate`."""
    agent = acting(world, spaces)
    if world.vector is None:
        return bare_loop_rate(world.env_cls, agent, B, rows, env_info_keys)
    seconds = bare_loop_seconds(agent, B, rows, world.vector)
    return lambda: rows * B / seconds()


def apart_process(pipe: Connection, world: World, spaces: EnvSpaces, B: int, rows: int, cpus: tuple[int, ...]) -> None:
    pin(cpus)
    torch.set_num_threads(1)
    rate = bare_rate(world, spaces, B, rows)
    rate()
    while pipe.recv():
        pipe.send(rate())


class Apart:
    """W processes with a bare loop each, for their shares of the columns; they run at the same time."""

    def __init__(self, world: World, spaces: EnvSpaces, B: int, W: int, rows: int) -> None:
        context = multiprocessing.get_context("fork")
        self._pipes, self._processes = [], []
        placed = Affinity.one_core_each(W).workers_cpus or ()
        for worker, cpus in enumerate(placed):
            ours, theirs = context.Pipe()
            width = B // W + (worker < B % W)
            process = context.Process(
                target=apart_process, args=(theirs, world, spaces, width, rows, cpus), daemon=True
            )
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def rate(self) -> float:
        """Steps per second of all together."""
        for pipe in self._pipes:
            pipe.send(True)
        return sum(pipe.recv() for pipe in self._pipes)

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.send(False)
        for process in self._processes:
            process.join(5)


def pair_rate(world: World, agent: Any, B: int, W: int, n_groups: int, rows: int) -> float:
    """Steps per second of a bare pair, which is made anew each time: its processes never sleep."""
    pair = BarePair(world.env_cls, B, W, n_groups, agent)
    try:
        pair.steps_per_second(max(1, rows // 4))
        return pair.steps_per_second(rows)
    finally:
        pair.close()


def suits_pair(world: World, spaces: EnvSpaces) -> bool:
    box = spaces.observation
    vector = isinstance(box, gym.spaces.Box) and box.dtype == np.float32 and len(box.shape) == 1
    return vector and world.vector is None and isinstance(spaces.action, gym.spaces.Discrete)


def as_turn(rate: float) -> Turn:
    """A turn of which only the steps per second are known."""
    return Turn(rate, 1.0, 0.0)


def bare_loops(
    world: World, spaces: EnvSpaces, B: int, W: int, rows: int, layouts: set[str], opened: ExitStack
) -> dict[str, Callable[[], Turn]]:
    """Returns a bare loop for each layout that has one."""
    loops = {"serial": bare_rate(world, spaces, B, rows)}
    if "cpu" in layouts:
        apart = Apart(world, spaces, B, W, rows)
        opened.callback(apart.close)
        loops["cpu"] = apart.rate
    if suits_pair(world, spaces):
        agent = acting(world, spaces)
        servers = max(1, W - 1)
        for layout, n_groups in (("gpu", 1), ("alternating", 2)):
            if layout in layouts:
                loops[layout] = partial(pair_rate, world, agent, B, servers, n_groups, rows)
    named = {f"X0 {layout}": rate for layout, rate in loops.items()}
    if world.vector is None and "serial" in layouts:
        named[RECORDING] = bare_rate(world, spaces, B, rows, world.options.get("env_info_keys", {}))
    return {name: lambda rate=rate: as_turn(rate()) for name, rate in named.items()}  # type: ignore[misc]


def measured(name: str, B: int, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields the figures of each sampler on one environment."""
    world, W = WORLDS[name], args.W
    spaces = spaces_here(world)
    with ExitStack() as opened:
        rate = bare_rate(world, spaces, B, 4)()
        rows = int(np.clip(args.seconds * rate / B, 4, 4096))  # so that a bare loop takes as long as a turn
        T = min(MOST_T, rows)
        contenders = bare_loops(world, spaces, B, W, rows, {layout_of(one) for one in args.samplers}, opened)
        for kind in args.samplers:
            served = not SAMPLERS[kind].layout.acts_in_workers and SAMPLERS[kind].layout.processes
            n_workers = min(B, max(1, W - 1) if served else W)
            device: dict[str, Any] = {"device": args.device} if served and args.device else {}
            sampler = SAMPLERS[kind](
                world.env_cls,
                world.env_kwargs,
                batch_T=T,
                batch_B=B,
                n_workers=n_workers,
                max_decorrelation_steps=0,
                **device,
                **world.options,
            )
            opened.enter_context(sampler.initialize(new_agent(world), seed=0, bootstrap_value=True))
            collect = collecting(sampler)
            collect()
            contenders[kind] = partial(timed_turn, collect, args.seconds)
        turns = take_turns(contenders, args.rounds)
    rates = {who: [turn.steps_per_second for turn in own] for who, own in turns.items()}
    for kind in args.samplers:
        x0 = f"X0 {layout_of(kind)}"
        beside = x0 if x0 in rates else "X0 serial"
        yield {
            "env": name,
            "T": T,
            "B": B,
            "sampler": kind,
            "beside": beside,
            "steps_per_second": statistics.median(rates[kind]),
            "X0": statistics.median(rates[beside]),
            "cpu_us": statistics.median(turn.cpu_us for turn in turns[kind]),
            "ratio": asdict(ratio_of(rates[kind], rates[beside])),
            "of_recording": asdict(ratio_of(rates[kind], rates[RECORDING]))
            if layout_of(kind) == "serial" and RECORDING in rates
            else None,
        }


def draw(found: list[dict[str, Any]], out: Path) -> None:
    """Draws X / X0 of every sampler, a picture for each environment."""
    for name in dict.fromkeys(one["env"] for one in found):
        here = [one for one in found if one["env"] == name]
        bars = {
            f"{one['sampler']}, B={one['B']}": tuple(one["ratio"][part] for part in ("middle", "low", "high"))
            for one in here
        }
        path = out.with_name(f"{out.stem}-{name.replace(' ', '-').replace(':', '-')}.png")
        plot_bars(bars, path, x_label="X / X0", title=name, note="intervals: bootstrap, 95 %", mark=1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", choices=list(WORLDS), metavar="ENV", help=", ".join(WORLDS))
    parser.add_argument("--samplers", nargs="+", choices=list(SAMPLERS), metavar="SAMPLER", help=", ".join(SAMPLERS))
    parser.add_argument("--B", type=int, nargs="+")
    parser.add_argument(
        "--W", type=int, default=len(os.sched_getaffinity(0)), help="worker processes; cores by default"
    )
    parser.add_argument("--rounds", type=int, help="3 by default; more make the intervals narrower")
    parser.add_argument("--seconds", type=float, help="of a turn; 0.4 by default, 0.2 with --quick")
    parser.add_argument("--device", help="of samplers with an action server")
    parser.add_argument("--quick", action="store_true", help="few environments, one B, short turns, no async samplers")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; the pictures lie beside it")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.envs = args.envs or list(QUICK if args.quick else WORLDS)
    args.samplers = args.samplers or list(LAYOUTS if args.quick else SAMPLERS)
    args.B = args.B or ([8] if args.quick else [8, 64])
    args.rounds = args.rounds or 3
    args.seconds = args.seconds or (0.2 if args.quick else 0.4)
    found: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    begin = time.perf_counter()
    for name in args.envs:
        for B in args.B:
            try:
                for one in measured(name, B, args):
                    found.append(one)
                    middle, low, high = one["ratio"].values()
                    print(
                        f"{name:18} B={B:<4d} {one['sampler']:24} {one['steps_per_second']:>10,.0f} steps/s, "
                        f"{one['cpu_us']:7.1f} CPU µs, {middle:.3f} ({low:.3f} … {high:.3f}) "
                        f"of {one['beside']} {one['X0']:,.0f}"
                        + (f", {one['of_recording']['middle']:.3f} of {RECORDING}" if one["of_recording"] else ""),
                        flush=True,
                    )
            except (ImportError, gym.error.Error) as error:
                missing[name] = str(error)
                print(f"{name}: left out, {error}", flush=True)
    args.out.write_text(json.dumps({"W": args.W, "missing": missing, "found": found}, indent=1))
    draw(found, args.out)
    print(f"{time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
