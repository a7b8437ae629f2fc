"""The process in which an environment is checked, one stage after another, as requested by `check_env`."""

from __future__ import annotations

import hashlib
import inspect
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import psutil
from gymnasium import spaces

from headrace.buffers.tree import allocate_like, tree_leaves, tree_paths, tree_rows
from headrace.envs.checking.probe import Probe, headline_at, violation_of
from headrace.envs.checking.rules import Violation
from headrace.envs.factory import EnvFactory, close_quietly
from headrace.envs.global_rng import GlobalRandomness
from headrace.envs.scalar import ScalarEnvs
from headrace.envs.spaces import action_decoder, limits, null_value
from headrace.errors import EnvContractError, SamplerError, headline
from headrace.processes.child import Channel
from headrace.processes.status import Phase, Status
from headrace.rng import env_seeds
from headrace.types import StepRow, Tree

__all__ = ["CheckJob", "Event", "Findings", "checking_process"]

_RESETS = 8  # resets that are compared for being all the same
_DISTINCT = 4  # distinct first observations of seeded resets for which equal unseeded ones are no coincidence
_ADAPTERS = ("gymnasium.", "headrace.")  # wrappers from these packages pass every argument on
_FINAL_KEYS = {"final_observation", "final_obs", "terminal_observation"}


@dataclass(frozen=True)
class CheckJob:
    """What to check.

    Args:
        factory: makes the environment.
        n_steps: steps of the main run.
        seed: seed of the environment's seeds and of the actions.
    """

    factory: EnvFactory
    n_steps: int
    seed: int


@dataclass(frozen=True)
class Event:
    """The result of one call. observation: a digest; reward, terminated and truncated are those of `step`."""

    place: str
    observation: bytes
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False

    @property
    def is_reset(self) -> bool:
        """Whether the call was `reset`."""
        return self.place.startswith("reset")

    def difference(self, other: Event) -> str:
        """Describes in words what differs from another event."""
        for name in ("reward", "terminated", "truncated"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return f"{name} {mine} and {theirs}"
        return "different observations"


@dataclass
class Findings:
    """What a stage found. events: for `play`, the results of the calls of its environment."""

    violations: list[Violation] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)


def checking_process(channel: Channel, job: CheckJob) -> None:
    """Replies True when it is ready, then runs the requested stages and replies with their `Findings`, until None."""
    checker = _Checker(job, channel.status)
    channel.reply(True)
    while (stage := channel.receive()) is not None:
        channel.reply(checker.run(stage))
    checker.leave()
    channel.reply(True)


class _Broken(Exception):
    """A violation after which its stage cannot continue."""

    def __init__(self, violation: Violation) -> None:
        super().__init__(violation)
        self.violation = violation


