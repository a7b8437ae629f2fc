"""A trained agent as a function from observations to actions, for users who step environments themselves."""

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
    """An initialized agent that acts in one environment, or in several at once::

        observation, _ = env.reset()
        policy.reset()
        while ...:
            observation, reward, terminated, truncated, _ = env.step(policy(observation))

    Observations are what the environment returns and actions are what its `step` takes, both as NumPy values. One
    observation gives one action. Observations with a leading dimension n, in every array of a Dict or Tuple, are those
    of n environments, as Gymnasium's vector environments return them, and give n actions; the shapes of the space
    decide which of the two it is. The recurrent state and the previous action of each environment are kept until
    `reset()`.

    Args:
        agent: an initialized agent.
        greedy: whether to take the most probable actions; otherwise actions are sampled.
        seed: seed of the samples. None: a random one.
        itr: number of batches the agent was trained on; its exploration may depend on it.

    Raises:
        ValueError: if the agent is not initialized.
    """

    def __init__(self, agent: Agent, greedy: bool = True, seed: int | None = None, itr: int = 0) -> None:
        if agent.spaces is None:
            raise ValueError(
                "the agent has no model yet; call agent.initialize(spaces, seed=0), or load it with load_agent()"
            )
        self.agent = agent
        self.spaces = agent.spaces
        self.itr = itr
        self._greedy = greedy
        self._seed = draw_seed() if seed is None else seed
        self._keys = np.empty(0, np.uint64)
        self._steps = 0
        self._write = observation_writer(self.spaces.observation, _ignore_cast)
        self._write_action = action_writer(self.spaces.action)
        self._decode, self._decode_rows = action_decoder(self.spaces.action), vector_action_decoder(self.spaces.action)
        self._null_action = null_value(self.spaces.action)
        self._state: Tree = None
        self._prev_action: Tree = None
        self.reset()

    def reset(self, rows: Any = None) -> None:
        """Resets the policy at the start of an episode; call it before the first observation.

        Args:
            rows: which environments start an episode, as a mask `[n]` or a list of indices. None: all of them, and
                their number may change.

        Raises:
            ValueError: for environments that do not exist.
        """
        if rows is None:
            self._n = 0  # number of environments; the next observation determines it
        elif self._n:
            try:
                self._is_first[rows] = True
            except IndexError as error:
                raise ValueError(
                    f"rows must be a mask [{self._n}] or indices below {self._n}, got {rows!r} ({error})"
                ) from None

    def __call__(self, observation: Any, prev_reward: Any = 0.0) -> Any:
        """Returns the action for an observation, or the actions `[n, ...]` for observations of n environments.

        Args:
            observation: as the environment returned it.
            prev_reward: reward of the previous step, `[n]` for n environments; some recurrent models use it. It is
                ignored at the start of an episode.

        Raises:
            ValueError: if the observation is not in the space, or if the number of environments has changed without
                `reset()`.
            AgentFailed: if the agent returns something that is not an action.
        """
        n = _leading_dimension(self.spaces.observation, observation)
        if not self._n or (self._n_given != n and self._is_first.all()):
            self._begin(n)
        elif self._n_given != n:
            raise ValueError(
                f"got observations of {_environments(n)} after those of {_environments(self._n_given)}; call reset() "
                "before passing those of other environments"
            )
        try:
            if n is None:
                self._write(self._observation, 0, observation)
                for leaf_path, leaf in tree_paths(self._observation, "observation"):
                    self._answers.check_finite(leaf, leaf_path)
            else:
                self._answers.write(self._observation, observation)
        except Mismatch as error:
            raise ValueError(str(error)) from None
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
        # Set the mode in every call, because others may use the agent in between.
        (self.agent.eval_mode if self._greedy else self.agent.sample_mode)(self.itr)
        with torch.inference_mode():
            step = self.agent.step(inputs, self._state)
        # Convert through arrays of the space's dtype, as samplers do.
        try:
            self._write_action(self._action, step.action)
        except Mismatch as wrong:
            raise AgentFailed(f"{type(self.agent).__name__}.step() returned {wrong}; correct the agent") from None
        # Copy, because the agent may reuse its tensors, also for other callers.
        self._state = tree_map(torch.clone, step.state)
        self._prev_action = tree_to_torch(tree_map(np.copy, self._action), device)
        self._is_first[:] = False
        self._steps += 1
        return self._decode(self._action)[0] if n is None else self._decode_rows(self._action)

    def _begin(self, n: int | None) -> None:
        """Starts episodes in `n` environments; None for one environment without a leading dimension."""
        n_envs = 1 if n is None else n
        if not n_envs:
            raise ValueError("got an observation [0, ...] of no environments, expected at least one")
        if len(self._keys) != n_envs:
            self._keys = env_keys(self._seed, Stream.EVAL_ACTION, range(n_envs))
        self._n, self._n_given = n_envs, n
        self._answers = VectorAnswers(n_envs, self.spaces.observation, {}, _ignore_cast)
        self._observation = allocate_like(null_value(self.spaces.observation), (n_envs,), np.zeros)
        self._action = allocate_like(self._null_action, (n_envs,), np.zeros)
        self._is_first = np.ones(n_envs, np.bool_)
        self._prev_action = tree_to_torch(allocate_like(self._null_action, (n_envs,), np.zeros), self.agent.device)
        self._state = tree_map(torch.clone, self.agent.initial_state(n_envs))

    def _rewards(self, prev_reward: Any) -> torch.Tensor:
        """Returns the previous rewards, float32 `[n]`, zero where an episode starts."""
        given = np.asarray(prev_reward, np.float32)
        if given.shape not in ((), (self._n,)):
            raise ValueError(f"prev_reward has the shape {list(given.shape)}, expected one number or [{self._n}]")
        return torch.from_numpy(np.where(self._is_first, np.float32(0.0), given))

    def _noise(self) -> torch.Tensor:
        """Returns the noise of an evaluation's environments 0 to n − 1, float32 `[n, agent.noise_size]`."""
        agent = self.agent
        noise = uniforms(self._keys, self._steps, 1, agent.noise_size - agent.noise_has_env_id)[0]
        if agent.noise_has_env_id:
            noise = np.concatenate([noise, np.arange(self._n, dtype=np.float32)[:, None]], axis=1)
        return torch.from_numpy(noise)


