"""A trained agent as a function from observations to actions, for those who step environments themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces as gym_spaces

from headrace.agents.base import Agent
from headrace.agents.description import agent_of, spaces_of
from headrace.buffers.tree import allocate_like, tree_map, tree_paths, tree_to_torch, tree_zeroed
from headrace.checkpoints.file import load_checkpoint
from headrace.checkpoints.store import CheckpointStore
from headrace.envs.agent_answers import action_writer
from headrace.envs.spaces import Mismatch, action_decoder, null_value, observation_writer, vector_action_decoder
from headrace.envs.vector.answers import VectorAnswers
from headrace.errors import AgentFailed, CheckpointError, one_line
from headrace.rng import Stream, draw_seed, env_keys, uniforms
from headrace.types import EnvSpaces, StepInputs, Tree

__all__ = ["Policy", "load_agent"]


class Policy:
    """An initialized agent in one environment, or in several at once::

        observation, _ = env.reset()
        policy.reset()
        while ...:
            observation, reward, terminated, truncated, _ = env.step(policy(observation))

    Observations are what the environment returns, actions what its `step` takes, NumPy both. One observation is one
    action. Observations with a leading dimension n, in every array of a Dict or Tuple, are those of n environments, as
    Gymnasium's vector environments return them, and give n actions; which of the two came is seen from the shapes of
    the space. Memory and the previous action of each environment are kept until `reset()`.

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
        self._seed = draw_seed() if seed is None else seed
        self._keys = np.empty(0, np.uint64)
        self._steps = 0
        self._write = observation_writer(self.spaces.observation, _not_told)
        self._write_action = action_writer(self.spaces.action)
        self._decode, self._decode_rows = action_decoder(self.spaces.action), vector_action_decoder(self.spaces.action)
        self._null_action = null_value(self.spaces.action)
        self._state: Tree = None
        self._prev_action: Tree = None
        self.reset()

    def reset(self, rows: Any = None) -> None:
        """Call it where an episode begins, before its first observation: forgets the one before.

        rows: of several environments those that begin anew, as a mask `[n]` or a list of numbers; None: all of them,
        and another number of environments may follow. Raises ValueError for rows that are not there.
        """
        if rows is None:
            self._n = 0  # environments; the next observation says how many
        elif self._n:
            try:
                self._is_first[rows] = True
            except IndexError as error:
                raise ValueError(
                    f"rows must be a mask [{self._n}] or numbers below {self._n}, got {rows!r} ({error})"
                ) from None

    def __call__(self, observation: Any, prev_reward: Any = 0.0) -> Any:
        """The action for an observation, or the actions `[n, ...]` for those of n environments.

        prev_reward: of the step before, `[n]` for several, which some models with memory look at; it counts for nothing
        at the start of an episode. Raises ValueError for what is no observation of the space, and for another number of
        environments than before without a `reset()`; AgentFailed where the agent answers what is no action.
        """
        n = _leading_dimension(self.spaces.observation, observation)
        if not self._n or (self._n_given != n and self._is_first.all()):
            self._begin(n)
        elif self._n_given != n:
            raise ValueError(
                f"observations of {_environments(n)} came after those of {_environments(self._n_given)}; call reset() "
                "where other environments begin"
            )
        try:
            if n is None:
                self._write(self._observation, 0, observation)
                for leaf_path, leaf in tree_paths(self._observation, "observation"):
                    self._answers.check_finite(leaf, leaf_path)
            else:
                self._answers.write(self._observation, observation)
        except Mismatch as error:
            raise ValueError(f"{error.path} is {error.came}, expected {error.expected}") from None
        device = self.agent.device
        is_first = torch.from_numpy(self._is_first)
        if self._is_first.any():
            begun = is_first.to(device)
            self._state, self._prev_action = tree_zeroed(self._state, begun), tree_zeroed(self._prev_action, begun)
        inputs = StepInputs(
            tree_to_torch(self._observation), self._prev_action, self._rewards(prev_reward), is_first, self._noise()
        )
        if device.type != "cpu":
            inputs = tree_map(lambda leaf: leaf.to(device), inputs)
        # Each time, because others may use the agent meanwhile.
        (self.agent.eval_mode if self._greedy else self.agent.sample_mode)(self.itr)
        with torch.inference_mode():
            step = self.agent.step(inputs, self._state)
        # By way of arrays of the space's dtype, as in samplers.
        try:
            self._write_action(self._action, step.action)
        except Mismatch as wrong:
            raise AgentFailed(
                f"{type(self.agent).__name__}.step() returned {wrong.path} = {wrong.came}, expected {wrong.expected}; "
                "correct the agent"
            ) from None
        # Copies: the agent may use its tensors again, for others too.
        self._state = tree_map(torch.clone, step.state)
        self._prev_action = tree_to_torch(tree_map(np.copy, self._action), device)
        self._is_first[:] = False
        self._steps += 1
        return self._decode(self._action)[0] if n is None else self._decode_rows(self._action)

    def _begin(self, n: int | None) -> None:
        """Takes the number of environments, None for one without a leading dimension: all of them begin an episode."""
        rows = 1 if n is None else n
        if not rows:
            raise ValueError("the observation is of no environment at all, [0, ...]")
        if len(self._keys) != rows:
            self._keys = env_keys(self._seed, Stream.EVAL_ACTION, range(rows))
        self._n, self._n_given = rows, n
        self._answers = VectorAnswers(rows, self.spaces.observation, {}, _not_told)
        self._observation = allocate_like(null_value(self.spaces.observation), (rows,), np.zeros)
        self._action = allocate_like(self._null_action, (rows,), np.zeros)
        self._is_first = np.ones(rows, np.bool_)
        self._prev_action = tree_to_torch(allocate_like(self._null_action, (rows,), np.zeros), self.agent.device)
        self._state = tree_map(torch.clone, self.agent.initial_state(rows))

    def _rewards(self, prev_reward: Any) -> torch.Tensor:
        """Float32 `[n]`, zero where an episode begins."""
        given = np.asarray(prev_reward, np.float32)
        if given.shape not in ((), (self._n,)):
            raise ValueError(f"prev_reward has the shape {list(given.shape)}, expected one number, or [{self._n}]")
        return torch.from_numpy(np.where(self._is_first, np.float32(0.0), given))

    def _noise(self) -> torch.Tensor:
        """As evaluations draw it for their environments 0 to n − 1, float32 `[n, agent.noise_size]`."""
        agent = self.agent
        noise = uniforms(self._keys, self._steps, 1, agent.noise_size - agent.noise_has_env_id)[0]
        if agent.noise_has_env_id:
            noise = np.concatenate([noise, np.arange(self._n, dtype=np.float32)[:, None]], axis=1)
        return torch.from_numpy(noise)


