"""Reads the options of an earlier run from its folder, to resume or to evaluate it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from headrace.checkpoints.file import require_checkpoint
from headrace.cli.build import TrainOptions
from headrace.cli.errors import UsageError
from headrace.cli.imports import imports_code
from headrace.cli.options import restored
from headrace.cli.place import SAMPLERS
from headrace.runners.run_folder import RunFolder

__all__ = ["EarlierRun"]


@dataclass(frozen=True)
class EarlierRun:
    """The options of a run.

    Names of code in settings that this user did not write on this machine are removed: importing that code would run
    it.

    Args:
        options: the options; `env` is empty if the environment is unknown.
        by_command: whether `headrace train` made the run, so that the options are complete.
        missing: for each option that the settings do not contain, the reason and what to do.
    """

    options: TrainOptions
    by_command: bool = True
    missing: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def at(path: Path) -> EarlierRun:
        """Returns the run whose folder, or a checkpoint in it, is at `path`.

        Raises:
            CheckpointError: it is a file, but not a checkpoint.
            FileNotFoundError: there are no settings.
            TypeError: a setting is damaged.
            ValueError: a setting is damaged.
        """
        if path.is_file():
            require_checkpoint(path)
        folder = RunFolder.open(path.parent if path.is_file() else path)
        config, path = folder.config(), folder.path / "config.json"
        missing: dict[str, str] = {}
        try:
            if isinstance(config.get("sampler"), Mapping):
                run = EarlierRun(restored(TrainOptions(), _of_a_program(config, missing)), False, missing)
            else:
                run = EarlierRun(restored(TrainOptions(), config), True, missing)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error
        own, options = folder.is_own(), run.options
        if options.batch_B < 1:
            raise ValueError(f"{path}: batch_B must be at least 1, got {options.batch_B}")
        for option, name in (("env", options.env), ("model", options.model.model or "")):
            if imports_code(name) and not own:
                missing[option] = (
                    f"{path} names code to import, {name}, but was not written by this user on this machine, or was "
                    f"changed since; if you trust that code, add --{option} {name}"
                )
        if "model" in missing:
            options = replace(options, model=replace(options.model, model=None))
        return replace(run, options=replace(options, env="" if "env" in missing else options.env))

    def require(self, option: str, value: str | None) -> None:
        """Raises UsageError if the settings of the run do not contain the option and `value` is empty.

        Args:
            option: name of the option.
            value: its value on the command line.
        """
        if not value and option in self.missing:
            raise UsageError(self.missing[option])


def _of_a_program(config: Mapping[str, Any], missing: dict[str, str]) -> dict[str, Any]:
    """Returns the settings of a runner (`headrace.checkpoints.run_settings.described`) that are options."""
    sampler, runner = config["sampler"], config.get("runner")
    if config.get("env") is None:
        missing["env"] = (
            f"the environment of the run, {sampler.get('environment')!r}, has no name that another program can "
            "import; add --env module:factory, where factory is a class or a function that returns an environment"
        )
    kinds = {cls.__name__: name for name, cls in SAMPLERS.items()}
    found = {
        "env": config.get("env") or "",
        "env_kwargs": sampler.get("eval_env_kwargs", config.get("env_kwargs")),
        "pad": sampler.get("pad"),
        "sampler": kinds.get(str(sampler.get("class")).rpartition(".")[2], "cpu"),
        "batch_B": sampler.get("batch_B"),
        "runner": {"seed": runner.get("seed") if isinstance(runner, Mapping) else None},
        "model": {"model": config.get("model")},
    }
    return {name: value for name, value in found.items() if value is not None}