def _leading_dimension(space: gym_spaces.Space[Any], observation: Any) -> int | None:
    """Returns n for observations of n environments, None for one; raises ValueError if the parts disagree."""
    found = dict(_leading_dimensions(space, observation, "observation"))
    if len(set(found.values())) > 1:
        said = ", ".join(f"{path} is of {_environments(n)}" for path, n in found.items())
        raise ValueError(f"the parts of the observation have different numbers of environments: {said}")
    return next(iter(found.values()), None)


def _leading_dimensions(space: gym_spaces.Space[Any], observation: Any, path: str) -> Iterator[tuple[str, int | None]]:
    """Yields (path, leading dimension) of every array; observations of another structure are checked later."""
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
            # Several if there is one dimension more than in the space; a Discrete number is not an array `[n]`.
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
    """Loads the agent of a file as a policy: `policy(observation)` returns an action.

    Args:
        path: a checkpoint, a file written by `agent.save`, or the folder of a run (its newest checkpoint is used;
            `best.pt` is in the folder too).
        agent: an agent that was constructed like the saved one and is not initialized; required if its class is not
            headrace's own.
        greedy: see `Policy`.
        seed: see `Policy`.
        ModelCls: model of the agent; required if it is not headrace's own, because a file is never allowed to choose
            the code to run.

    Returns:
        The policy.

    Raises:
        FileNotFoundError: if there is no file.
        CheckpointError: if the file is damaged, does not fully describe its agent, or does not fit the arguments.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give the folder of a run, or a file that agent.save() wrote")
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
        raise CheckpointError(f"{path} is a checkpoint, but was not written by a runner ({error!r})") from error
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error.__cause__
    if agent is None:
        remedy = (
            "its model: load_agent(path, ModelCls=...)"
            if own_model
            else "an agent like it: load_agent(path, agent=MyAgent(...))"
        )
        raise CheckpointError(f"{path} does not fully describe its agent: {why_not}; pass {remedy}")
    if agent.spaces is not None and agent.spaces != spaces:
        raise CheckpointError(f"{path} is for environments with {spaces}, but the agent is for {agent.spaces}")
    _restore(agent, spaces, weights, path, of_file)
    return Policy(agent, greedy, seed, itr)


def _restore(agent: Agent, spaces: EnvSpaces, weights: dict[str, Any], path: Path, of_file: bool) -> None:
    """Builds the model and loads the weights; raises CheckpointError if they do not fit or are NaN."""
    try:
        if agent.spaces is None:
            _require_fit(agent, spaces, weights, of_file)
        agent.initialize(spaces, seed=0)
        agent.load_state_dict(weights)
    except Exception as error:  # forged spaces and weights may cause any error in a model
        raise CheckpointError(
            f"the weights in {path} do not fit this {type(agent).__name__} ({one_line(error)}); pass an "
            "agent that is made with the same arguments: load_agent(path, agent=...)"
        ) from error
    for tensor in agent.acting_state():
        if tensor.is_floating_point() and tensor.isnan().any():
            raise CheckpointError(f"the weights in {path} contain NaN; use an earlier checkpoint")


def _require_fit(agent: Agent, spaces: EnvSpaces, weights: dict[str, Any], of_file: bool) -> None:
    """Raises ValueError if the weights do not have the shapes of the model, before memory is allocated for it.

    Settings of a few bytes could ask for more memory than the machine has.

    Args:
        agent: not initialized.
        spaces: spaces of one environment.
        weights: the agent's entries in the file.
        of_file: whether the model is headrace's own and described by the file.
    """
    try:
        with torch.device("meta"):
            expected = agent.build_model(spaces).state_dict()
    except Exception:
        if of_file:
            raise
        return  # the user's own model, which reads tensor values while it is built
    given = weights["model"] if of_file else weights.get("model", expected)
    for name, tensor in expected.items():
        if given[name].shape != tensor.shape or not torch.can_cast(given[name].dtype, tensor.dtype):
            raise ValueError(
                f"{name} is {given[name].dtype} {list(given[name].shape)}, expected {tensor.dtype} {list(tensor.shape)}"
            )


def _ignore_cast(path: str, came: Any, dtype: Any) -> None:
    """Ignores reports of casts: a policy casts as samplers do, and they reported it during training."""
