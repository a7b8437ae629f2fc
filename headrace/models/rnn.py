"""Recurrent models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from gymnasium import spaces as gym_spaces
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

from headrace.config import checked_names
from headrace.models.features import Features
from headrace.models.mlp import TanhBody, linear
from headrace.models.q import DuelingHead
from headrace.types import EnvSpaces, Tree

__all__ = ["RecurrentActorCritic", "RecurrentBody", "RecurrentQNetwork"]

_CELLS = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}


class RecurrentBody(torch.nn.Module):
    """An LSTM or GRU over what the agent saw: observation, previous action and previous reward.

    Subclasses add what turns its output into values or actions.

    Args:
        spaces: spaces of one environment.
        cell: "lstm" or "gru".
        input_size: width of the tanh layer before the cell.
        hidden_size: width of the cell.
        normalize_observation: see `normalize` of `Features`.
    """

    def __init__(
        self, spaces: EnvSpaces, cell: str, input_size: int, hidden_size: int, normalize_observation: bool
    ) -> None:
        super().__init__()
        if cell not in _CELLS:
            raise ValueError(f"cell must be one of {', '.join(_CELLS)}, got {cell!r}")
        self.features = Features(spaces.observation, normalize_observation)
        self.action_features = Features(_recorded(spaces.action))
        self.hidden_size = hidden_size
        self._has_cell_state = cell == "lstm"
        self.input = linear(self.features.size + self.action_features.size + 1, input_size, 2.0**0.5)
        self.rnn = _CELLS[cell](input_size, hidden_size)

    def initial_state(self, n: int) -> Tree:
        """Returns zeros: `(h, c)` for an LSTM, `(h,)` for a GRU, each `[n, hidden_size]`."""
        device = self.input.weight.device
        return tuple(torch.zeros(n, self.hidden_size, device=device) for _ in range(1 + self._has_cell_state))

    def hidden(
        self, observation: Tree, prev_action: Tree, prev_reward: torch.Tensor, is_first: torch.Tensor, state: Tree
    ) -> tuple[torch.Tensor, Tree]:
        """Returns the cell's outputs `[..., hidden_size]` and the new state."""
        seen = torch.cat(
            [self.features(observation), self.action_features(prev_action), prev_reward.unsqueeze(-1)], dim=-1
        )
        inputs = torch.tanh(self.input(seen))
        n_dims = is_first.ndim
        if n_dims == 2:
            return self._over_time(inputs, is_first, state)
        one = n_dims == 0
        if one:
            inputs, is_first, state = inputs[None], is_first[None], tuple(part[None] for part in state)
        state = self._step(inputs, tuple(part.masked_fill(is_first[:, None], 0.0) for part in state))
        if one:
            state = tuple(part[0] for part in state)
        return state[0], state

    def _step(self, inputs: torch.Tensor, state: Tree) -> Tree:
        """Returns the state after one step, for inputs `[n, input_size]`."""
        rnn = self.rnn
        weights = (rnn.weight_ih_l0, rnn.weight_hh_l0, rnn.bias_ih_l0, rnn.bias_hh_l0)
        if self._has_cell_state:
            return torch.lstm_cell(inputs, state, *weights)
        return (torch.gru_cell(inputs, state[0], *weights),)

    def _over_time(self, inputs: torch.Tensor, is_first: torch.Tensor, state: Tree) -> tuple[torch.Tensor, Tree]:
        """Returns outputs `[T, B, hidden_size]` for inputs `[T, B, input_size]`, and the state after time step T − 1.

        The parts between resets run as separate sequences of one packed batch, as fast as without resets.
        """
        T, B = is_first.shape
        starts = is_first.T.clone()  # [B, T], so that sequences are in the order (column, time)
        starts[:, 0] = True
        column, time = starts.nonzero(as_tuple=True)
        at = column * T + time
        lengths = torch.diff(at, append=at.new_tensor([B * T])).tolist()
        first_rows = (time == 0) & ~is_first[0, column]
        entering = tuple((part[column] * first_rows[:, None])[None] for part in state)
        pieces = torch.split(inputs.transpose(0, 1).flatten(0, 1), lengths)
        packed, last = self._run(pack_sequence(list(pieces), enforce_sorted=False), entering)
        hidden = torch.cat(unpack_sequence(packed)).reshape(B, T, -1).transpose(0, 1)
        ends = torch.cat([column[1:] != column[:-1], column.new_ones(1, dtype=torch.bool)])
        return hidden, tuple(part[0][ends] for part in last)

    def _run(self, sequence: Any, state: Tree) -> tuple[Any, Tree]:
        if self._has_cell_state:
            outputs, last = self.rnn(sequence, state)
            return outputs, last
        outputs, last = self.rnn(sequence, state[0])
        return outputs, (last,)


