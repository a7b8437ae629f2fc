"""Options that would be of no use: they are refused, with what to write instead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from gymnasium import spaces as gym_spaces

from headrace.cli.build import ALGOS, Q_ALGOS, PlaceOptions, TrainOptions
from headrace.cli.errors import UsageError
from headrace.cli.options import flags_of
from headrace.types import EnvSpaces

__all__ = ["Rule", "of_place", "of_training", "refuse_idle"]


@dataclass(frozen=True)
class Rule:
    """When options are of use. names: as on the command line, without dashes in front; remedy: what they are for, and
    what to write instead.
    """

    names: Sequence[str]
    useful: bool
    remedy: str


def refuse_idle(args: Sequence[str], rules: Iterable[Rule]) -> None:
    """Raises UsageError for the first option among the arguments that is of no use."""
    idle = {name: rule.remedy for rule in rules if not rule.useful for name in rule.names}
    for arg in args:
        if arg.startswith("--"):
            where, point, name = arg.partition("=")[0][2:].replace("_", "-").rpartition(".")
            option = where + point + name.removeprefix("no-")
            if option in idle:
                raise UsageError(f"--{option} is {idle[option]}")


def of_place(options: PlaceOptions) -> list[Rule]:
    """Of the options that every command that steps environments has."""
    layout = options.sampler_class.layout
    return [
        Rule(
            ("start-method",),
            layout.processes or layout.asynchronous,
            f"for worker processes, and --sampler {options.sampler} has none",
        ),
        Rule(
            ("n-workers",),
            options.sampler not in ("serial", "async-serial"),
            f"for worker processes, and --sampler {options.sampler} has none; add --sampler cpu",
        ),
    ]


def of_training(options: TrainOptions, spaces: EnvSpaces) -> list[Rule]:
    """Of the options of `headrace train`."""
    algo, model = options.algo, options.model
    learns_q, box = algo in Q_ALGOS, isinstance(spaces.action, gym_spaces.Box)
    q_settings = options.categorical_dqn if algo == "categorical-dqn" else options.dqn
    return [
        *of_place(options),
        *_of_others(algo),
        Rule(
            ("eps-init", "eps-final", "eps-final-min", "eps-steps", "eps-eval"),
            learns_q,
            f"for dqn and categorical-dqn; {algo} draws its actions, and explores by --{algo}.entropy-loss-coeff",
        ),
        Rule(
            ("n-atoms", "V-min", "V-max"),
            algo == "categorical-dqn",
            "for categorical-dqn, which tells returns apart; add --algo categorical-dqn",
        ),
        Rule(
            tuple(f"{algo}.{name}" for name in ("pri-alpha", "pri-beta-init", "pri-beta-final")),
            not learns_q or q_settings.prioritized_replay,
            f"for a prioritized replay; add --{algo}.prioritized-replay",
        ),
        Rule(
            ("state-dependent-std", "init-log-std"),
            box and not learns_q,
            "for Box actions, which are drawn from a Gaussian; this environment has others",
        ),
        Rule(
            ("memory-size",),
            model.recurrent is not None and model.model is None,
            "the width of the network's memory; add --recurrent lstm, or give a model of your own --model-kwargs",
        ),
        Rule(
            ("normalize-observation", "separate-value"),
            model.model is None,
            "for the networks of headrace, not for --model; normalize in the model, and see --model-kwargs",
        ),
        Rule(("wandb-project",), options.wandb, "for Weights & Biases; add --wandb"),
    ]


def _of_others(algo: str) -> Iterator[Rule]:
    """Of the settings of the algorithms that are not trained."""
    flags = flags_of(TrainOptions())
    for flag in flags:
        where, _, name = flag[2:].rpartition(".")
        if where in ALGOS and where != algo:
            own = f"--{algo}.{name}"
            instead = f"which has {own}" if own in flags else f"which has none such; add --algo {where}"
            yield Rule([flag[2:]], False, f"for --algo {where}, and this run is of {algo}, {instead}")
