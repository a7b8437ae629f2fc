"""The clauses of the environment contract, and the report of a broken one."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CLAUSES", "Violation"]

#: The remedy for a violation of each clause.
CLAUSES = {
    "pickling": "make EnvCls a function of a module that opens its resources itself, and env_kwargs plain values",
    "constructor": "have EnvCls return a new gymnasium.Env for env_kwargs",
    "spaces": "set both spaces in the constructor, the same for every environment, and leave them as they are",
    "fixed-shape": "give samplers pad={place: n} (--pad place=n) for a text or a sequence; make others Box, Discrete, "
    "MultiDiscrete, MultiBinary, or a Dict or Tuple of them in a wrapper",
    "action-space": "use a space of Gymnasium as it is; it seeds its samples",
    "signature": "define reset(self, *, seed=None, options=None) and step(self, action)",
    "raises": "correct the environment where it raised",
    "reset-answer": "return (observation, info) from reset()",
    "step-answer": "return (observation, reward, terminated, truncated, info) from step()",
    "observation": "correct the observation or its declared space",
    "bounds": "clip the observation, or declare the bounds it really has",
    "reward": "return one finite number",
    "terminated": "return a bool: the task itself ended",
    "truncated": "return a bool: the episode was cut by a limit",
    "info": "return a dict",
    "autoreset": "return the last observation of an episode and leave resets to the sampler; remove the wrapper",
    "time-limit": "set truncated at the step of the limit, or correct max_episode_steps of its spec",
    "seeding": "draw all randomness from self.np_random after super().reset(seed=seed)",
    "continues": "make a new generator only when reset() is given a seed; super().reset(seed=seed) does so",
    "reseeding": "have reset(seed=...) forget all that went before, or keep such state out of the environment",
    "independence": "keep state in the object: no class attribute, no module variable that changes",
    "global-rng": "use self.np_random; or give samplers isolate_rng=True, which costs time",
    "close": "free everything in close(), and let a second call do nothing",
    "hang": "correct the environment, or give a slower one a larger timeout",
    "crash": "correct the environment: os._exit(), signals and faults in compiled code end the worker that steps it",
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
