"""The clauses of the environment contract, and the report of a broken one."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CLAUSES", "Violation"]

#: The remedy for a violation of each clause.
CLAUSES = {
    "pickling": "make EnvCls a module-level function that opens its resources itself, and env_kwargs plain values",
    "constructor": "make EnvCls return a new gymnasium.Env when called with env_kwargs",
    "spaces": "set both spaces in the constructor, the same for every environment, and never change them",
    "fixed-shape": "for a text or a sequence, pass pad={place: n} to the sampler (--pad place=n); for another space, "
    "use a wrapper that makes it a Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of them",
    "action-space": "use Gymnasium's own space classes, whose samples follow from the seed",
    "signature": "define reset(self, *, seed=None, options=None) and step(self, action)",
    "raises": "correct the environment at the place where it raised",
    "reset-answer": "return (observation, info) from reset()",
    "step-answer": "return (observation, reward, terminated, truncated, info) from step()",
    "observation": "correct the observation or its declared space",
    "bounds": "clip the observation, or declare its real bounds",
    "reward": "return one finite number",
    "terminated": "return a bool: True if the task itself ended",
    "truncated": "return a bool: True if a limit cut the episode",
    "info": "return a dict",
    "autoreset": "return the last observation of the episode; remove the autoreset wrapper, because the sampler resets",
    "time-limit": "set truncated at the step of the limit, or correct max_episode_steps in the spec",
    "seeding": "draw all randomness from self.np_random after super().reset(seed=seed)",
    "continues": "make a new generator only if reset() is called with a seed; super().reset(seed=seed) does so",
    "reseeding": "make reset(seed=...) clear the state of earlier episodes, or keep such state outside the environment",
    "independence": "keep all state in the instance: class attributes and module variables must not change",
    "global-rng": "draw from self.np_random, or pass isolate_rng=True to the sampler, which costs time",
    "close": "release everything in close(), and make a second call do nothing",
    "hang": "correct the environment, or set a larger timeout if it is slow",
    "crash": "correct the environment: os._exit(), signals and faults in compiled code end the worker process",
}


@dataclass(frozen=True)
class Violation:
    """One clause that an environment broke.

    Args:
        clause: name of the clause, a key of `CLAUSES`.
        call: the call of the environment.
        came: what the call returned or did.
        expected: what the contract requires.
    """

    clause: str
    call: str
    came: str
    expected: str

    @property
    def remedy(self) -> str:
        """The remedy for this violation."""
        return CLAUSES[self.clause]

    def __str__(self) -> str:
        return f"{self.clause}: {self.call}: {self.came}, expected {self.expected}; {self.remedy}"
