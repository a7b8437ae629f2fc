"""Runs an environment of another package in three samplers, with a Python that has the package.

`python -m tests.package_envs NAME` prints a line of JSON: {"error": …}, or {"different": …}, which has by sampler the
paths of batches that differ for the same seed; "again" is a second `SerialSampler`.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from headrace.agents import Agent
from headrace.agents.pg import CategoricalPgAgent, GaussianPgAgent
from headrace.buffers.samples import Samples
from headrace.buffers.tree import tree_paths
from headrace.errors import one_line
from headrace.samplers import AlternatingSampler, BaseSampler, CpuSampler, SerialSampler, TrajInfo

Batches = list[tuple[Samples, Sequence[TrajInfo]]]


@dataclass(frozen=True)
class Case:
    """requirements: for pip; EnvCls, kwargs, options: of the samplers; discrete: whether actions are Discrete; repeats:
    whether the same seed gives the same batches.
    """

    requirements: str
    EnvCls: Any
    kwargs: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    discrete: bool = True
    repeats: bool = True


def mario() -> Any:
    """Makes an emulator of old gym in a wrapper whose `reset` takes no seed."""
    import gym_super_mario_bros
    from gym_super_mario_bros.actions import RIGHT_ONLY
    from nes_py.wrappers import JoypadSpace

    return JoypadSpace(gym_super_mario_bros.make("SuperMarioBros-v0"), RIGHT_ONLY)


def hallway() -> Any:
    """Makes an environment that renders with OpenGL, without a display."""
    import gymnasium
    import pyglet

    pyglet.options["headless"] = True
    import miniworld  # noqa: F401

    return gymnasium.make("MiniWorld-Hallway-v0")


def one_reward() -> Any:
    """Makes a multi-objective environment with the sum of its objectives as the reward."""
    import mo_gymnasium
    import numpy as np

    return mo_gymnasium.wrappers.LinearReward(mo_gymnasium.make("mo-mountaincar-v0"), weight=np.ones(3, np.float32))


CASES = {
    "minigrid": Case("minigrid", "minigrid:MiniGrid-DoorKey-5x5-v0", options={"pad": {"mission": 64}}),
    "highway-env": Case("highway-env", "highway_env:highway-fast-v0"),
    "popgym": Case("popgym", "popgym:popgym-RepeatPreviousEasy-v0"),
    "panda-gym": Case("panda-gym", "panda_gym:PandaReach-v3", discrete=False),
    "metaworld": Case("metaworld", "metaworld:Meta-World/MT1", {"env_name": "reach-v3", "seed": 1}, discrete=False),
    "gymnasium-robotics": Case("gymnasium-robotics", "gymnasium_robotics:FetchReach-v4", discrete=False),
    # Keeps its creatures in sets, in the order of their addresses.
    "crafter": Case("crafter", "crafter:Env", options={"isolate_rng": True}, repeats=False),
    "mo-gymnasium": Case("mo-gymnasium", one_reward),
    "nes-py": Case("nes-py<9 gym-super-mario-bros<9 numpy<2", mario),
    "miniworld": Case("miniworld", hallway, options={"start_method": "forkserver"}),
}


def batches_of(cls: type[BaseSampler], case: Case) -> Batches:
    """Returns two batches with the statistics of their episodes."""
    torch.manual_seed(0)
    agent: Agent = CategoricalPgAgent() if case.discrete else GaussianPgAgent()
    workers: dict[str, Any] = {} if cls is SerialSampler else {"n_workers": 2}
    sampler = cls(
        case.EnvCls, case.kwargs, batch_T=12, batch_B=4, max_decorrelation_steps=5, deterministic=True,
        **workers, **case.options,
    )  # fmt: skip
    with sampler.initialize(agent, seed=1):
        return [(samples.copy(), list(infos)) for samples, infos in map(sampler.obtain_samples, range(2))]


def differences(first: Batches, second: Batches) -> list[str]:
    """Returns the paths of the leaves that differ."""
    found = []
    for itr, ((samples, infos), (others, other_infos)) in enumerate(zip(first, second, strict=True)):
        for (path, leaf), (_, other) in zip(tree_paths(samples), tree_paths(others), strict=True):
            if leaf.shape != other.shape or not torch.equal(leaf, other):
                found.append(f"batch {itr}{path}")
        if [(info.Length, info.Return) for info in infos] != [(info.Length, info.Return) for info in other_infos]:
            found.append(f"batch {itr} episodes")
    return found


def report(case: Case) -> dict[str, Any]:
    try:
        first = batches_of(SerialSampler, case)
        others = {"again": SerialSampler, "CpuSampler": CpuSampler, "AlternatingSampler": AlternatingSampler}
        return {"different": {name: differences(first, batches_of(cls, case)) for name, cls in others.items()}}
    except Exception as error:
        return {"error": one_line(error)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    answer = json.dumps(report(CASES[sys.argv[1]]))
    print(answer, flush=True)
    os._exit(0)  # some of these packages crash in their exit handlers
