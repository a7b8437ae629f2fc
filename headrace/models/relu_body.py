"""Multi-layer perceptrons with ReLU, several of which are computed at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch.nn import functional

from headrace.models.relu_network import relu_networks
from headrace.numpy_inference import NumpyViews, suits_numpy

__all__ = ["ReluBody"]


class ReluBody(torch.nn.Module):
    """`n` perceptrons of the same sizes over the same inputs; float32 `[..., sizes[0]]` to `[n, ..., sizes[-1]]`.

    Each layer computes all of them in one batched matrix product. Weights and biases have the distribution of
    `torch.nn.Linear`'s default initialization.

    Args:
        n: number of perceptrons.
        sizes: sizes of the input, of the ReLU layers and of the output.
        layer_norm: normalize the inputs of each ReLU (Ba, Kiros and Hinton, "Layer normalization", 2016).
        dropout: probability with which each hidden number is set to 0 before it is normalized, in training mode.
    """

    def __init__(self, n: int, sizes: Sequence[int], layer_norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self._n, self._dropout, self._layer_norm = n, dropout, layer_norm
        self.weights, self.biases = torch.nn.ParameterList(), torch.nn.ParameterList()
        for n_in, n_out in pairwise(sizes):
            bound = 1.0 / math.sqrt(n_in)
            self.weights.append(torch.nn.Parameter(torch.empty(n, n_in, n_out).uniform_(-bound, bound)))
            self.biases.append(torch.nn.Parameter(torch.empty(n, 1, n_out).uniform_(-bound, bound)))
        normed = sizes[1:-1] if layer_norm else ()
        self.scales = torch.nn.ParameterList([torch.ones(n, 1, size) for size in normed])
        self.shifts = torch.nn.ParameterList([torch.zeros(n, 1, size) for size in normed])
        #: Multiplications per row in the largest matrix product.
        self._largest = max(n_in * n_out for n_in, n_out in pairwise(sizes))
        names = [str(index) for index in range(len(sizes) - 1)]
        self._numpy_weights, self._numpy_biases = NumpyViews(self.weights, names), NumpyViews(self.biases, names)

    def in_numpy(self, features: torch.Tensor) -> np.ndarray | None:
        """Returns the only perceptron's outputs computed in NumPy, `[..., sizes[-1]]`.

        The result is None where torch should compute them (see `suits_numpy`).
        """
        if self._n > 1 or self._layer_norm or self._dropout or not suits_numpy(features, self._largest):
            return None
        hidden = features.numpy()
        layers = list(zip(self._numpy_weights(), self._numpy_biases(), strict=True))
        for index, (weight, bias) in enumerate(layers):
            hidden = hidden @ weight[0]
            hidden += bias[0, 0]
            if index < len(layers) - 1:
                np.maximum(hidden, 0.0, out=hidden)
        return hidden

    def forward(self, features: torch.Tensor, n: int | None = None) -> torch.Tensor:
        """Returns outputs float32 `[n, ..., sizes[-1]]` of features `[..., sizes[0]]`.

        Args:
            features: the inputs of every perceptron.
            n: compute the first `n` perceptrons only; None: all.
        """
        rows = features if features.ndim == 2 else features.reshape(-1, features.shape[-1])
        parts = [self.weights, self.biases, self.scales, self.shifts]
        weights, biases, scales, shifts = (list(part) if n is None else [one[:n] for one in part] for part in parts)
        if self._layer_norm or self._dropout:
            outputs = self._regularized(rows, weights, biases, scales, shifts)
        else:
            outputs = relu_networks(rows, weights, biases)
        return outputs if features.ndim == 2 else outputs.reshape(len(outputs), *features.shape[:-1], -1)

    def _regularized(
        self,
        rows: torch.Tensor,
        weights: Sequence[torch.Tensor],
        biases: Sequence[torch.Tensor],
        scales: Sequence[torch.Tensor],
        shifts: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        """Returns the outputs with dropout and layer normalization, `[n, N, sizes[-1]]`, for rows `[N, sizes[0]]`."""
        hidden = torch.baddbmm(biases[0], rows.expand(len(weights[0]), *rows.shape), weights[0])
        for index, (weight, bias) in enumerate(zip(weights[1:], biases[1:], strict=True)):
            if self._dropout:
                hidden = functional.dropout(hidden, self._dropout, self.training)
            if self._layer_norm:
                normed = functional.layer_norm(hidden, hidden.shape[-1:])
                hidden = torch.addcmul(shifts[index], normed, scales[index])
            hidden = torch.baddbmm(bias, torch.relu(hidden), weight)
        return hidden