@checked_names
class RecurrentActorCritic(RecurrentBody):
    """Policy outputs and a value from all observations of an episode so far, by an LSTM or a GRU.

    Takes `(observation, prev_action, prev_reward, is_first, state)` with leading dims `[]`, `[B]` or `[T, B]` (those of
    is_first); state has the same leading dims without T. Returns `(outputs [..., n_outputs], value [...], state)`. The
    state is zeroed where `is_first`, so sequences may contain ends of episodes.

    Args:
        spaces: spaces of one environment.
        n_outputs: number of policy outputs.
        cell: "lstm" or "gru".
        input_size: width of the tanh layer before the cell.
        hidden_size: width of the cell.
        normalize_observation: see `normalize` of `Features`.
    """

    def __init__(
        self,
        spaces: EnvSpaces,
        n_outputs: int,
        cell: str = "lstm",
        input_size: int = 64,
        hidden_size: int = 64,
        normalize_observation: bool = False,
    ) -> None:
        super().__init__(spaces, cell, input_size, hidden_size, normalize_observation)
        self.head = linear(hidden_size, n_outputs + 1, 1.0)
        with torch.no_grad():
            self.head.weight[:-1] *= 0.01  # start close to the uniform policy

    def forward(
        self, observation: Tree, prev_action: Tree, prev_reward: torch.Tensor, is_first: torch.Tensor, state: Tree
    ) -> tuple[torch.Tensor, torch.Tensor, Tree]:
        """Returns policy outputs `[..., n_outputs]`, values `[...]` and the new state."""
        hidden, state = self.hidden(observation, prev_action, prev_reward, is_first, state)
        outputs = self.head(hidden)
        return outputs[..., :-1], outputs[..., -1], state


@checked_names
class RecurrentQNetwork(RecurrentBody):
    """Values of all actions from all observations of an episode so far; the default model of `R2d1Agent`.

    Takes `(observation, prev_action, prev_reward, is_first, state)`, as `RecurrentActorCritic` does, and returns
    `(values [..., n_outputs], state)`.

    Args:
        spaces: spaces of one environment.
        n_outputs: number of actions.
        cell: "lstm" or "gru".
        input_size: width of the tanh layer before the cell.
        hidden_size: width of the cell.
        head_sizes: sizes of the tanh layers after the cell.
        dueling: use a `DuelingHead`.
        normalize_observation: see `normalize` of `Features`.
        forget_bias: initial bias of the gate that keeps what is remembered (the forget gate of an LSTM, the update gate
            of a GRU), see Jozefowicz et al., "An empirical exploration of recurrent network architectures", 2015,
            section 2.2. With 0, half is forgotten in each step, and gradients vanish within ten.
    """

    def __init__(
        self,
        spaces: EnvSpaces,
        n_outputs: int,
        cell: str = "lstm",
        input_size: int = 64,
        hidden_size: int = 64,
        head_sizes: Sequence[int] = (),
        dueling: bool = False,
        normalize_observation: bool = False,
        forget_bias: float = 1.0,
    ) -> None:
        super().__init__(spaces, cell, input_size, hidden_size, normalize_observation)
        with torch.no_grad():  # the second of an LSTM's four gates, and of a GRU's three
            self.rnn.bias_ih_l0[hidden_size : 2 * hidden_size] = forget_bias
            self.rnn.bias_hh_l0[hidden_size : 2 * hidden_size] = 0.0
        sizes = [hidden_size, *head_sizes]
        self.head: DuelingHead | TanhBody = DuelingHead(sizes, n_outputs) if dueling else TanhBody([*sizes, n_outputs])

    def forward(
        self, observation: Tree, prev_action: Tree, prev_reward: torch.Tensor, is_first: torch.Tensor, state: Tree
    ) -> tuple[torch.Tensor, Tree]:
        """Returns values `[..., n_outputs]` and the new state."""
        hidden, state = self.hidden(observation, prev_action, prev_reward, is_first, state)
        return self.head(hidden), state


def _recorded(action_space: gym_spaces.Space[Any]) -> gym_spaces.Space[Any]:
    """Returns the space of recorded actions: Discrete ones are recorded as indices from 0, whatever their `start`."""
    return gym_spaces.Discrete(action_space.n) if isinstance(action_space, gym_spaces.Discrete) else action_space
