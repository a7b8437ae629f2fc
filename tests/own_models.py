"""Custom models, for commands that get `tests.own_models:Narrow`."""

from typing import Any, ClassVar

import torch

from headrace.models import Features
from headrace.types import EnvSpaces


class Narrow(torch.nn.Module):
    """A model with one layer. Records the number of torch threads."""

    threads: ClassVar[set[int]] = set()

    def __init__(self, spaces: EnvSpaces, n_outputs: int, width: int = 4) -> None:
        super().__init__()
        self.features = Features(spaces.observation)
        self.body = torch.nn.Linear(self.features.size, width)
        self.head = torch.nn.Linear(width, n_outputs + 1)

    def forward(self, observation: Any, prev_action: Any, prev_reward: Any) -> tuple[torch.Tensor, torch.Tensor]:
        self.threads.add(torch.get_num_threads())
        outputs = self.head(torch.tanh(self.body(self.features(observation))))
        return outputs[..., :-1], outputs[..., -1]


class NarrowQ(torch.nn.Module):
    """A model with one layer, for action values."""

    def __init__(self, spaces: EnvSpaces, n_outputs: int) -> None:
        super().__init__()
        self.features = Features(spaces.observation)
        self.head = torch.nn.Linear(self.features.size, n_outputs)

    def forward(self, observation: Any, prev_action: Any, prev_reward: Any) -> torch.Tensor:
        return self.head(self.features(observation))


class Leaky(Narrow):
    """A recurrent model that keeps a running mean of its inputs."""

    def initial_state(self, n: int) -> torch.Tensor:
        return torch.zeros(n, self.body.out_features)

    def forward(  # type: ignore[override]
        self, observation: Any, prev_action: Any, prev_reward: Any, is_first: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        inputs = torch.tanh(self.body(self.features(observation)))
        rows = []
        for t in range(len(inputs)) if is_first.ndim == 2 else [...]:
            state = 0.9 * state.masked_fill(is_first[t].unsqueeze(-1), 0.0) + 0.1 * inputs[t]
            rows.append(state)
        outputs = self.head(torch.stack(rows) if is_first.ndim == 2 else state)
        return outputs[..., :-1], outputs[..., -1], state


class Breaks(torch.nn.Module):
    """A model whose constructor raises."""

    def __init__(self, spaces: EnvSpaces, n_outputs: int) -> None:
        raise RuntimeError("no two alike")