def _leading_dimension(space: gym_spaces.Space[Any], observation: Any) -> int | None:
    """The n of observations of n environments; None for those of one. Raises ValueError where the parts differ."""
    found = dict(_leading_dimensions(space, observation, "observation"))
    if len(set(found.values())) > 1:
        said = ", ".join(f"{path} is of {_environments(n)}" for path, n in found.items())
        raise ValueError(f"the parts of the observation are not of the same environments: {said}")
    return next(iter(found.values()), None)


def _leading_dimensions(space: gym_spaces.Space[Any], observation: Any, path: str) -> Iterator[tuple[str, int | None]]:
    """(path, leading dimension) of every array. What has another structure is left to those who write it down."""
    match space:
        case gym_spaces.Dict():
            for key, child in space.spaces.items():
                if isinstance(observation, dict) and key in observation:
                    yield from _leading_dimensions(child, observation[key], f"{path}[{key!r}]")
        case gym_spaces.Tuple():
            parts = observation if isinstance(observation, tuple) else ()
            for index, (child, part) in enumerate(zip(space.spaces, parts, strict=False)):
                yield from _leading_dimensions(child, part, f"{path}[{index}]")
        case _:
            # One dimension more than the space has: a number of a Discrete space is no array `[n]` of them.
            several = isinstance(observation, np.ndarray) and observation.ndim == len(space.shape or ()) + 1
            yield path, len(observation) if several else None


