"""GridWorld, and policies with garage's interface for it; each acts alike in every sampler."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

MAP = "SFFFFHFHFFFHHFFG"  # start, free, hole, goal
LEFT, DOWN, RIGHT, UP = range(4)
MOVES = {LEFT: (0, -1), DOWN: (1, 0), RIGHT: (0, 1), UP: (-1, 0)}
HOLES = tuple(field for field, kind in enumerate(MAP) if kind == "H")
FREE = tuple(field for field, kind in enumerate(MAP) if kind == "F")

#: An action for each field; an episode visits STATES with ACTIONS, and its last reward is 1, all others 0.
SCRIPT = (2, 2, 1, 0, 3, 1, 1, 1, 2, 2, 1, 1, 1, 2, 2, 1)
STATES = (0, 1, 2, 6, 10, 14)
ACTIONS = (2, 2, 1, 1, 1, 2)


class GridWorld(gym.Env[np.int64, np.int64]):
    """A walk over 4 × 4 fields, observed as their number. It terminates in a hole, or with a reward of 1 at the goal.

    Nothing is random. Infos of `reset` and `step` name the goal, which is a task: `set_task` sets it.
    """

    observation_space = spaces.Discrete(16)
    action_space = spaces.Discrete(4)

    def __init__(self, goal: int = 15) -> None:
        self.goal = goal
        self.n_closed = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.int64, dict[str, Any]]:
        super().reset(seed=seed)
        self._field = 0
        return np.int64(0), {"goal": self.goal}

    def step(self, action: np.int64) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        down, right = MOVES[int(action)]
        row, column = divmod(self._field, 4)
        self._field = 4 * min(max(row + down, 0), 3) + min(max(column + right, 0), 3)
        at_goal = self._field == self.goal
        return np.int64(self._field), float(at_goal), at_goal or self._field in HOLES, False, {"goal": self.goal}

    def set_task(self, task: dict[str, int]) -> None:
        self.goal = task["goal"]

    def sample_tasks(self, n_tasks: int) -> list[dict[str, int]]:
        return [{"goal": int(goal)} for goal in self.np_random.choice(FREE, n_tasks)]

    def close(self) -> None:
        self.n_closed += 1


class ScriptedPolicy:
    """Looks its actions up in a table by the number of the field; has no parameters."""

    def __init__(self, actions: Sequence[int] = SCRIPT) -> None:
        self._actions = np.array(actions)

    def reset(self, do_resets: Any = None) -> None:
        pass

    def get_action(self, observation: Any) -> tuple[Any, dict[str, Any]]:
        return self._actions[observation], {"field": observation}

    def get_actions(self, observations: Any) -> tuple[Any, dict[str, Any]]:
        return self._actions[observations], {"field": np.array(observations)}

    def get_param_values(self) -> Any:
        return None

    def set_param_values(self, params: Any) -> None:
        pass


class LinearPolicy:
    """Samples actions from the softmax of a linear function, with a generator of its own. Its parameters are a dict."""

    def __init__(self, n_inputs: int, n_actions: int, seed: int = 0) -> None:
        self.params: dict[str, Any] = {
            "weight": np.zeros((n_inputs, n_actions)),
            "bias": np.zeros(n_actions),
            "n_updates": 0,
        }
        self._rng = np.random.default_rng(seed)

    def reset(self, do_resets: Any = None) -> None:
        pass

    def get_action(self, observation: Any) -> tuple[Any, dict[str, Any]]:
        actions, infos = self.get_actions(observation[None])
        return actions[0], {name: rows[0] for name, rows in infos.items()}

    def get_actions(self, observations: Any) -> tuple[Any, dict[str, Any]]:
        logits = observations @ self.params["weight"] + self.params["bias"]
        chances = np.exp(logits - logits.max(-1, keepdims=True))
        chances /= chances.sum(-1, keepdims=True)
        drawn = self._rng.random((len(observations), 1))
        infos = {"chances": chances, "n_updates": np.full(len(observations), self.params["n_updates"])}
        return (chances[:, :-1].cumsum(-1) < drawn).sum(-1), infos

    def get_param_values(self) -> Any:
        return self.params

    def set_param_values(self, params: Any) -> None:
        self.params = params


class CountingPolicy:
    """Keeps the number of its actions in each episode and acts with it: a policy with state between its calls."""

    def __init__(self, n_actions: int = 3) -> None:
        self._n_actions = n_actions
        self._counts = np.zeros(0, np.int64)

    def reset(self, do_resets: Any) -> None:
        if len(self._counts) != len(do_resets):
            self._counts = np.full(len(do_resets), -100)
        self._counts[do_resets] = 0

    def get_actions(self, observations: Any) -> tuple[Any, dict[str, Any]]:
        assert len(observations) == len(self._counts)
        actions = self._counts % self._n_actions
        self._counts += 1
        return actions, {}

    def get_param_values(self) -> Any:
        return np.zeros(0)

    def set_param_values(self, params: Any) -> None:
        pass


class CountingAlone:
    """The same for one environment: it has no `get_actions`, and its `reset` takes no argument."""

    def __init__(self, n_actions: int = 3) -> None:
        self._n_actions = n_actions
        self._count = -100

    def reset(self) -> None:
        self._count = 0

    def get_action(self, observation: Any) -> tuple[Any, dict[str, Any]]:
        self._count += 1
        return (self._count - 1) % self._n_actions, {}

    def get_param_values(self) -> Any:
        return None

    def set_param_values(self, params: Any) -> None:
        pass
