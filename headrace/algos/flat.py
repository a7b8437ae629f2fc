"""Stores all parameters of a model in one tensor, so that an optimizer pays its cost per tensor only once."""

from __future__ import annotations

from collections.abc import Iterable

import torch

__all__ = ["FlatParameters"]


class FlatParameters:
    """Moves the trainable parameters of a model into one vector and their gradients into another.

    Each parameter becomes a view. For a network of a dozen small tensors, an update of PPO takes a fifth less time.
    Frozen parameters (`requires_grad` false) are left out.

    Args:
        parameters: the parameters of the model.

    Raises:
        ValueError: if no parameter is trainable, or the parameters have several devices or dtypes.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        kinds = {(parameter.device, parameter.dtype) for parameter in self._parameters}
        if len(kinds) != 1:
            raise ValueError(f"the model's trainable parameters must be of one device and dtype, got {kinds or 'none'}")
        with torch.no_grad():
            vector = torch.cat([parameter.reshape(-1) for parameter in self._parameters])
        self.vector = torch.nn.Parameter(vector)
        #: The gradient, float `[n]`.
        self.gradient = torch.zeros_like(vector)
        sizes = [parameter.numel() for parameter in self._parameters]
        views = zip(self._parameters, torch.split(vector, sizes), torch.split(self.gradient, sizes), strict=True)
        self._grads: list[torch.Tensor] = []
        self._places: list[int] = []
        for parameter, values, grads in views:
            parameter.data = values.view_as(parameter)
            self._places.append(parameter.data_ptr())
            self._grads.append(grads.view_as(parameter))
        self.vector.grad = self.gradient

    def zero_grad(self) -> None:
        """Zeros the gradients; call it before each backward pass.

        Raises:
            RuntimeError: if parameters have been moved since construction. The optimizer would then change the vector
                but not the parameters.
        """
        self.gradient.zero_()
        for parameter, place, grad in zip(self._parameters, self._places, self._grads, strict=True):
            if parameter.data_ptr() != place:
                raise RuntimeError(
                    "parameters of the model were moved after algo.initialize(agent), as model.to() does; "
                    "move the agent first, then initialize the algorithm"
                )
            parameter.grad = grad  # `optimizer.zero_grad()` elsewhere removes the views, so set them again

    def clip_grad_norm(self, max_norm: float | None) -> torch.Tensor:
        """Scales the gradients down to the norm `max_norm`, if given.

        Returns:
            Their norm before scaling, a scalar.
        """
        norm: torch.Tensor = torch.linalg.vector_norm(self.gradient)
        if max_norm is not None:
            self.gradient.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm
