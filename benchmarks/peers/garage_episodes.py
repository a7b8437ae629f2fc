"""garage's samplers of whole episodes beside headrace's: the same CartPole, the same policy, in turn, in one process.

    python -m pip install --no-deps --target ~/garage garage==2021.3.0
    python benchmarks/peers/garage_episodes.py --garage ~/garage

The folder must lie outside the repository. garage's last release asks for versions that this Python does not have (gym
0.17.2, torch < 1.8), so it is installed without them: its samplers and workers need NumPy alone. Modules that its files
import besides, and that are missing, are replaced by empty ones.

`garage` is its `LocalSampler` with one `VecWorker` of 8 environments, or one `DefaultWorker`, on an environment with
garage's interface that calls Gymnasium's. `the same policy` is headrace's `LocalSampler` with the same worker and the
same policy object, an MLP 64-64 in torch; `its own agent` has headrace's `CategoricalPgAgent`, whose network is as
large and which records values and log-probs besides. Printed: the median CPU time per step that is returned, how
many times as much garage takes, with a bootstrap interval of 95 %, and the mean length of the episodes of the three.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import distributions, version
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from worlds import WORLDS

from headrace.agents.pg import CategoricalPgAgent
from headrace.insight.turns import ratio_of, take_turns, timed_turn
from headrace.samplers import DefaultWorker, LocalSampler, VecWorker

#: What garage's files import, and its samplers do not use.
UNUSED = ("akro", "dowel", "gym", "ray", "scipy", "setproctitle", "tensorflow")
LIMIT = 500  # steps of an episode
WORKERS = ("VecWorker", "DefaultWorker")


class EmptyModule(ModuleType):
    """Has an empty class under every name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = type(name, (), {})
        setattr(self, name, value)
        return value


class EmptyModules(MetaPathFinder, Loader):
    """Makes empty modules of `UNUSED`, and of all modules in them."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if fullname.split(".")[0] in UNUSED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return EmptyModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class MlpPolicy:
    """An MLP 64-64 over four numbers, with garage's interface; samples as garage's policies do."""

    def __init__(self) -> None:
        tanh, linear = torch.nn.Tanh, torch.nn.Linear
        self._network = torch.nn.Sequential(linear(4, 64), tanh(), linear(64, 64), tanh(), linear(64, 2))

    def reset(self, do_resets: Any = None) -> None:
        pass

    def get_action(self, observation: np.ndarray) -> tuple[Any, dict[str, Any]]:
        actions, infos = self.get_actions(observation[None])
        return actions[0], {name: rows[0] for name, rows in infos.items()}

    def get_actions(self, observations: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        with torch.no_grad():
            logits = self._network(torch.as_tensor(observations))
            actions = torch.distributions.Categorical(logits=logits).sample()
        return actions.numpy(), {"logits": logits.numpy()}

    def get_param_values(self) -> dict[str, Any]:
        return dict(self._network.state_dict())

    def set_param_values(self, params: dict[str, Any]) -> None:
        self._network.load_state_dict(params)


def garage_env(garage: Any, env: gym.Env[Any, Any]) -> Any:
    """Returns an environment with garage's interface, which calls Gymnasium's."""
    kinds = garage.StepType

    class Adapted(garage.Environment):  # type: ignore[misc]
        observation_space, action_space = env.observation_space, env.action_space
        spec = garage.EnvSpec(env.observation_space, env.action_space, LIMIT)
        render_modes: Sequence[str] = ()

        def __init__(self) -> None:
            self._env = env

        def reset(self) -> Any:
            return self._env.reset()

        def step(self, action: Any) -> Any:
            observation, reward, terminated, truncated, info = self._env.step(action)
            kind = kinds.TERMINAL if terminated else kinds.TIMEOUT if truncated else kinds.MID
            return garage.EnvStep(self.spec, action, reward, observation, info, kind)

        def render(self, mode: str) -> None:
            pass

        def visualize(self) -> None:
            pass

        def close(self) -> None:
            pass

    return Adapted()


def garage_sampler(garage: Any, worker: str, env: gym.Env[Any, Any], policy: MlpPolicy) -> Any:
    samplers = importlib.import_module("garage.sampler")
    return samplers.LocalSampler(
        policy,
        garage_env(garage, env),
        max_episode_length=LIMIT,
        n_workers=1,
        worker_class=getattr(samplers, worker),
        worker_args={"n_envs": 8} if worker == "VecWorker" else None,
    )


def own_sampler(worker: str, make: Callable[[], gym.Env[Any, Any]], agent: Any) -> LocalSampler:
    return LocalSampler(
        agent,
        make,
        max_episode_length=LIMIT,
        n_workers=1,
        worker_class=VecWorker if worker == "VecWorker" else DefaultWorker,
        seed=0,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--garage", type=Path, required=True, help="folder in which garage was installed")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a turn")
    parser.add_argument("--steps", type=int, default=4096, help="least number of steps of a call")
    args = parser.parse_args()
    folder = args.garage.expanduser().resolve()
    if folder.is_relative_to(Path(__file__).resolve().parents[2]):
        parser.error(f"--garage {folder} is inside the repository; choose a folder outside it")
    sys.path.append(str(folder))
    sys.meta_path.append(EmptyModules())  # the last to be asked, so what is installed is used
    garage = importlib.import_module("garage")
    torch.set_num_threads(1)

    def collecting(sampler: Any, found: list[float]) -> Callable[[], int]:
        def collect() -> int:
            lengths = sampler.obtain_samples(0, args.steps, None).lengths
            found.append(float(lengths.mean()))
            return int(lengths.sum())

        return collect

    (release,) = [one.version for one in distributions(path=[str(folder)]) if one.name == "garage"]
    print(f"garage {release}, torch {version('torch')}, numpy {version('numpy')}, gymnasium {version('gymnasium')}\n")
    print("| | garage, µs | the same policy, µs | garage / it | its own agent, µs | garage / it | episode length |")
    print("|---|---|---|---|---|---|---|")
    for worker in WORKERS:
        for world in ("plain", "make"):
            policy = MlpPolicy()
            samplers = {
                "garage": garage_sampler(garage, worker, WORLDS[world](), policy),
                "policy": own_sampler(worker, WORLDS[world], policy),
                "agent": own_sampler(worker, WORLDS[world], CategoricalPgAgent()),
            }
            lengths: dict[str, list[float]] = {name: [] for name in samplers}
            turns = take_turns(
                {
                    name: partial(timed_turn, collecting(sampler, lengths[name]), args.seconds)
                    for name, sampler in samplers.items()
                },
                args.rounds,
            )
            us = {name: [turn.cpu_us for turn in own] for name, own in turns.items()}
            middle = {name: f"{statistics.median(own):.1f}" for name, own in us.items()}
            ratios = {name: ratio_of(us["garage"], us[name]) for name in ("policy", "agent")}
            steps = ", ".join(f"{statistics.mean(own):.0f}" for own in lengths.values())
            print(
                f"| {worker}, {world} | {middle['garage']} | {middle['policy']} | {ratios['policy']} | "
                f"{middle['agent']} | {ratios['agent']} | {steps} |",
                flush=True,
            )
            for sampler in samplers.values():
                sampler.shutdown_worker()


if __name__ == "__main__":
    main()
