"""`headrace check-env`: does an environment keep the contract that samplers rely on?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from headrace.cli.environments import factory_of
from headrace.cli.errors import UsageError
from headrace.cli.options import Json, Lengths, Positional, parse_options
from headrace.envs.checking.check import check_env
from headrace.envs.checking.resume import why_not_resumable

__all__ = ["CheckEnvOptions", "run"]


@dataclass(kw_only=True)
class CheckEnvOptions:
    """Steps an environment with random actions in processes of its own and names each clause it breaks."""

    env: Positional[str] = ""
    """CartPole-v1, module:Id-v0, module:factory (a class or a function), or gym:Id-v0 (old gym)."""
    steps: int = 1000
    """Environment steps of the main run; the others together take as many again."""
    seed: int = 0
    """Of the environment's seeds and actions."""
    timeout: float = 30.0
    """Seconds that one call of the environment may take."""
    env_kwargs: Json = field(default_factory=dict)
    """Arguments of the environment, as JSON."""
    pad: Lengths = field(default_factory=dict)
    """The greatest lengths of texts and sequences, as for headrace train."""


def run(args: Sequence[str]) -> int:
    """Prints a line for each violation and returns 1, or that there is none, what a resume will do, and 0."""
    options = parse_options(CheckEnvOptions(), "headrace check-env", args)
    if not options.env:
        raise UsageError("give an environment, for example: headrace check-env CartPole-v1")
    factory_of(options.env, options.env_kwargs, options.pad)  # says what is meant if there is no such environment
    try:
        violations = check_env(
            options.env,
            options.env_kwargs,
            n_steps=options.steps,
            seed=options.seed,
            timeout=options.timeout,
            pad=options.pad,
        )
    except ValueError as error:
        raise UsageError(str(error).replace("n_steps", "steps")) from error
    for violation in violations:
        print(" ".join(str(violation).split()))
    if not violations:
        print(f"{options.env} keeps the contract ({options.steps} steps, seed {options.seed})")
        why_not = why_not_resumable(
            options.env, options.env_kwargs, seed=options.seed, timeout=options.timeout, pad=options.pad
        )
        goes_on = f"begins new episodes: {why_not}" if why_not else "goes on with its episodes"
        print(f"note: a resumed run {goes_on}")
    return 1 if violations else 0
