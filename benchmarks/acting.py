"""What acting for one row of a batch costs: by the agent's own `step`, and by an acting plan in NumPy and compiled.

    python benchmarks/acting.py --B 8 64

All three act for the same rows in one process and take turns batch by batch. CPU time, with what is recorded, and the
start of the batch divided among its rows. Caches are warm, so that between steps of environments all three take longer.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from headrace import compiled, numpy_acting
from headrace.agents.base import Agent
from headrace.agents.dqn import CategoricalDqnAgent, DqnAgent
from headrace.agents.pg import (
    CategoricalPgAgent,
    GaussianPgAgent,
    RecurrentCategoricalPgAgent,
    RecurrentGaussianPgAgent,
)
from headrace.buffers.samples import build_slot
from headrace.processes.status import Status
from headrace.rng import Stream
from headrace.samplers.inference.actor import Actor
from headrace.samplers.inference.policy import BatchPolicy
from headrace.samplers.inference.recorder import Recorder
from headrace.samplers.inference.spec import slot_spec
from headrace.types import ActingRows, BatchSpec, EnvSpaces

T = 64
SEEN = spaces.Box(-9, 9, (11,), np.float32)
DISCRETE = EnvSpaces(SEEN, spaces.Discrete(4))
BOX = EnvSpaces(SEEN, spaces.Box(-1, 1, (3,), np.float32))
NORMALIZED = {"normalize_observation": True}
AGENTS: dict[str, tuple[Callable[[], Agent], EnvSpaces]] = {
    "CategoricalPgAgent": (CategoricalPgAgent, DISCRETE),
    "CategoricalPgAgent, normalized": (lambda: CategoricalPgAgent(model_kwargs=NORMALIZED), DISCRETE),
    "GaussianPgAgent": (GaussianPgAgent, BOX),
    "DqnAgent": (lambda: DqnAgent(eps_init=0.1), DISCRETE),
    "DqnAgent, dueling": (lambda: DqnAgent(model_kwargs={"dueling": True}, eps_init=0.1), DISCRETE),
    "CategoricalDqnAgent": (lambda: CategoricalDqnAgent(eps_init=0.1), DISCRETE),
    "RecurrentCategoricalPgAgent": (RecurrentCategoricalPgAgent, DISCRETE),
    "RecurrentGaussianPgAgent": (RecurrentGaussianPgAgent, BOX),
}


def actor_for(agent: Agent, seen: EnvSpaces, B: int, kernels: Any) -> tuple[Actor, bool]:
    """Returns an actor over random observations, and whether it has a plan. kernels: classes for the plan, or None."""
    slot = build_slot(slot_spec(agent, seen, BatchSpec(T, B), (B,), {}, False), np.zeros)
    slot.observation[:] = np.random.default_rng(0).normal(size=slot.observation.shape)
    policy = BatchPolicy(agent, range(B), T, seed=0, stream=Stream.ACTION, status=Status(), deterministic=False)
    recorder = Recorder(seen.action, [slot], [B], policy.noise, None)
    plan = None
    if kernels is not None:
        rows = ActingRows(
            slot.observation, slot.prev_action, slot.prev_reward, policy.noise, slot.action, slot.agent_info
        )
        compiled.acting, chosen = kernels, compiled.acting
        plan = agent.acting_plan(rows, False)
        compiled.acting = chosen
    return Actor(policy, recorder, [plan]), plan is not None and plan.load()


def us_per_row(actor: Actor) -> float:
    """Acts for one batch."""
    begin = time.process_time_ns()
    actor.load()  # before this, an actor does not use its plan
    actor.begin(0, 0)
    for t in range(T):
        actor.act(t)
        actor.record(t)
    return (time.process_time_ns() - begin) / 1e3 / T


def main() -> None:
    """Prints one line for each agent and number of environments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--B", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--batches", type=int, default=60)
    args = parser.parse_args()
    torch.set_num_threads(1)
    contenders = {"step": None, "plan in NumPy": numpy_acting}
    if compiled.acting is not numpy_acting:
        contenders["compiled plan"] = compiled.acting
    for name, (make, seen) in AGENTS.items():
        for B in args.B:
            agent = make()
            agent.initialize(seen, seed=0, global_B=B)
            agent.sample_mode(0)
            actors = {label: actor_for(agent, seen, B, kernels) for label, kernels in contenders.items()}
            times: dict[str, list[float]] = {label: [] for label in actors}
            for _ in range(args.batches):
                for label, (actor, _planned) in actors.items():
                    times[label].append(us_per_row(actor))
            parts = [
                f"{label} {statistics.median(times[label]):6.1f}"
                for label, (_, planned) in actors.items()
                if planned or label == "step"
            ]
            print(f"{name}, B = {B}: µs per row: {', '.join(parts)}", flush=True)


if __name__ == "__main__":
    main()
