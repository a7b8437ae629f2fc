"""What Adam remembers, out of a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from headrace.schema import anything, each, fields, real, tensor

__all__ = ["load_adam"]


def load_adam(optimizer: torch.optim.Adam, state: Mapping[str, Any]) -> None:
    """Gives an optimizer of one vector the moments and the learning rate of a saved `state_dict`; its other settings
    are its own.

    Raises ValueError for moments that are not of the vector: Adam would take them, and fail in its first step.
    """
    (group,) = optimizer.param_groups
    (vector,) = group["params"]
    moments = {
        "step": tensor((), torch.float32, 0),
        "exp_avg": tensor(vector.shape, vector.dtype),
        "exp_avg_sq": tensor(vector.shape, vector.dtype, 0),
    }
    fields(
        {
            "state": fields({}, {0: fields(moments)}),  # none before the first step
            "param_groups": each(fields({"lr": real(0, 1e300), "params": anything}, more=True), 1),
        }
    )(state, "optimizer")
    (own,) = optimizer.state_dict()["param_groups"]
    lr = state["param_groups"][0]["lr"]
    optimizer.load_state_dict({"state": state["state"], "param_groups": [{**own, "lr": lr}]})
