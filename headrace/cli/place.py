"""Options for the environment and for the sampler that steps it, shared by `headrace train` and `headrace eval`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from headrace.cli.errors import CommandFailed, unknown
from headrace.cli.options import Json, Lengths
from headrace.processes.ray_session import loaded_ray
from headrace.samplers.base import BaseSampler
from headrace.samplers.presets import (
    AlternatingSampler,
    AsyncAlternatingSampler,
    AsyncCpuSampler,
    AsyncGpuSampler,
    AsyncNoOverlapAlternatingSampler,
    AsyncSerialSampler,
    CpuSampler,
    GpuSampler,
    NoOverlapAlternatingSampler,
    RayBatchSampler,
    SerialSampler,
)

__all__ = ["SAMPLERS", "PlaceOptions"]

#: The samplers by their names on the command line.
SAMPLERS: dict[str, type[BaseSampler]] = {
    "serial": SerialSampler,
    "cpu": CpuSampler,
    "gpu": GpuSampler,
    "alternating": AlternatingSampler,
    "alternating-no-overlap": NoOverlapAlternatingSampler,
    "ray": RayBatchSampler,
    "async-serial": AsyncSerialSampler,
    "async-cpu": AsyncCpuSampler,
    "async-gpu": AsyncGpuSampler,
    "async-alternating": AsyncAlternatingSampler,
    "async-alternating-no-overlap": AsyncNoOverlapAlternatingSampler,
}


@dataclass(kw_only=True)
class PlaceOptions:
    """The environment, and the processes and devices that step it."""

    env: str = "CartPole-v1"
    """A Gymnasium id; `module:Id-v0` imports the module first; `module:factory` is a callable that returns an
    environment; `gym:Id-v0` is an id of old gym."""
    env_kwargs: Json = field(default_factory=dict)
    """Arguments of the environment, as JSON: '{"continuous": true}'."""
    pad: Lengths = field(default_factory=dict)
    """Maximum lengths of texts and sequences in the observation, which become arrays of this size: mission=48, or
    goal.steps=10 for a nested one."""
    sampler: str = "cpu"
    """serial (everything in this process), cpu (worker processes, each with an agent), gpu (worker processes, with
    actions for all of them from this process), alternating (as gpu, in two groups: one steps while the other gets its
    actions) or alternating-no-overlap; async- before any of these names collects in a separate process while the agent
    learns from the batch before. ray is like cpu with Ray actors as workers, on the cluster that the environment
    variable RAY_ADDRESS names, or else on a Ray of this machine."""
    n_workers: int | None = None
    """Worker processes; None: as many as usable cores, or one less if actions come from this process; with ray as
    many as the cluster has CPUs."""
    device: str | None = None
    """Device on which the agent learns, such as cuda:0, and acts, unless workers act (on the CPU); None: the first GPU
    for samplers whose actions come from this process, otherwise the CPU."""
    start_method: Literal["auto", "fork", "forkserver", "spawn"] = "auto"
    """How worker processes start; auto is fork on Linux while CUDA is not initialised, otherwise forkserver."""
    torch_threads: int = 1
    """Threads of torch operations in this process; more than one helps large models only."""

    @property
    def sampler_class(self) -> type[BaseSampler]:
        """The class of the sampler; raises UsageError for an unknown name, CommandFailed without its package."""
        if self.sampler not in SAMPLERS:
            raise unknown("sampler", self.sampler, SAMPLERS)
        if SAMPLERS[self.sampler] is RayBatchSampler:
            try:
                loaded_ray()
            except ImportError as error:
                raise CommandFailed(str(error)) from error
        return SAMPLERS[self.sampler]

    @property
    def acting_device(self) -> str | None:
        """The device of the sampler; None for samplers whose workers act, on the CPU."""
        layout = self.sampler_class.layout
        return None if layout.acts_in_workers else self.device
