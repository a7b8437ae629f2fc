"""Checks the arguments of samplers before anything starts; TypeError and ValueError name the wrong argument."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from headrace.samplers.collection.resets import RESET_MODES
from headrace.samplers.layout import Layout
from headrace.samplers.traj_info import TrajInfo

__all__ = ["checked_arguments", "checked_devices"]

_AT_LEAST = {
    "batch_T": 1,
    "batch_B": 1,
    "n_workers": 1,
    "n_slots": 1,
    "state_interval": 1,
    "max_decorrelation_steps": 0,
    "eval_n_envs": 0,
    "eval_max_steps": 1,
    "eval_max_trajectories": 1,
    "seed": 0,
    "itr": 0,
    "rank": 0,
    "world_size": 1,
    "max_episode_length": 1,
    "max_age": 0,
    "num_samples": 1,
    "n_eps_per_worker": 1,
}
_OPTIONAL = {
    "n_workers",
    "n_slots",
    "state_interval",
    "eval_max_steps",
    "eval_max_trajectories",
    "seed",
    "max_episode_length",
    "max_age",
}
_FLAGS = {
    "deterministic",
    "bootstrap_value",
    "resumable",
    "eval_process",
    "isolate_rng",
    "by_arrival",
    "on_policy",
}
_CHOICES = {"reset_mode": tuple(RESET_MODES), "start_method": ("auto", "fork", "forkserver", "spawn")}


def checked_arguments(**arguments: Any) -> None:
    """Raises TypeError or ValueError for the first wrong argument of a sampler's constructor or `initialize`."""
    for name, value in arguments.items():
        if name in _AT_LEAST:
            _check_whole_number(name, value)
        elif name in ("timeout", "start_timeout"):
            if isinstance(value, bool) or not isinstance(value, int | float | np.number):
                raise TypeError(f"{name} must be a number of seconds, got {type(value).__name__} {value!r}")
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive, finite number of seconds, got {value!r}")
        elif name in _CHOICES:
            if value not in _CHOICES[name]:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, _CHOICES[name]))}, got {value!r}")
        elif name in _FLAGS:
            if not isinstance(value, bool | np.bool_):
                raise TypeError(f"{name} must be True or False, got {type(value).__name__} {value!r}")
        elif name == "TrajInfoCls":
            if not (isinstance(value, type) and issubclass(value, TrajInfo)):
                raise TypeError(f"TrajInfoCls must be a subclass of TrajInfo, got {value!r}")
        elif name == "agent":
            _check_agent(value)
        elif name == "env_info_keys":
            _check_env_info_keys(value)
        elif name == "pad":
            _check_pad(value)
        elif value is not None and not (isinstance(value, Mapping) and all(isinstance(key, str) for key in value)):
            # env_kwargs, eval_env_kwargs, traj_info_kwargs
            raise TypeError(f"{name} must be a dict of arguments by name, got {type(value).__name__} {value!r}")
    rank, world_size = arguments.get("rank", 0), arguments.get("world_size", 1)
    if rank >= world_size:
        raise ValueError(f"rank must be less than world_size, got rank={rank}, world_size={world_size}")
    interval = arguments.get("state_interval")
    if interval is not None and arguments["batch_T"] % interval:
        T = arguments["batch_T"]
        raise ValueError(
            f"state_interval must divide batch_T, so that every batch has as many states, got "
            f"state_interval={interval!r} and batch_T={T!r}"
        )


def checked_devices(name: str, layout: Layout, device: Any, samples_device: Any) -> tuple[Any, Any]:
    """Returns `device` and `samples_device` of a sampler as torch devices; None where the sampler chooses.

    Args:
        name: class name of the sampler, for error messages.
        layout: the sampler's layout.
        device: the option `device`; several devices give a tuple.
        samples_device: the option `samples_device`.

    Raises:
        ValueError: if the devices do not fit the layout or each other.
    """
    if isinstance(device, list | tuple):
        if not (layout.asynchronous and layout.served):
            raise ValueError(
                f"{name} acts on one device, got {device!r}; several are for asynchronous samplers with action servers"
            )
        if not device or samples_device is not None:
            raise ValueError(
                f"device={device!r} must have at least one entry, and cannot be combined with samples_device"
            )
        return tuple(_here(_device(one, "device"), "device") for one in device), None
    acting_on, kept_on = _device(device, "device"), _device(samples_device, "samples_device")
    if layout.acts_in_workers and (kept_on is not None or (acting_on is not None and acting_on.type != "cpu")):
        raise ValueError(
            f"{name} acts in its workers, on the CPU, got device={device!r} and samples_device={samples_device!r}; use "
            "a sampler that acts in this process: GpuSampler, AlternatingSampler or SerialSampler"
        )
    if layout.asynchronous and kept_on is not None:
        raise ValueError(
            f"{name} acts in a separate process, but samples_device={samples_device!r} is for samplers that act in "
            "this one; copy its batches to the device, or use a synchronous sampler"
        )
    if kept_on is not None and acting_on not in (None, kept_on):
        raise ValueError(
            f"samples_device={samples_device!r} must be the device on which the agent acts, but device={device!r}; "
            "make them the same, or leave one out"
        )
    return _here(kept_on if acting_on is None else acting_on, "device"), _here(kept_on, "samples_device")


def _device(value: Any, argument: str) -> Any:
    from headrace.agents.device import torch_device  # loads torch

    return None if value is None else torch_device(value, argument)


def _here(device: Any, argument: str) -> Any:
    from headrace.agents.device import device_here  # loads torch

    return None if device is None else device_here(device, argument)


def _check_whole_number(name: str, value: Any) -> None:
    if value is None and name in _OPTIONAL:
        return
    whole = isinstance(value, int | np.integer) or (isinstance(value, float) and value.is_integer())  # accepts 1e5
    if isinstance(value, bool | np.bool_) or not whole:
        raise TypeError(f"{name} must be a whole number, got {type(value).__name__} {value!r}")
    if value < _AT_LEAST[name]:
        raise ValueError(f"{name} must be at least {_AT_LEAST[name]}, got {value!r}")


def _check_agent(value: Any) -> None:
    from headrace.agents.base import Agent  # loads torch

    if not isinstance(value, Agent):
        raise TypeError(f"agent must be an Agent object, got {type(value).__name__} {value!r}")


def _check_pad(value: Any) -> None:
    form = "pad must be a dict of maximum lengths by place, such as {'mission': 48}"
    if value is None:
        return
    if not isinstance(value, Mapping) or not all(isinstance(place, str) for place in value):
        raise TypeError(f"{form}, got {type(value).__name__} {value!r}")
    for place, n in value.items():
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"{form}, whole numbers of at least 1, got {place!r}: {n!r}")


def _check_env_info_keys(value: Any) -> None:
    if value is None:
        return
    form = "env_info_keys must be a dict {name: (dtype, shape)}"
    if not isinstance(value, Mapping):
        raise TypeError(f"{form}, got {type(value).__name__} {value!r}")
    for key, declared in value.items():
        try:
            dtype, shape = declared
            dtype = np.dtype(object if dtype is None else dtype)  # NumPy reads None as float64
            shape_ok = all(isinstance(size, int | np.integer) and size >= 0 for size in shape)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{form}, got {key!r}: {declared!r}") from error
        if not isinstance(key, str) or not shape_ok or dtype.kind not in "fiub":
            raise ValueError(f"{form} with numeric dtypes and shapes of whole numbers, got {key!r}: {declared!r}")
