"""`headrace bench`: compares the samplers on this machine and says which one to use."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from headrace.cli.build import TrainOptions, agent_for, defaults_for, training_sampler
from headrace.cli.environments import factory_of, spaces_of
from headrace.cli.errors import UsageError, require_at_least, unknown
from headrace.cli.options import Json, Lengths, parse_options
from headrace.cli.place import SAMPLERS
from headrace.cli.report import failed
from headrace.errors import SamplerError
from headrace.insight.bench import BenchReport, bench, bottleneck
from headrace.processes.affinity import usable_cores
from headrace.runners.threads import torch_threads
from headrace.samplers.base import BaseSampler
from headrace.storage import write_whole
from headrace.types import EnvSpaces

__all__ = ["BenchOptions", "run"]

_PROG = "headrace bench"
_EXPLANATION = """\
steps/s is the median over the rounds, in which all samplers collect in turn; the interval of a ratio has 95 %
probability. CPU µs: CPU time of all processes per step. env, agent, record: shares of the workers' time spent in the
environment with its resets, in the agent or waiting for its actions, and in checks and copies. idle: share of the time
in which workers do not collect. server: share of the time in which the process that acts for all workers acts."""


@dataclass(kw_only=True)
class BenchOptions:
    """Collects with each sampler in turn, in this environment and on this machine, and says which one to use.

    The agent is the one that headrace train starts with, untrained; it does not learn. All samplers exist at the same
    time, each with batch-B environments.
    """

    env: str = "CartPole-v1"
    """The environment, as for headrace train."""
    env_kwargs: Json = field(default_factory=dict)
    """Arguments of the environment, as JSON."""
    pad: Lengths = field(default_factory=dict)
    """Maximum lengths of texts and sequences, as for headrace train."""
    algo: str = "ppo"
    """Algorithm whose agent acts."""
    samplers: tuple[str, ...] = ("serial", "cpu", "gpu", "alternating", "alternating-no-overlap")
    """Samplers to compare, the simplest first: of those that are equally fast, the first is recommended."""
    batch_T: int | None = None
    """Time steps of a batch; None: as headrace train."""
    batch_B: int | None = None
    """Environments of a batch; None: as headrace train."""
    n_workers: int | None = None
    """Worker processes; None: as headrace train."""
    device: str | None = None
    """Device on which samplers other than serial and cpu act; None: the first GPU, if there is one."""
    start_method: Literal["auto", "fork", "forkserver", "spawn"] = "auto"
    """How worker processes start."""
    seed: int = 0
    """Seed of the environments."""
    seconds: float = 120.0
    """How long to measure, in seconds, without the start of the samplers."""
    json: Path | None = None
    """File to which the figures are written, as JSON."""


def run(args: Sequence[str]) -> int:
    """Prints the comparison; returns the exit status."""
    options = parse_options(BenchOptions(), _PROG, args)
    if not options.samplers:
        raise UsageError(f"give one or more samplers to --samplers: {', '.join(SAMPLERS)}")
    for name in options.samplers:
        if name not in SAMPLERS:
            raise unknown("sampler", name, SAMPLERS)
    if not options.seconds > 0:
        raise UsageError(f"--seconds must be greater than 0, got {options.seconds}")
    require_at_least(0, "seed", options.seed)
    spaces = spaces_of(factory_of(options.env, options.env_kwargs, options.pad), options.start_method)
    trained = _as_trained(options, spaces)
    try:
        samplers = {name: training_sampler(replace(trained, sampler=name)) for name in options.samplers}
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    try:
        report = _measured(samplers, options, trained, spaces)
    except SamplerError as error:
        raise failed(error, None) from error
    _print(report, trained)
    if options.json is not None:
        write_whole(options.json, [json.dumps(_plain(report, trained), indent=1).encode()])
        print(f"  figures         {options.json}")
    return 0


def _as_trained(options: BenchOptions, spaces: EnvSpaces) -> TrainOptions:
    """Returns the options of the training whose sampler is looked for."""
    defaults = defaults_for(options.algo, options.env, spaces, None)
    return replace(
        defaults,
        env=options.env,
        env_kwargs=options.env_kwargs,
        pad=options.pad,
        batch_T=defaults.batch_T if options.batch_T is None else options.batch_T,
        batch_B=defaults.batch_B if options.batch_B is None else options.batch_B,
        n_workers=options.n_workers,
        device=options.device,
        start_method=options.start_method,
    )


def _measured(
    samplers: dict[str, BaseSampler], options: BenchOptions, trained: TrainOptions, spaces: EnvSpaces
) -> BenchReport:
    """Returns the comparison; the samplers are closed afterwards."""
    with ExitStack() as opened, torch_threads(1):
        for name, sampler in samplers.items():
            agent = agent_for(spaces, replace(trained, sampler=name))
            opened.enter_context(sampler.initialize(agent, seed=options.seed))
        return bench(samplers, options.seconds)


def _print(report: BenchReport, trained: TrainOptions) -> None:
    cores = usable_cores()
    print(
        f"{trained.env}, batches of {trained.batch_T} time steps of {trained.batch_B} environments, {cores} usable "
        f"core{'s' * (cores > 1)}, {report.n_rounds} rounds\n"
    )
    for line in report.table():
        print(f"  {line}")
    print(f"\n{_EXPLANATION}\n")
    best = next(one for one in report.figures if one.sampler == report.recommended)
    others = "" if len(report.figures) == 1 else ": no other one was shown to be more than 5 % faster"
    print(f"Use {SAMPLERS[best.sampler].__name__} (headrace train --sampler {best.sampler}){others}.")
    print(bottleneck(best.timing))
    if not best.sampler.startswith("async-"):
        print(
            f"If learning from a batch takes as long as collecting it, async-{best.sampler} does both at the same time."
        )


def _plain(report: BenchReport, trained: TrainOptions) -> dict[str, object]:
    """Returns the report and what it was measured with, for JSON."""
    setting = {
        "env": trained.env,
        "batch_T": trained.batch_T,
        "batch_B": trained.batch_B,
        "n_workers": trained.n_workers,
        "device": trained.device,
        "cores": usable_cores(),
    }
    return {**setting, **report.plain()}