class _Checker:
    """Keeps the environments under check from stage to stage."""

    def __init__(self, job: CheckJob, status: Status) -> None:
        self._job = job
        self._status = status
        self._randomness = GlobalRandomness()
        self._envs: list[gymnasium.Env[Any, Any]] = []
        self._events: list[Event] = []
        self._found: dict[str, Violation] = {}

    def run(self, stage: str) -> Findings:
        """Runs a stage by its name."""
        self._found = {}
        events: list[Event] = []
        try:
            match stage:
                case "make":
                    self._make()
                case "play":
                    events = self._events = self._play(self._envs[:1], self._job.n_steps)
                    self._check_spaces_are_the_same(self._envs[0], "after the run")
                case "reseed":
                    self._reseed()
                case "restart":
                    self._restart()
                case "together":
                    self._alternate()
                case "close":
                    self._close()
        except _Broken as broken:
            self._note(broken.violation)
        return Findings(list(self._found.values()), events)

    def leave(self) -> None:
        """Closes the environments that no stage closed."""
        close_quietly(self._envs)

    # ---- stages ----

    def _make(self) -> None:
        env = self._new_env()
        self._spaces = {name: self._space(env, name) for name in ("observation_space", "action_space")}
        for call in ("reset", "step"):
            self._check_signature(env, call)
        self._check_action_space(env.action_space)
        self._check_spaces_are_the_same(self._new_env(), "of a second environment")

    def _reseed(self) -> None:
        events = self._play(self._envs[:1], max(1, self._job.n_steps // 4))
        self._compare(events, "reseeding", "an environment reset with its first seed after other episodes gave")

    def _restart(self) -> None:
        """Checks whether all episodes are the same, which can be decided only if different seeds give different
        episodes.
        """
        seeded = {self._first_observations(seed, 1)[0] for seed in range(_RESETS)}
        if len(seeded) < _DISTINCT:
            return
        unseeded = self._first_observations(self._job.seed, 1 + _RESETS)[1:]
        if len(set(unseeded)) == 1:
            came = f"{_RESETS} resets without a seed gave the same observation, but different seeds give different ones"
            self._note(Violation("continues", "reset()", came, "a generator that continues"))

    def _alternate(self) -> None:
        """Checks that stepping a second environment in turn does not affect the first."""
        events = self._play([self._envs[1], self._new_env()], max(1, self._job.n_steps // 4))
        self._compare(events, "independence", "an environment stepped alternately with another gave")

    def _close(self) -> None:
        children = psutil.Process().children(recursive=True)
        envs, self._envs = self._envs, []
        for env in envs:
            for call in ("close()", "the second close()"):
                self._status.enter(Phase.CLOSING, 0)
                with self._watched(call, "close"):
                    env.close()
        left = psutil.wait_procs(children, timeout=1.0)[1]
        if left:
            came = f"{len(left)} of its processes still run: {', '.join(sorted(process.name() for process in left))}"
            self._note(Violation("close", "close()", came, "none"))

    # ---- parts ----

    def _note(self, violation: Violation) -> None:
        self._found.setdefault(violation.clause, violation)

    @contextmanager
    def _watched(self, call: str, clause: str) -> Iterator[None]:
        """Guards a call outside `ScalarEnvs`: it must neither raise nor use the global generators."""
        try:
            yield
        except BaseException as error:
            raise _Broken(Violation(clause, call, f"raised {headline_at(error)}", "no exception")) from error
        self._note_randomness(call)

    def _note_randomness(self, call: str) -> None:
        touched = self._randomness.touched()
        if touched:
            came = f"draws from the global generator of {' and '.join(touched)}"
            self._note(Violation("global-rng", call, came, "a generator of its own"))

    def _new_env(self) -> gymnasium.Env[Any, Any]:
        self._status.enter(Phase.CONSTRUCTING, len(self._envs))
        with self._watched("the constructor", "constructor"):
            try:
                env = self._job.factory.made()
            except EnvContractError as error:
                came = error.message.split(";")[0]
                raise _Broken(Violation("constructor", "the constructor", came, "a gymnasium.Env")) from error
        self._envs.append(env)
        return env

    def _space(self, env: gymnasium.Env[Any, Any], name: str) -> spaces.Space[Any]:
        """Returns one of the spaces, checked by itself."""
        with self._watched(f"env.{name}", "spaces"):
            space = getattr(env, name, None)
        if not isinstance(space, spaces.Space):
            came = f"{type(space).__name__} {space!r}"
            raise _Broken(Violation("spaces", f"env.{name}", came, "a gymnasium.Space"))
        try:
            if name == "action_space":
                action_decoder(space)
            else:
                null_value(space, "observation")
        except EnvContractError as error:
            came = error.message.partition(": it has ")[0]
            raise _Broken(Violation("fixed-shape", f"env.{name}", came, "a space of a fixed shape")) from error
        try:
            copy: spaces.Space[Any] = pickle.loads(pickle.dumps(space))
            came = "" if copy == space else "its pickled copy is not equal to it"
        except Exception as error:
            came = headline(error)
        if came:
            raise _Broken(Violation("spaces", f"pickling env.{name}", came, "a space that can be pickled"))
        return copy  # a copy, which the environment cannot modify

    def _check_action_space(self, space: spaces.Space[Any]) -> None:
        with self._watched("action_space.sample()", "action-space"):
            runs = []
            for _ in range(2):
                space.seed(self._job.seed)
                samples = [space.sample() for _ in range(5)]
                runs.append(pickle.dumps(samples))
            outside = [sample for sample in samples if not space.contains(sample)]
        if runs[0] != runs[1]:
            came = "the same seed gave different samples"
            self._note(Violation("action-space", "action_space.seed()", came, "the same samples"))
        if outside:
            came = f"{outside[0]!r} is not in {space}"
            self._note(Violation("action-space", "action_space.sample()", came, "an element of the space"))

    def _check_signature(self, env: gymnasium.Env[Any, Any], call: str) -> None:
        """Checks the signature of the environment and of everything below wrappers of Gymnasium and of this library."""
        layer: gymnasium.Env[Any, Any] = env
        while True:
            signature = inspect.signature(getattr(layer, call))
            try:
                if call == "reset":
                    signature.bind()
                    signature.bind(seed=0, options={})
                else:
                    signature.bind(0)
            except TypeError as error:
                expected = "reset(self, *, seed=None, options=None)" if call == "reset" else "step(self, action)"
                came = f"{type(layer).__name__}.{call}{signature} ({error})"
                self._note(Violation("signature", f"{call}()", came, expected))
                return
            if not (isinstance(layer, gymnasium.Wrapper) and type(layer).__module__.startswith(_ADAPTERS)):
                return  # a third-party wrapper is responsible for what it wraps
            layer = layer.env

    def _check_spaces_are_the_same(self, env: gymnasium.Env[Any, Any], when: str) -> None:
        for name, space in self._spaces.items():
            other = getattr(env, name, None)
            if other != space:
                self._note(Violation("spaces", f"env.{name}", f"{other} {when}", f"{space}, as before"))

    def _batch(
        self, envs: Sequence[gymnasium.Env[Any, Any]], seeds: Sequence[tuple[int, int]]
    ) -> tuple[Probe, ScalarEnvs, StepRow]:
        """Returns the samplers' own batch of environments, the probe of the first one, and a time step to record them
        in.
        """
        probes = [Probe(env, self._status, self._note_randomness) for env in envs]
        with self._explained(probes[0]):
            batch = ScalarEnvs(probes, range(len(envs)), seeds, name=self._job.factory.name, status=self._status)
        n = len(envs)
        observation = allocate_like(null_value(self._spaces["observation_space"]), (n,), np.zeros)
        floats = [leaf for leaf in tree_leaves(observation) if leaf.dtype.kind == "f"]
        out = StepRow(observation, np.zeros(n, np.float32), np.zeros(n, np.bool_), np.zeros(n, np.bool_), {}, floats)
        return probes[0], batch, out

    @contextmanager
    def _explained(self, probe: Probe) -> Iterator[None]:
        """Turns errors of `ScalarEnvs` into violations."""
        try:
            yield
        except SamplerError as error:
            raise _Broken(violation_of(error, probe.place)) from error
        except KeyboardInterrupt as error:  # raised by the environment: this process ignores Ctrl-C
            came = f"raised {headline_at(error)}"
            raise _Broken(Violation("raises", probe.place, came, "no exception")) from error

    def _first_observations(self, seed: int, count: int) -> list[bytes]:
        """Returns digests of the observations of a seeded reset and of the resets after it, `count` in total."""
        probe, batch, out = self._batch(self._envs[:1], [(seed, seed)])
        digests = []
        for _ in range(count):
            with self._explained(probe):
                batch.reset(None, out.observation)
            digests.append(_digest(out.observation))
        return digests

    def _play(self, envs: Sequence[gymnasium.Env[Any, Any]], n_steps: int) -> list[Event]:
        """Steps environments with random actions and returns the events of the first one."""
        seeds = [env_seeds(self._job.seed, env_id) for env_id in range(len(envs))]
        first, batch, out = self._batch(envs, seeds)
        limits = list(_limits(self._spaces["observation_space"]))
        with self._explained(first):
            batch.reset(None, out.observation)
        self._check_bounds(out.observation, limits, first.place)
        events = [Event(first.place, _digest(out.observation))]
        for _ in range(n_steps):
            out.terminated[:] = out.truncated[:] = False
            with self._explained(first):
                ends = batch.step(batch.random_actions(out.observation), out)
            ended = 0 in ends.columns
            after = tree_rows(ends.observation, slice(0, 1)) if ended else out.observation
            terminated, truncated = bool(out.terminated[0]), bool(out.truncated[0])
            self._check_bounds(after, limits, first.stepped)
            self._check_limit(first, terminated, truncated)
            events.append(Event(first.stepped, _digest(after), float(out.reward[0]), terminated, truncated))
            if ended:
                if _FINAL_KEYS & ends.infos[0].keys():
                    came = f"info has {sorted(_FINAL_KEYS & ends.infos[0].keys())}: the observation follows a reset"
                    self._note(Violation("autoreset", first.stepped, came, "the last observation of the episode"))
                self._check_bounds(out.observation, limits, first.place)
                events.append(Event(first.place, _digest(out.observation)))
        return events

    def _check_bounds(self, observation: Tree, limits: Sequence[tuple[Any, Any]], place: str) -> None:
        """Checks the bounds of the first environment's observation."""
        for (path, leaf), (low, high) in zip(tree_paths(observation), limits, strict=True):
            outside = (leaf[0] < low) | (leaf[0] > high)
            if outside.any():
                index = tuple(np.argwhere(outside)[0].tolist())
                came = f"observation{path}{list(index) if index else ''} = {leaf[0][index]}"
                low, high = np.broadcast_to(low, outside.shape)[index], np.broadcast_to(high, outside.shape)[index]
                self._note(Violation("bounds", place, came, f"a number in [{low}, {high}]"))

    def _check_limit(self, probe: Probe, terminated: bool, truncated: bool) -> None:
        limit, steps = probe.max_steps, probe.steps_of_last
        if limit is None or steps < limit or truncated:
            return
        came = f"terminated={terminated}, truncated={truncated} at step {steps} of an episode"
        self._note(Violation("time-limit", probe.stepped, came, f"truncated=True, as max_episode_steps is {limit}"))

    def _compare(self, events: Sequence[Event], clause: str, what: str) -> None:
        """Records where a run differs from the main run."""
        for event, other in zip(events, self._events, strict=False):
            if event != other:
                came = f"{what} {other.difference(event)}"
                self._note(Violation(clause, event.place, came, "the results of a new environment on its own"))
                return


def _digest(observation: Tree) -> bytes:
    """Returns a digest of the first environment's observation."""
    digest = hashlib.blake2b(digest_size=16)
    for leaf in tree_leaves(observation):
        digest.update(leaf[0].tobytes())
    return digest.digest()


def _limits(space: spaces.Space[Any]) -> Iterator[tuple[Any, Any]]:
    """Yields (low, high) of every leaf, in the order of `tree_paths`."""
    match space:
        case spaces.Dict():
            for child in space.spaces.values():
                yield from _limits(child)
        case spaces.Tuple():
            for child in space.spaces:
                yield from _limits(child)
        case _:
            yield limits(space)
