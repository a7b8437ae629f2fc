"""What a sampler was constructed with, and the part of it that each slice needs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from headrace.envs.factory import EnvFactory
from headrace.envs.global_rng import Isolation
from headrace.envs.rehearsal import REHEARSED
from headrace.envs.scalar import EnvInfoKeys
from headrace.envs.vector_envs import VectorEnvs
from headrace.rng import Stream
from headrace.samplers.layout import Layout, Slice, spread_like
from headrace.samplers.slice_envs import CollectorConfig
from headrace.samplers.snapshot import SamplerState
from headrace.samplers.traj_info import TrajInfo
from headrace.samplers.validate import checked_arguments, checked_devices
from headrace.types import BatchSpec

__all__ = ["SamplerSettings"]


@dataclass(frozen=True)
class SamplerSettings:
    """The arguments of a sampler's constructor, checked; see `BaseSampler`."""

    factory: EnvFactory
    eval_factory: EnvFactory
    batch_spec: BatchSpec
    n_workers: int | None
    max_decorrelation_steps: int
    traj_info_cls: type[TrajInfo]
    eval_n_envs: int
    eval_max_steps: int | None
    eval_max_trajectories: int | None
    reset_mode: str
    env_info_keys: EnvInfoKeys
    start_method: str
    timeout: float
    start_timeout: float
    deterministic: bool
    device: Any
    samples_device: Any
    n_slots: int
    eval_process: bool
    isolate_rng: bool

    @staticmethod
    def checked(
        name: str,
        layout: Layout,
        EnvCls: Any,
        *,
        env_kwargs: Mapping[str, Any] | None,
        batch_T: int,
        batch_B: int,
        n_workers: int | None,
        max_decorrelation_steps: int,
        TrajInfoCls: type[TrajInfo],
        eval_n_envs: int,
        eval_env_kwargs: Mapping[str, Any] | None,
        eval_max_steps: int | None,
        eval_max_trajectories: int | None,
        reset_mode: str,
        env_info_keys: EnvInfoKeys | None,
        start_method: str,
        timeout: float,
        start_timeout: float,
        deterministic: bool,
        device: Any,
        samples_device: Any,
        n_slots: int | None,
        eval_process: bool,
        isolate_rng: bool,
        pad: Mapping[str, int] | None,
    ) -> SamplerSettings:
        """From what the sampler `name` was given; raises TypeError or ValueError that names the argument."""
        checked_arguments(
            env_kwargs=env_kwargs,
            batch_T=batch_T,
            batch_B=batch_B,
            n_workers=n_workers,
            max_decorrelation_steps=max_decorrelation_steps,
            TrajInfoCls=TrajInfoCls,
            eval_n_envs=eval_n_envs,
            eval_env_kwargs=eval_env_kwargs,
            eval_max_steps=eval_max_steps,
            eval_max_trajectories=eval_max_trajectories,
            reset_mode=reset_mode,
            env_info_keys=env_info_keys,
            start_method=start_method,
            timeout=timeout,
            start_timeout=start_timeout,
            deterministic=deterministic,
            n_slots=n_slots,
            eval_process=eval_process,
            isolate_rng=isolate_rng,
            pad=pad,
        )
        if isolate_rng and isinstance(EnvCls, VectorEnvs):
            raise ValueError("isolate_rng is for single environments; a vector environment steps its rows at once")
        if pad and isinstance(EnvCls, VectorEnvs):
            raise ValueError("pad is for single environments; have a vector environment give arrays of a fixed shape")
        if eval_process and not layout.asynchronous:
            raise ValueError(f"{name} evaluates in its own processes; eval_process=True is for asynchronous samplers")
        least = 1 + layout.asynchronous
        if n_slots is not None and n_slots < least:
            raise ValueError(f"{name} needs n_slots of at least {least}, got {n_slots!r}")
        acting_on, kept_on = checked_devices(name, layout, device, samples_device)
        if kept_on is not None and (n_slots or 1) > 1:
            raise ValueError(f"n_slots={n_slots!r} is for batches in host memory; samples_device keeps one batch")
        return SamplerSettings(
            factory=EnvFactory.of(EnvCls, env_kwargs, pad=pad),
            eval_factory=EnvFactory.of(EnvCls, env_kwargs if eval_env_kwargs is None else eval_env_kwargs, pad=pad),
            batch_spec=BatchSpec(int(batch_T), int(batch_B)),
            n_workers=None if n_workers is None else int(n_workers),
            max_decorrelation_steps=int(max_decorrelation_steps),
            traj_info_cls=TrajInfoCls,
            eval_n_envs=int(eval_n_envs),
            eval_max_steps=eval_max_steps,
            eval_max_trajectories=eval_max_trajectories,
            reset_mode=reset_mode,
            env_info_keys=dict(env_info_keys or {}),
            start_method=start_method,
            timeout=float(timeout),
            start_timeout=float(start_timeout),
            deterministic=bool(deterministic),
            device=acting_on,
            samples_device=kept_on,
            n_slots=least if n_slots is None else int(n_slots),
            eval_process=bool(eval_process),
            isolate_rng=bool(isolate_rng),
        )

    @property
    def eval_max_T(self) -> int:
        """Rows of an evaluation at most."""
        n_eval = max(self.eval_n_envs, 1)
        return max(1, 100_000 if self.eval_max_steps is None else int(self.eval_max_steps) // n_eval)

    def require_callable(self, slices: Sequence[Slice], env_ids: Sequence[int]) -> None:
        """Raises ValueError for environments that cannot be called without others."""
        whole = isinstance(self.factory.make, VectorEnvs)
        if whole and any(0 < len({*one.env_ids} & {*env_ids}) < len(one.env_ids) for one in slices):
            raise ValueError("env_ids: a vector environment is called for all of its rows at once; leave env_ids out")

    def content(self) -> dict[str, Any]:
        """What decides what is in a batch, besides the agent and the seed; not where and how fast it is collected."""
        return {
            "environment": self.factory.name,
            "env_kwargs": self.factory.kwargs,
            "eval_env_kwargs": self.eval_factory.kwargs,
            **({"pad": self.factory.pad} if self.factory.pad else {}),
            "batch_T": self.batch_spec.T,
            "batch_B": self.batch_spec.B,
            "max_decorrelation_steps": self.max_decorrelation_steps,
            "TrajInfoCls": self.traj_info_cls,
            "eval_n_envs": self.eval_n_envs,
            "eval_max_steps": self.eval_max_steps,
            "eval_max_trajectories": self.eval_max_trajectories,
            "reset_mode": self.reset_mode,
            "deterministic": self.deterministic,
            "isolate_rng": self.isolate_rng,
        }

    def configs(
        self,
        slices: Sequence[Slice],
        rank: int,
        seed: int,
        traj_info_kwargs: Mapping[str, Any],
        start: SamplerState,
        resumable: bool,
    ) -> list[CollectorConfig]:
        """One for each slice, with its share of the evaluation environments."""
        n_eval = self.eval_n_envs
        episodes = 1 if self.eval_max_trajectories is None else math.ceil(self.eval_max_trajectories / max(n_eval, 1))
        factory, eval_factory = self.factory, self.eval_factory
        if self.isolate_rng:
            again = start.next_incarnation
            factory = replace(factory, isolation=Isolation(seed, Stream.ENV_GLOBAL, again))
            eval_factory = replace(eval_factory, isolation=Isolation(seed, Stream.EVAL_ENV_GLOBAL, again))
        all_eval_ids = range(rank * n_eval, rank * n_eval + n_eval)
        eval_ids = spread_like(all_eval_ids, slices)
        rehearsed = tuple(env_id for one in slices for env_id in one.env_ids)[:REHEARSED]
        return [
            CollectorConfig(
                factory=factory,
                env_ids=one.env_ids,
                seed=seed,
                traj_info=(self.traj_info_cls, traj_info_kwargs),
                wait_reset=self.reset_mode == "wait",
                max_decorrelation_steps=self.max_decorrelation_steps,
                env_info_keys=self.env_info_keys,
                deterministic=self.deterministic,
                eval_factory=eval_factory,
                eval_env_ids=own_eval_ids,
                eval_episodes=episodes,
                eval_max_T=self.eval_max_T,
                incarnation=start.next_incarnation,
                resumable=resumable,
                rehearsed=rehearsed,
                eval_rehearsed=tuple(all_eval_ids[:REHEARSED]),
                saved={env_id: start.train[env_id] for env_id in one.env_ids if start.train},
                eval_saved={env_id: start.evaluation[env_id] for env_id in own_eval_ids if start.evaluation},
                memory={env_id: start.memory[env_id] for env_id in one.env_ids if start.memory},
            )
            for one, own_eval_ids in zip(slices, eval_ids, strict=True)
        ]
