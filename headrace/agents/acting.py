"""Pickles agents for processes that act, without the modules that only the learner uses."""

from __future__ import annotations

import io
import pickle
from typing import Any

import cloudpickle
import torch

from headrace.agents.base import Agent

__all__ = ["LearnerOnly", "acting_bytes"]


class LearnerOnly(torch.nn.Module):
    """Takes the place of a module that this process does not have; raises RuntimeError when it is called.

    Args:
        name: name of the module in the model.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, *inputs: Any) -> Any:
        """Raises RuntimeError."""
        raise RuntimeError(
            f"the model's {self.name} is only in the learner's process, and step() or value() called it in another; "
            f"take {self.name!r} out of the agent's learner_only"
        )


def acting_bytes(agent: Agent) -> bytes:
    """Returns the pickled agent (cloudpickle), with `LearnerOnly` in place of its `learner_only` modules.

    Args:
        agent: an initialized agent.
    """
    file = io.BytesIO()
    _Pickler(file, {id(agent.model.get_submodule(name)): name for name in agent.learner_only}).dump(agent)
    return file.getvalue()


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """A pickler that replaces modules. left_out: their names, by the id of the module."""

    def __init__(self, file: io.BytesIO, left_out: dict[int, str]) -> None:
        super().__init__(file)
        self._left_out = left_out

    def reducer_override(self, value: Any) -> Any:
        name = self._left_out.get(id(value))
        if name is not None:
            return LearnerOnly, (name,)
        if type(value) is torch.nn.Parameter and value.untyped_storage().nbytes() > value.nbytes:
            # A view of an optimizer's vector would be pickled with all of the vector.
            own = torch.nn.Parameter(value.detach().clone(), value.requires_grad)
            return own.__reduce_ex__(pickle.HIGHEST_PROTOCOL)  # type: ignore[no-untyped-call]
        return super().reducer_override(value)