def _environments(n: int | None) -> str:
    return "one environment" if n is None else f"{n} environments, [{n}, ...]"


def load_agent(
    path: str | Path,
    agent: Agent | None = None,
    greedy: bool = True,
    *,
    seed: int | None = None,
    ModelCls: Any = None,
) -> Policy:
    """The agent of a file as a policy: `policy(observation)` is an action.

    path: a checkpoint, a file of `agent.save`, or the folder of a run (its newest checkpoint; `best.pt` is in it too).
    ModelCls: the model of the agent where that is not headrace's own, since a file is never allowed to say which code
    to run. agent: instead, one made like that of the file, not initialized; needed where its class is not headrace's
    own. greedy, seed: see `Policy`.

    Raises FileNotFoundError; CheckpointError if the file is not whole, does not say all about its agent, or does not
    fit what was given.
    """
    path = Path(path)
    if path.is_dir():
        path, state = CheckpointStore(path).load()
    else:
        state = load_checkpoint(path)
    try:
        about, weights, itr = state["about"], state["agent"], state["itr"]
        spaces = spaces_of(about)
        of_file = agent is None and ModelCls is None
        why_not, own_model = str(about["why_not"]), str(about.get("own_model", ""))
        if not isinstance(weights, dict) or isinstance(itr, bool) or not isinstance(itr, int) or itr < 0:
            raise ValueError(f"itr {itr!r}"[:100])
        if agent is None and (not why_not or (own_model and ModelCls is not None)):
            agent = agent_of(about, ModelCls)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is a checkpoint, but not one that a runner wrote ({error!r})") from error
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error.__cause__
    if agent is None:
        remedy = (
            "the model: load_agent(path, ModelCls=...)"
            if own_model
            else "one like it: load_agent(path, agent=MyAgent(...))"
        )
        raise CheckpointError(f"{path} cannot say what its agent is: {why_not}. Give {remedy}")
    if agent.spaces is not None and agent.spaces != spaces:
        raise CheckpointError(f"{path} is of environments with {spaces}, the agent is for {agent.spaces}")
    _restore(agent, spaces, weights, path, of_file)
    return Policy(agent, greedy, seed, itr)


def _restore(agent: Agent, spaces: EnvSpaces, weights: dict[str, Any], path: Path, of_file: bool) -> None:
    """Builds the model and gives it the weights; raises CheckpointError if they are not its own, or NaN."""
    try:
        if agent.spaces is None:
            _require_fit(agent, spaces, weights, of_file)
        agent.initialize(spaces, seed=0)
        agent.load_state_dict(weights)
    except Exception as error:  # whatever forged spaces and weights do to a model
        raise CheckpointError(
            f"the weights in {path} are not of this {type(agent).__name__} ({one_line(error)}); give "
            "one made with the same arguments: load_agent(path, agent=...)"
        ) from error
    for tensor in agent.acting_state():
        if tensor.is_floating_point() and tensor.isnan().any():
            raise CheckpointError(f"the weights in {path} are NaN; take an earlier checkpoint")


def _require_fit(agent: Agent, spaces: EnvSpaces, weights: dict[str, Any], of_file: bool) -> None:
    """Raises ValueError if the model would not have the shapes of the weights, before there is memory for it: settings
    of a few bytes may ask for more than the machine has. of_file: the model is headrace's own, as the file says.
    """
    try:
        with torch.device("meta"):
            expected = agent.build_model(spaces).state_dict()
    except Exception:
        if of_file:
            raise
        return  # a model of the user's own, which looks at numbers while it is built
    given = weights["model"] if of_file else weights.get("model", expected)
    for name, tensor in expected.items():
        if given[name].shape != tensor.shape or not torch.can_cast(given[name].dtype, tensor.dtype):
            raise ValueError(
                f"{name} is {given[name].dtype} {list(given[name].shape)}, expected {tensor.dtype} {list(tensor.shape)}"
            )


def _not_told(path: str, came: Any, dtype: Any) -> None:
    """Who acts casts as samplers do, which said so while they collected."""
