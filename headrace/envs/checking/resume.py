"""Checks whether a resumed run continues the episodes of an environment, which is not a clause of the contract."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from headrace.buffers.tree import allocate_like, tree_map
from headrace.envs.checking.check import one_thread
from headrace.envs.copy_trial import CopyTrial, Recorded
from headrace.envs.factory import EnvFactory, close_quietly, make_envs
from headrace.envs.pickling import EnvState
from headrace.envs.scalar import ScalarEnvs
from headrace.envs.spaces import null_value
from headrace.errors import SamplerError
from headrace.processes.child import Channel
from headrace.processes.group import WorkerGroup
from headrace.processes.start_method import choose_start_method
from headrace.processes.status import Phase
from headrace.rng import env_seeds
from headrace.types import StepRow

__all__ = ["why_not_resumable"]

_N_ENVS = 2  # two, so that state they share is detected
_N_STEPS = 20  # before the copies are made, and again with the copies


def why_not_resumable(
    EnvCls: Any,
    env_kwargs: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    timeout: float = 30.0,
    pad: Mapping[str, int] | None = None,
) -> str:
    """Returns why a resumed run starts new episodes of an environment; empty if it continues them, bit for bit.

    Two environments take random actions in a separate process, and pickled copies of them take the same actions in
    another. Use it for environments in which `check_env` finds nothing.

    Args:
        EnvCls: as for a sampler.
        env_kwargs: arguments of the environment.
        seed: seed of the environments' seeds and of the actions.
        timeout: seconds that one call of the environment may take.
        pad: maximum lengths of texts and sequences, see `Padded`.
    """
    group = WorkerGroup(
        _process,
        [(EnvFactory.of(EnvCls, env_kwargs, pad=pad), seed)],
        start_method=choose_start_method("auto"),
        prologue=one_thread,
        name="check_env",
        timeout=timeout,
    )
    try:
        answer: str = group.replies()[0]
        return answer
    except SamplerError as error:
        return error.message
    finally:
        group.kill()


def _process(channel: Channel, job: tuple[EnvFactory, int]) -> None:
    factory, seed = job
    status = channel.status
    ids = range(_N_ENVS)
    made = make_envs(factory, ids, status)
    trial = CopyTrial(factory.name)
    try:
        seeds = [env_seeds(seed, env_id) for env_id in ids]
        envs = ScalarEnvs(made, ids, seeds, name=factory.name, status=status)
        status.enter(Phase.RESETTING)
        observation = allocate_like(null_value(envs.spaces.observation), (_N_ENVS,), np.zeros)
        envs.reset(None, observation)
        status.enter(Phase.STEPPING)
        _record(envs, observation)
        trial.take(ids, [EnvState(*envs.environment(env_id)) for env_id in ids], status)
        status.enter(Phase.STEPPING)
        trial.play(_record(envs, observation))
        trial.decide(status)
        channel.reply(trial.why_not)
    finally:
        trial.close()
        close_quietly(made)


def _record(envs: ScalarEnvs, observation: Any) -> Recorded:
    """Takes random steps from these observations and overwrites them with the last ones."""
    actions: list[Any] = []
    observations = [tree_map(np.copy, observation)]
    reward = np.zeros((_N_STEPS, _N_ENVS), np.float32)
    terminated, truncated = (np.zeros((_N_STEPS, _N_ENVS), np.bool_) for _ in range(2))
    for t in range(_N_STEPS):
        actions.append(envs.random_actions(observation))
        envs.step(actions[-1], StepRow(observation, reward[t], terminated[t], truncated[t], None))
        observations.append(tree_map(np.copy, observation))

    def stacked(*leaves: Any) -> np.ndarray:
        return np.stack(leaves)

    return Recorded(
        tree_map(stacked, *actions),
        reward,
        terminated,
        truncated,
        tree_map(stacked, *observations),
        begins=False,
        resets=None,
    )
