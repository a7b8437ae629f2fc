"""`headrace check-env`: checks an environment against the contract that samplers rely on."""

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
    """Steps an environment with random actions in separate processes and names each clause that it breaks."""

    env: Positional[str] = ""
    """CartPole-v1, module:Id-v0, module:factory (a class or a function), or gym:Id-v0 (old gym)."""
    steps: int = 1000
    """Environment steps of the main run; the other runs together take as many again."""
    seed: int = 0
    """Seed of the environment's seeds and of the actions."""
    timeout: float = 30.0
    """Seconds that one call of the environment may take."""
    env_kwargs: Json = field(default_factory=dict)
    """Arguments of the environment, as JSON."""
    pad: Lengths = field(default_factory=dict)
    """Maximum lengths of texts and sequences, as for headrace train."""


def run(args: Sequence[str]) -> int:
    """Prints each violation and returns 1; without any, prints what a resume will do and returns 0."""
    options = parse_options(CheckEnvOptions(), "headrace check-env", args)
    if not options.env:
        raise UsageError("give an environment, for example: headrace check-env CartPole-v1")
    factory_of(options.env, options.env_kwargs, options.pad)  # its error suggests a similar name
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
        print(f"note: a resumed run {f'begins new episodes: {why_not}' if why_not else 'continues its episodes'}")
    return 1 if violations else 0
