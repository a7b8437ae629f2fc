"""The configuration of one slice's environments, and the functions that make the environments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace.envs.factory import EnvFactory, close_quietly, make_envs, user_code_failed
from headrace.envs.pickling import EnvState, loads
from headrace.envs.scalar import EnvInfoKeys, ScalarEnvs
from headrace.envs.vector.batch import VectorBatch
from headrace.envs.vector.spec import VectorEnvs
from headrace.errors import EnvContractError
from headrace.processes.status import Phase, Status
from headrace.rng import Stream, env_seeds
from headrace.samplers.collection.resets import ResetMode
from headrace.samplers.traj_info import TrajInfo
from headrace.types import Tree

__all__ = ["Envs", "SliceConfig", "eval_envs", "train_envs", "vector_batch"]

Envs = ScalarEnvs | VectorBatch


@dataclass(frozen=True)
class SliceConfig:
    """What a slice of environments needs to know before its first step; travels to workers by cloudpickle.

    Args:
        factory: of training environments.
        env_ids: global numbers of this slice's training environments.
        seed: of all randomness.
        traj_info: the class of episode statistics and its arguments.
        reset_mode: when training environments whose episodes ended are reset.
        max_decorrelation_steps: see `SamplerOptions`.
        env_info_keys: see `SamplerOptions`.
        deterministic: see `SamplerOptions`.
        eval_factory: of evaluation environments.
        eval_env_ids: global numbers of this slice's evaluation environments, which are counted on their own.
        eval_episodes: number of episodes that each evaluation environment starts.
        eval_max_T: most time steps of an evaluation.
        incarnation: see `env_seeds`.
        resumable: whether `state()` will be asked for.
        tried_ids: the training environments, of the whole sampler, whose copies are tried before they are saved.
        eval_tried_ids: the same for evaluation environments.
        saved: pickled `EnvState`s by env id, to continue from in place of new environments.
        eval_saved: the same for evaluation environments.
        memory: recurrent states by env id, for the process that acts.
    """

    factory: EnvFactory
    env_ids: tuple[int, ...]
    seed: int
    traj_info: tuple[type[TrajInfo], Mapping[str, Any]]
    reset_mode: ResetMode
    max_decorrelation_steps: int
    env_info_keys: EnvInfoKeys
    deterministic: bool
    eval_factory: EnvFactory
    eval_env_ids: tuple[int, ...]
    eval_episodes: int
    eval_max_T: int
    incarnation: int = 0
    resumable: bool = False
    tried_ids: tuple[int, ...] = ()
    eval_tried_ids: tuple[int, ...] = ()
    saved: Mapping[int, bytes] = field(default_factory=dict)
    eval_saved: Mapping[int, bytes] = field(default_factory=dict)
    memory: Mapping[int, Tree] = field(default_factory=dict)


def train_envs(config: SliceConfig, status: Status) -> tuple[Envs, list[EnvState]]:
    """Returns the training environments and the states from which they continue (empty if they are new)."""
    saved = _unpickled(config.factory, config.env_ids, config.saved, status)
    return _made(config, config.factory, config.env_ids, None, config.env_info_keys, saved, status), saved


def eval_envs(config: SliceConfig, status: Status) -> Envs:
    """Returns the evaluation environments; there must be at least one."""
    saved = _unpickled(config.eval_factory, config.eval_env_ids, config.eval_saved, status)
    return _made(config, config.eval_factory, config.eval_env_ids, Stream.EVAL_ENV, {}, saved, status)


def _made(
    config: SliceConfig,
    factory: EnvFactory,
    env_ids: tuple[int, ...],
    stream: Stream | None,
    env_info_keys: EnvInfoKeys,
    saved: Sequence[EnvState],
    status: Status,
) -> Envs:
    new_seeds = [env_seeds(config.seed, env_id, stream, config.incarnation) for env_id in env_ids]
    if isinstance(factory.make, VectorEnvs):
        batch = vector_batch(factory.make, factory, env_ids, new_seeds, env_info_keys, status)
        if config.reset_mode.waits and not batch.holds:
            batch.close()
            raise EnvContractError(
                f"{factory.name} resets its environments by itself, so they cannot wait for the end of a batch: "
                'reset_mode="wait" needs a vector environment with AutoresetMode.DISABLED; use "mid_batch"',
                status.where(),
            )
        return batch
    seeds: Sequence[tuple[int | None, int | None]] = new_seeds
    if saved:
        envs, seeds = [state.env for state in saved], [(state.seed, None) for state in saved]
    else:
        envs = make_envs(factory, env_ids, status)
    try:
        return ScalarEnvs(envs, env_ids, seeds, name=factory.name, status=status, env_info_keys=env_info_keys)
    except BaseException:
        close_quietly(envs)
        raise


def vector_batch(
    vector_envs: VectorEnvs,
    factory: EnvFactory,
    env_ids: Sequence[int],
    seeds: Sequence[tuple[int, int]],
    env_info_keys: EnvInfoKeys,
    status: Status,
) -> VectorBatch:
    """Makes a vector environment.

    Args:
        vector_envs: makes it.
        factory: its name and arguments.
        env_ids: global numbers of its environments.
        seeds: for each environment, see `env_seeds`.
        env_info_keys: the fields of info that are recorded.
        status: marks the environment being made.
    """
    status.enter(Phase.CONSTRUCTING, env_ids[0])
    try:
        env = vector_envs.make(len(env_ids), factory.kwargs)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise user_code_failed(error, f"{factory.name}: the constructor", status) from error
    try:
        return VectorBatch(env, env_ids, seeds, name=factory.name, status=status, env_info_keys=env_info_keys)
    except BaseException:
        env.close()
        raise


def _unpickled(
    factory: EnvFactory, env_ids: tuple[int, ...], saved: Mapping[int, bytes], status: Status
) -> list[EnvState]:
    states: list[EnvState] = []
    for env_id in env_ids if saved else ():
        status.enter(Phase.CONSTRUCTING, env_id)
        try:
            states.append(loads(saved[env_id]))
        except Exception as error:
            close_quietly([state.env for state in states])
            raise user_code_failed(error, f"{factory.name}: unpickling the saved environment", status) from error
    return states
