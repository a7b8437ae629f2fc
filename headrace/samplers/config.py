"""The options of a sampler and the checked configuration made from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from functools import wraps
from inspect import signature
from typing import Any, Concatenate, ParamSpec, TypeVar

from headrace.config import nearest_name, require_known
from headrace.envs.copy_trial import N_TRIED
from headrace.envs.factory import EnvFactory
from headrace.envs.global_rng import Isolation
from headrace.envs.scalar import EnvInfoKeys
from headrace.envs.vector.spec import VectorEnvs
from headrace.processes.affinity import Affinity
from headrace.processes.ray_session import RayActors, RayCluster, require_ray_options
from headrace.rng import Stream
from headrace.samplers.collection.make_envs import SliceConfig
from headrace.samplers.collection.resets import RESET_MODES
from headrace.samplers.collection.snapshot import SamplerState
from headrace.samplers.layout import Layout, Slice, spread_like
from headrace.samplers.traj_info import TrajInfo
from headrace.samplers.validate import checked_arguments, checked_devices
from headrace.types import BatchSpec

__all__ = ["RayOptions", "SamplerConfig", "SamplerOptions", "takes_options"]


@dataclass(frozen=True)
class SamplerOptions:
    """What every sampler takes.

    Args:
        EnvCls: a Gymnasium id, an `EnvSpec`, "module:callable", "gym:Id-v0" for old gym's registry, or any callable
            that returns a `gymnasium.Env`; environments of old gym are adapted. `VectorEnvs` for vector environments.
        env_kwargs: arguments of the environment.
        batch_T: time steps of a batch.
        batch_B: environments of a batch.
        n_workers: worker processes. Default: chosen from the machine. At most `batch_B` are started.
        max_decorrelation_steps: each environment first takes a random number of random actions, 1 to this; 0: none.
        TrajInfoCls: statistics of an episode, a subclass of `TrajInfo`.
        eval_n_envs: environments for `evaluate_agent`; 0: none.
        eval_env_kwargs: arguments of evaluation environments. Default: `env_kwargs`.
        eval_max_steps: most steps of an evaluation, over all its environments. Default: 100 000 per environment.
        eval_max_trajectories: episodes of an evaluation, rounded up to the same number for every environment, so that
            short episodes are not favoured. Default: one per environment.
        reset_mode: "mid_batch": an ended environment is reset at once. "wait": it waits for the end of the batch, and
            its time steps until then are padding with `valid=False`.
        env_info_keys: `{name: (dtype, shape)}`, the fields of info that are recorded in `samples.env.env_info`.
        start_method: "fork", "forkserver", "spawn", or "auto": fork on Linux while CUDA is not initialised.
        timeout: seconds for one time step of a worker's environments, after which it counts as hung.
        start_timeout: the same for construction, first resets and decorrelation.
        deterministic: infer in fixed blocks of rows, so that batches are equal bit for bit for any number of workers.
        device: torch device on which the agent acts. Default: for samplers with an action server the first GPU if there
            is one, else the CPU. Asynchronous samplers with action servers take several.
        samples_device: torch device of the batches; what the agent sees and does stays there, row by row, so that
            nothing is sent twice. Default: views of the sampler's memory.
        n_slots: batches in memory, written in turn, so that views stay valid for as many calls; default 1. Asynchronous
            samplers collect n_slots − 1 batches ahead, and views are valid until the next call; default 2.
        eval_process: evaluate in a process of its own, beside training; for asynchronous samplers.
        isolate_rng: give each environment global generators of its own (NumPy's, Python's, torch's), by seed and env
            id, so that batches do not depend on the number of workers though it draws from them; 60 µs a step.
        pad: greatest lengths of texts and sequences in the observation, by their place; see `headrace.envs.Padded`.
        state_interval: record the agent's recurrent state before every so many time steps of a batch, in
            `samples.agent.state`, for sequence replay. It must divide batch_T. Default: record none.
    """

    EnvCls: Any
    env_kwargs: Mapping[str, Any] | None = None
    _: KW_ONLY
    batch_T: int
    batch_B: int
    n_workers: int | None = None
    max_decorrelation_steps: int = 100
    TrajInfoCls: type[TrajInfo] = TrajInfo
    eval_n_envs: int = 0
    eval_env_kwargs: Mapping[str, Any] | None = None
    eval_max_steps: int | None = None
    eval_max_trajectories: int | None = None
    reset_mode: str = "mid_batch"
    env_info_keys: EnvInfoKeys | None = None
    start_method: str = "auto"
    timeout: float = 60.0
    start_timeout: float = 120.0
    deterministic: bool = False
    device: Any = None
    samples_device: Any = None
    n_slots: int | None = None
    eval_process: bool = False
    isolate_rng: bool = False
    pad: Mapping[str, int] | None = None
    state_interval: int | None = None


@dataclass(frozen=True, kw_only=True)
class RayOptions(SamplerOptions):
    """What a `RayBatchSampler` takes: everything that `SamplerOptions` lists, and

    Args:
        cluster: the Ray cluster, a `RayCluster`; a program that called `ray.init()` itself has chosen one.
        actors: what each actor asks of the cluster, and how often it is restarted, a `RayActors`.
    """

    cluster: RayCluster = field(default_factory=RayCluster)
    actors: RayActors = field(default_factory=RayActors)

    def __post_init__(self) -> None:
        require_ray_options(self.cluster, self.actors)


#: Options that `checked_arguments` does not check.
_CHECKED_APART = ("EnvCls", "device", "samples_device", "cluster", "actors")

_Arguments = ParamSpec("_Arguments")
_Self = TypeVar("_Self")
_Options = TypeVar("_Options")


def takes_options(
    options: Callable[_Arguments, _Options],
) -> Callable[[Callable[[_Self, _Options], None]], Callable[Concatenate[_Self, _Arguments], None]]:
    """Decorates a constructor that takes an options object so that callers pass the options as its arguments.

    The signature and docstring of the decorated constructor are those of the options.

    Args:
        options: the options class.
    """

    def decorate(
        constructor: Callable[[_Self, _Options], None],
    ) -> Callable[Concatenate[_Self, _Arguments], None]:
        form = signature(options)

        def remedy(name: str) -> str:
            near = nearest_name(name, form.parameters)
            return (
                f"it is called {near}"
                if near
                else (
                    f"arguments of the environment go into env_kwargs={{{name!r}: ...}}; the settings are "
                    f"{', '.join(form.parameters)}"
                )
            )

        @wraps(constructor)
        def taking(self: _Self, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> None:
            name = type(self).__name__
            require_known(name, kwargs, form.parameters, remedy)
            try:
                form.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{name}(): {error}") from None
            constructor(self, options(*args, **kwargs))

        taking.__doc__ = options.__doc__
        own = next(iter(signature(constructor).parameters.values()))
        taking.__signature__ = form.replace(  # type: ignore[attr-defined]
            parameters=[own, *form.parameters.values()], return_annotation=None
        )
        return taking

    return decorate


@dataclass(frozen=True)
class SamplerConfig:
    """Checked options, and what follows from them.

    Args:
        options: in plain types; `device` is a torch device, a tuple of them, or None, `samples_device` one or None.
        factory: of training environments.
        eval_factory: of evaluation environments.
        n_slots: number of batches in memory.
    """

    options: SamplerOptions
    factory: EnvFactory
    eval_factory: EnvFactory
    n_slots: int

    @staticmethod
    def checked(name: str, layout: Layout, options: SamplerOptions) -> SamplerConfig:
        """Returns the checked configuration of a sampler.

        Args:
            name: class name of the sampler, for error messages.
            layout: the sampler's layout.
            options: the options as given by the caller.

        Raises:
            TypeError: if an option has a wrong type; the message names it.
            ValueError: if an option has a wrong value; the message names it.
        """
        given = {field.name: getattr(options, field.name) for field in fields(options)}
        checked_arguments(**{key: value for key, value in given.items() if key not in _CHECKED_APART})
        n_slots = options.n_slots
        if options.isolate_rng and isinstance(options.EnvCls, VectorEnvs):
            raise ValueError("isolate_rng is for single environments; a vector environment steps its columns at once")
        if options.pad and isinstance(options.EnvCls, VectorEnvs):
            raise ValueError("pad is for single environments; a vector environment must return arrays of fixed shape")
        if options.eval_process and not layout.asynchronous:
            raise ValueError(
                f"{name} has no separate evaluation process; eval_process=True is for asynchronous samplers"
            )
        least = 1 + layout.asynchronous
        if n_slots is not None and n_slots < least:
            raise ValueError(f"n_slots of {name} must be at least {least}, got {n_slots!r}")
        device, samples_device = checked_devices(name, layout, options.device, options.samples_device)
        if samples_device is not None and (n_slots or 1) > 1:
            raise ValueError(f"n_slots must be 1 with samples_device, which keeps one batch, got {n_slots!r}")
        eval_kwargs = options.env_kwargs if options.eval_env_kwargs is None else options.eval_env_kwargs
        return SamplerConfig(
            options=replace(
                options,
                batch_T=int(options.batch_T),
                batch_B=int(options.batch_B),
                n_workers=None if options.n_workers is None else int(options.n_workers),
                state_interval=None if options.state_interval is None else int(options.state_interval),
                max_decorrelation_steps=int(options.max_decorrelation_steps),
                eval_n_envs=int(options.eval_n_envs),
                env_info_keys=dict(options.env_info_keys or {}),
                timeout=float(options.timeout),
                start_timeout=float(options.start_timeout),
                deterministic=bool(options.deterministic),
                eval_process=bool(options.eval_process),
                isolate_rng=bool(options.isolate_rng),
                device=device,
                samples_device=samples_device,
            ),
            factory=EnvFactory.of(options.EnvCls, options.env_kwargs, pad=options.pad),
            eval_factory=EnvFactory.of(options.EnvCls, eval_kwargs, pad=options.pad),
            n_slots=least if n_slots is None else int(n_slots),
        )

    def placed(self, name: str, layout: Layout, affinity: Affinity) -> SamplerConfig:
        """Returns this configuration with the devices that the affinity names.

        Args:
            name: class name of the sampler, for error messages.
            layout: the sampler's layout.
            affinity: where the sampler runs.

        Raises:
            ValueError: if the affinity is for another kind of sampler, or its devices differ from the sampler's.
        """
        alternates = layout.groups > 1
        if affinity.alternating not in (None, alternates):
            other = name.replace("Alternating", "Gpu").replace("NoOverlap", "") if alternates else "AlternatingSampler"
            raise ValueError(
                f"affinity has alternating={affinity.alternating}, but {name} is {'' if alternates else 'not '}"
                f"alternating; use {other}, or leave the key out"
            )
        devices = affinity.acting_devices
        if not devices or layout.acts_in_workers:
            return self
        options = self.options
        device, _ = checked_devices(name, layout, devices[0] if len(devices) == 1 else devices, options.samples_device)
        if options.device not in (None, device):
            raise ValueError(f"affinity selects {device}, but device={str(options.device)!r}; make them the same")
        return self.on_device(device)

    def on_device(self, device: Any) -> SamplerConfig:
        """Returns this configuration with another device of the agent."""
        return replace(self, options=replace(self.options, device=device))

    @property
    def batch_spec(self) -> BatchSpec:
        """Batch size: T and B."""
        return BatchSpec(self.options.batch_T, self.options.batch_B, self.options.state_interval)

    @property
    def env_info_keys(self) -> EnvInfoKeys:
        """The fields of info that are recorded in `samples.env.env_info`."""
        return self.options.env_info_keys or {}

    @property
    def eval_max_T(self) -> int:
        """Maximum number of time steps of an evaluation."""
        n_eval, most = max(self.options.eval_n_envs, 1), self.options.eval_max_steps
        return max(1, 100_000 if most is None else int(most) // n_eval)

    def require_callable(self, slices: Sequence[Slice], env_ids: Sequence[int]) -> None:
        """Raises ValueError if `env_ids` selects only some columns of a vector environment."""
        whole = isinstance(self.factory.make, VectorEnvs)
        if whole and any(0 < len({*one.env_ids} & {*env_ids}) < len(one.env_ids) for one in slices):
            raise ValueError(
                "env_ids has only some columns of a vector environment, which is called once; leave it out"
            )

    def content(self) -> dict[str, Any]:
        """Returns the settings that determine the contents of a batch, apart from the agent and the seed.

        Settings that only change where and how fast batches are collected are not included.
        """
        names = (
            "batch_T",
            "batch_B",
            "max_decorrelation_steps",
            "TrajInfoCls",
            "eval_n_envs",
            "eval_max_steps",
            "eval_max_trajectories",
            "reset_mode",
            "deterministic",
            "isolate_rng",
        )
        return {
            "environment": self.factory.name,
            "env_kwargs": self.factory.kwargs,
            "eval_env_kwargs": self.eval_factory.kwargs,
            **({"pad": self.factory.pad} if self.factory.pad else {}),
            **({"state_interval": self.options.state_interval} if self.options.state_interval else {}),
            **{name: getattr(self.options, name) for name in names},
        }

    def slice_configs(
        self,
        slices: Sequence[Slice],
        rank: int,
        seed: int,
        traj_info_kwargs: Mapping[str, Any],
        start: SamplerState,
        resumable: bool,
    ) -> list[SliceConfig]:
        """Returns one `SliceConfig` per slice, each with its share of the evaluation environments."""
        options, n_eval = self.options, self.options.eval_n_envs
        wanted = options.eval_max_trajectories
        episodes = 1 if wanted is None else math.ceil(wanted / max(n_eval, 1))
        factory, eval_factory = self.factory, self.eval_factory
        if options.isolate_rng:
            again = start.next_incarnation
            factory = replace(factory, isolation=Isolation(seed, Stream.ENV_GLOBAL, again))
            eval_factory = replace(eval_factory, isolation=Isolation(seed, Stream.EVAL_ENV_GLOBAL, again))
        all_eval_ids = range(rank * n_eval, rank * n_eval + n_eval)
        eval_ids = spread_like(all_eval_ids, slices)
        tried_ids = tuple(env_id for one in slices for env_id in one.env_ids)[:N_TRIED]
        return [
            SliceConfig(
                factory=factory,
                env_ids=one.env_ids,
                seed=seed,
                traj_info=(options.TrajInfoCls, traj_info_kwargs),
                reset_mode=RESET_MODES[options.reset_mode],
                max_decorrelation_steps=options.max_decorrelation_steps,
                env_info_keys=self.env_info_keys,
                deterministic=options.deterministic,
                eval_factory=eval_factory,
                eval_env_ids=own_eval_ids,
                eval_episodes=episodes,
                eval_max_T=self.eval_max_T,
                incarnation=start.next_incarnation,
                resumable=resumable,
                tried_ids=tried_ids,
                eval_tried_ids=tuple(all_eval_ids[:N_TRIED]),
                saved={env_id: start.train[env_id] for env_id in one.env_ids if start.train},
                eval_saved={env_id: start.evaluation[env_id] for env_id in own_eval_ids if start.evaluation},
                memory={env_id: start.memory[env_id] for env_id in one.env_ids if start.memory},
            )
            for one, own_eval_ids in zip(slices, eval_ids, strict=True)
        ]
