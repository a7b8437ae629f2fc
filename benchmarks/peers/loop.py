"""The loop that users of a vector environment write: act for a row, step it, keep what an actor-critic learns from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from worlds import T

#: Collects a number of batches; returns the number of environment steps in them.
Collect = Callable[[int], int]


class ActorCritic(torch.nn.Module):
    """headrace's default network over vectors: two tanh layers of 64 units, then the logits and the value."""

    def __init__(self, n_inputs: int, n_actions: int) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(n_inputs, 64), torch.nn.Linear(64, 64)
        self.head = torch.nn.Linear(64, n_actions + 1)

    def forward(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = torch.tanh(functional.linear(observation, self.first.weight, self.first.bias))
        hidden = torch.tanh(functional.linear(hidden, self.second.weight, self.second.bias))
        outputs = functional.linear(hidden, self.head.weight, self.head.bias)
        return outputs[:, :-1], outputs[:, -1]


class ConvActorCritic(torch.nn.Module):
    """headrace's default network over images: three convolutions and 512 units, then the logits and the value."""

    def __init__(self, n_actions: int) -> None:
        super().__init__()
        self.convolutions = torch.nn.ModuleList(
            [torch.nn.Conv2d(4, 32, 8, 4), torch.nn.Conv2d(32, 64, 4, 2), torch.nn.Conv2d(64, 64, 3, 1)]
        )
        self.hidden, self.head = torch.nn.Linear(3136, 512), torch.nn.Linear(512, n_actions + 1)

    def forward(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = observation.float().mul_(1.0 / 255.0)
        for convolution in self.convolutions:
            hidden = torch.relu(convolution(hidden))
        outputs = self.head(torch.relu(self.hidden(hidden.flatten(1))))
        return outputs[:, :-1], outputs[:, -1]


def vector_loop(
    reset: Callable[[], np.ndarray], step: Callable[[np.ndarray], Any], n_actions: int, resets_take_a_step: bool
) -> Collect:
    """Returns the loop of a careful user: arrays `[T, B]` made once, one forward pass per row, noise drawn per batch.

    Args:
        reset: returns the first observations, `[B, 4]` or images `[B, 4, 84, 84]`.
        step: takes actions `[B]`; returns observations, rewards, terminated, truncated.
        n_actions: number of actions.
        resets_take_a_step: whether the step after an end only resets (Gymnasium's NEXT_STEP), and does not count.
    """
    first = reset()
    network = ActorCritic(first.shape[1], n_actions) if first.ndim == 2 else ConvActorCritic(n_actions)
    B = len(first)
    seen = np.zeros((T + 1, *first.shape), first.dtype)
    action = np.zeros((T, B), np.int64)
    reward, value, log_prob = (np.zeros((T, B), np.float32) for _ in range(3))
    terminated, truncated = np.zeros((T, B), np.bool_), np.zeros((T, B), np.bool_)
    seen[T] = first

    def collect(n_batches: int) -> int:
        steps = 0
        for _ in range(n_batches):
            seen[0] = seen[T]
            gumbel = torch.empty(T, B, n_actions).exponential_().log_().neg_()
            with torch.inference_mode():
                for t in range(T):
                    logits, values = network.forward(torch.from_numpy(seen[t]))
                    log_probs = logits.log_softmax(-1)
                    chosen = (log_probs + gumbel[t]).argmax(-1, keepdim=True)
                    action[t], value[t] = chosen.numpy()[:, 0], values.numpy()
                    log_prob[t] = log_probs.gather(-1, chosen).numpy()[:, 0]
                    seen[t + 1], reward[t], terminated[t], truncated[t] = step(action[t])
            steps += T * B - (int((terminated | truncated).sum()) if resets_take_a_step else 0)
        return steps

    return collect
