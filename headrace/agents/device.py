"""Parsing and checking of device arguments."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["device_here", "torch_device"]


def torch_device(value: Any, argument: str) -> torch.device:
    """Returns the torch device for a value given by the user. Raises ValueError if it is not a device.

    Args:
        value: a device or its name.
        argument: name of the argument, for the error.
    """
    try:
        return torch.device(value)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{argument} must be a torch device such as 'cuda:0', got {value!r}") from error


def device_here(value: Any, argument: str) -> torch.device:
    """Returns the torch device for a value given by the user. Raises ValueError if this machine has no such GPU.

    Args:
        value: a device or its name.
        argument: name of the argument, for the error.
    """
    device = torch_device(value, argument)
    if device.type == "cuda":
        # `is_available()` may initialise CUDA, which processes forked later could then not use.
        n_gpus = torch.cuda.device_count()
        if n_gpus <= (device.index or 0):
            here = f"torch sees {n_gpus} GPU{'s' * (n_gpus != 1)} here"
            if not n_gpus:
                here += (
                    ", is built without CUDA" if torch.version.cuda is None else ", check the driver with nvidia-smi"
                )
            raise ValueError(f"{argument}={str(value)!r} does not exist ({here}); leave it out, or name one that does")
    return device
