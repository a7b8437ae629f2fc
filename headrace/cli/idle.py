"""Refuses options that would have no effect, and says what to write instead."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from headrace.cli.errors import UsageError
from headrace.cli.place import PlaceOptions

__all__ = ["Rule", "of_place", "refuse_idle"]


@dataclass(frozen=True)
class Rule:
    """Says whether options have an effect.

    Args:
        names: names of the options, without leading dashes.
        useful: whether they have an effect.
        remedy: completes the sentence "--option is …": what the option is for, and what to write instead.
    """

    names: Sequence[str]
    useful: bool
    remedy: str


def refuse_idle(args: Sequence[str], rules: Iterable[Rule]) -> None:
    """Raises UsageError for the first option in `args` that has no effect."""
    idle = {name: rule.remedy for rule in rules if not rule.useful for name in rule.names}
    for arg in args:
        if arg.startswith("--"):
            where, point, name = arg.partition("=")[0][2:].replace("_", "-").rpartition(".")
            option = where + point + name.removeprefix("no-")
            if option in idle:
                raise UsageError(f"--{option} is {idle[option]}")


def of_place(options: PlaceOptions) -> list[Rule]:
    """Returns the rules for the options of every command that steps environments."""
    layout = options.sampler_class.layout
    return [
        Rule(
            ("start-method",),
            layout.processes or layout.asynchronous,
            f"for worker processes, and --sampler {options.sampler} has none",
        ),
        Rule(
            ("n-workers",),
            layout.processes,
            f"for worker processes, and --sampler {options.sampler} has none; add --sampler cpu",
        ),
    ]
