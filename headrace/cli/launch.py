"""`headrace launch`: runs an experiment of actor, policy, trainer and evaluation workers on this machine."""

from __future__ import annotations

import importlib.util
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from headrace.cli.errors import CommandFailed, UsageError, no_such_file, unknown
from headrace.cli.imports import look_here
from headrace.cli.options import Positional, parse_options
from headrace.cli.report import failed
from headrace.errors import SamplerError, StreamError, headline
from headrace.system.connections import Connections, Transport
from headrace.system.controller import Controller
from headrace.system.experiment import Experiment, make_experiment, registered_experiments
from headrace.system.launch import run_experiment, run_node
from headrace.system.progress import ProgressLines

__all__ = ["LaunchOptions", "run"]

_PROG = "headrace launch"


@dataclass(kw_only=True)
class LaunchOptions:
    """Runs an experiment to its end: all its workers as processes of this machine, and nothing to start by hand."""

    experiment: Positional[str]
    """A Python file that defines one experiment, or registers it; or the name of a registered one."""
    trial: str = "default"
    """Name of this run among those of the experiment."""
    folder: Path | None = None
    """Folder for parameters, checkpoints and the state of the run; default: runs/EXPERIMENT/TRIAL."""
    transport: Transport = "shared_memory"
    """What carries samples, requests and leases between the workers: shared_memory, or zmq, with CURVE keys that the
    run makes for itself."""
    names: str = ""
    """With zmq, the name service: redis://host:port, or a folder; default: a folder of the run."""
    node_rank: int | None = None
    """Number of this machine, if the workers are on several: 0 runs the controller. Every machine gets the same
    experiment, and a folder and names that all share; needs --transport zmq."""
    host: str = "127.0.0.1"
    """With zmq, the address of this machine that the others reach it by."""
    n_steps: int | None = None
    """Environment steps that every trainer learns from; default: those of the experiment."""
    seed: int | None = None
    """Seed of all randomness; default: that of the experiment."""
    resume: bool = False
    """Go on from the newest parameters in the folder."""
    start_method: str = "auto"
    """How processes start: auto, fork, forkserver or spawn."""
    plot: Path | None = None
    """Write a picture of the workers and what connects them to this file, and run nothing; needs graphviz."""


def run(args: Sequence[str]) -> int:
    """Runs the experiment, and prints the returns of the final evaluation; returns the exit status."""
    options = parse_options(LaunchOptions(experiment=""), _PROG, args)
    if not options.experiment:
        raise UsageError(f"give the file of an experiment, for example: {_PROG} examples/launch/cartpole.py")
    name, experiment = _experiment(options.experiment)
    config = experiment.initial_setup()
    if options.seed is not None:
        config = replace(config, seed=options.seed)
    if options.n_steps is not None:
        trainers = [replace(trainer, n_steps=options.n_steps) for trainer in config.trainers]
        config = replace(config, trainers=trainers)
    if options.plot is not None:
        from headrace.system.picture import draw_experiment

        draw_experiment(config, options.plot)
        print(f"wrote {options.plot}")
        return 0
    folder = (options.folder or Path("runs") / name / options.trial).absolute()
    if options.node_rank is not None and options.transport != "zmq":
        raise UsageError("--node-rank is for several machines; give --transport zmq, too")
    if not options.resume and not options.node_rank and (folder / "parameters").exists():
        raise UsageError(f"{folder} has a run already; give --resume to go on, or another --trial")
    folder.mkdir(parents=True, exist_ok=True)
    keys = Connections.run_keys(folder) if options.transport == "zmq" else None
    connections = Connections(
        name, options.trial, folder, options.transport, options.names, host=options.host, keys=keys
    )
    signals = _Signals()
    try:
        if options.node_rank:
            run_node(config, connections, options.node_rank, resume=options.resume, start_method=options.start_method)
            return 0
        result = run_experiment(
            config,
            connections,
            resume=options.resume,
            start_method=options.start_method,
            several_machines=options.node_rank is not None,
            on_controller=signals.attach,
            on_look=ProgressLines(sys.stderr).show,
        )
    except (TypeError, ValueError) as error:
        raise UsageError(f"{options.experiment}: {error}") from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted{_go_on(options, folder)}") from None
    except SamplerError as error:
        raise failed(error, None) from error
    except (StreamError, TimeoutError) as error:
        raise CommandFailed(str(error)) from error
    finally:
        signals.detach()
    if result.stopped:
        print(f"stopped by SIGTERM{_go_on(options, folder)}", file=sys.stderr)
        return 128 + signal.SIGTERM
    print(f"{result.seconds:.1f} s; parameters in {folder / 'parameters'}")
    if len(result.returns):
        print(f"mean return {result.mean_return:.1f} over {len(result.returns)} episodes")
    return 0


class _Signals:
    """Ends a run in good order at SIGTERM."""

    def attach(self, controller: Controller) -> None:
        """Begins to do so."""
        self._before = signal.signal(signal.SIGTERM, lambda number, frame: controller.stop())

    def detach(self) -> None:
        """Gives the signal back."""
        with suppress(AttributeError):
            signal.signal(signal.SIGTERM, self._before)


def _go_on(options: LaunchOptions, folder: Path) -> str:
    return f"; to go on: {_PROG} {options.experiment} --folder {folder} --resume"


def _experiment(given: str) -> tuple[str, Experiment]:
    """Returns the name and the experiment that the command line means."""
    look_here()
    if not given.endswith(".py"):
        if given not in registered_experiments():
            raise unknown("experiment", given, registered_experiments(), "a file ends in .py")
        return given, make_experiment(given)
    path = Path(given)
    if not path.is_file():
        raise no_such_file(path, "give the file of an experiment")
    before = {*registered_experiments()}
    spec = importlib.util.spec_from_file_location(f"headrace_experiment_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    if (folder := str(path.parent.resolve())) not in sys.path:  # it may import its neighbours, as a program does
        sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's code may raise anything
        raise CommandFailed(f"{given} could not be imported: {headline(error)}") from error
    registered = sorted({*registered_experiments()} - before)
    if len(registered) == 1:
        return registered[0], make_experiment(registered[0])
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Experiment) and value.__module__ == module.__name__
    ]
    if len(classes) != 1:
        raise UsageError(
            f"{given} registers {len(registered)} experiments and defines {len(classes)}; expected one Experiment, or "
            "one register_experiment(...)"
        )
    return path.stem, classes[0]()
