"""A trained agent as a function from observations to actions, for those who step one environment themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from headrace.agents.base import Agent
from headrace.agents.description import agent_of, spaces_of
from headrace.buffers.tree import tree_copy_into, tree_leaves, tree_map, tree_to_torch
from headrace.envs.spaces import Mismatch, action_decoder, null_value, observation_writer
from headrace.errors import CheckpointError, headline
from headrace.rng import Stream, draw_seed, env_keys, uniforms
from headrace.runners.store import CheckpointStore
from headrace.storage import load_checkpoint
from headrace.types import StepInputs, Tree

__all__ = ["Policy", "load_agent"]


class Policy:
    """An initialized agent in one environment::

        observation, _ = env.reset()
        policy.reset()
        while ...:
            observation, reward, terminated, truncated, _ = env.step(policy(observation))

    Observations are what the environment returns, actions what its `step` takes: NumPy, without leading dimensions.
    Memory and the previous action are kept until `reset()`.

    Args:
        agent: initialized.
        greedy: the most probable actions; else they are drawn.
        seed: of the draws; None draws one.
        itr: batches the agent was trained for, which exploration may depend on.
    """

    def __init__(self, agent: Agent, greedy: bool = True, seed: int | None = None, itr: int = 0) -> None:
        if agent.spaces is None:
            raise ValueError(
                "the agent has no model yet; load_agent() gives it one, or agent.initialize(spaces, seed=0)"
            )
        self.agent = agent
        self.spaces = agent.spaces
        self.itr = itr
        self._greedy = greedy
        self._keys = env_keys(draw_seed() if seed is None else seed, Stream.EVAL_ACTION, (0,))
        self._steps = 0
        self._write = observation_writer(self.spaces.observation, lambda: None, "observation")
        self._decode = action_decoder(self.spaces.action)
        self._observation = tree_map(_one_row, null_value(self.spaces.observation))
        self._action = tree_map(_one_row, null_value(self.spaces.action))
        self._floats = [leaf for leaf in tree_leaves(self._observation) if leaf.dtype.kind == "f"]
        self.reset()

    def reset(self) -> None:
        """Call it where an episode begins: forgets the one before."""
        self._is_first = True
        self._prev_action: Tree = tree_to_torch(tree_map(_one_row, null_value(self.spaces.action)))
        self._state = self.agent.initial_state(1)

    def __call__(self, observation: Any, prev_reward: float = 0.0) -> Any:
        """The action for an observation.

        prev_reward: of the step before, which some models with memory look at; it counts for nothing at the start of an
        episode. Raises ValueError for what is no observation of the space.
        """
        try:
            self._write(self._observation, 0, observation)
        except Mismatch as error:
            raise ValueError(f"{error.path} is {error.came}, expected {error.expected}") from None
        if not all(np.isfinite(leaf).all() for leaf in self._floats):
            raise ValueError("the observation has NaN or infinite numbers")
        reward = 0.0 if self._is_first else float(prev_reward)
        inputs = StepInputs(
            tree_to_torch(self._observation),
            self._prev_action,
            torch.tensor([reward]),
            torch.tensor([self._is_first]),
            torch.from_numpy(uniforms(self._keys, self._steps, 1, self.agent.noise_size)[0]),
        )
        # Each time, because others may use the agent meanwhile.
        (self.agent.eval_mode if self._greedy else self.agent.sample_mode)(self.itr)
        with torch.inference_mode():
            step = self.agent.step(inputs, self._state)
        self._state, self._prev_action = step.state, step.action
        self._is_first, self._steps = False, self._steps + 1
        # By way of an array of the space's dtype, as in samplers.
        tree_copy_into(self._action, tree_map(lambda leaf: leaf.numpy(force=True), step.action))
        (action,) = self._decode(self._action)
        return action


def load_agent(path: str | Path, agent: Agent | None = None, greedy: bool = True, *, seed: int | None = None) -> Policy:
    """The agent of a checkpoint as a policy: `policy(observation)` is an action.

    path: a checkpoint, or the folder of a run (its newest one; `best.pt` is in it too). agent: one made like that of
    the checkpoint, not initialized; needed where its class or its model are not headrace's own, since a file is never
    allowed to say which code to run. greedy, seed: see `Policy`.

    Raises FileNotFoundError; CheckpointError if the file is not whole, does not say all about its agent, or does not
    fit the one given.
    """
    path = Path(path)
    if path.is_dir():
        path, state = CheckpointStore(path).load()
    else:
        state = load_checkpoint(path)
    try:
        about, weights, itr = state["about"], state["agent"], int(state["itr"])
        spaces = spaces_of(about)
        why_not = str(about["why_not"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is a checkpoint, but not one that a runner wrote ({error!r})") from error
    if agent is None:
        if why_not:
            raise CheckpointError(
                f"{path} cannot say what its agent is: {why_not}. "
                "Make one like it: load_agent(path, agent=MyAgent(...))"
            )
        agent = agent_of(about)
    if agent.spaces is not None and agent.spaces != spaces:
        raise CheckpointError(f"{path} is of environments with {spaces}, the agent is for {agent.spaces}")
    agent.initialize(spaces, seed=0)
    try:
        agent.load_state_dict(weights)
    except (RuntimeError, KeyError) as error:
        raise CheckpointError(
            f"the weights in {path} are not of this {type(agent).__name__} ({' '.join(headline(error).split())}); give "
            "one made with the same arguments: load_agent(path, agent=...)"
        ) from error
    return Policy(agent, greedy, seed, itr)


def _one_row(leaf: np.ndarray) -> np.ndarray:
    return leaf[None].copy()
