"""An earlier run, as the commands that go on from it or evaluate it find it in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from headrace.cli.build import SAMPLERS, TrainOptions
from headrace.cli.errors import UsageError
from headrace.cli.imports import imports_code
from headrace.cli.options import restored
from headrace.runners.run_folder import RunFolder

__all__ = ["EarlierRun"]


@dataclass(frozen=True)
class EarlierRun:
    """The options of a run, without an environment where none is known. by_command: `headrace train` made it, so the
    options are all there is; missing: for options that its settings do not give, why, and what to do.

    Settings that this user did not write on this machine may name no code: importing it would run it.
    """

    options: TrainOptions
    by_command: bool = True
    missing: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def at(path: Path) -> EarlierRun:
        """Of the run whose folder, or a checkpoint in it, is at `path`.

        Raises FileNotFoundError if there are no settings, TypeError or ValueError if they are damaged.
        """
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
                    f"{path} names code to import, {name}, and was not written by this user on this machine, or was "
                    f"changed since; if you trust that code, give --{option} {name}"
                )
        if "model" in missing:
            options = replace(options, model=replace(options.model, model=None))
        return replace(run, options=replace(options, env="" if "env" in missing else options.env))

    def require(self, option: str, value: str | None) -> None:
        """Raises UsageError if the option was missing in the settings of the run and was not given since."""
        if not value and option in self.missing:
            raise UsageError(self.missing[option])


def _of_a_program(config: Mapping[str, Any], missing: dict[str, str]) -> dict[str, Any]:
    """The settings of a runner (`headrace.checkpoints.run_settings.described`), as far as they are options."""
    sampler, runner = config["sampler"], config.get("runner")
    if config.get("env") is None:
        missing["env"] = (
            f"the environment of the run, {sampler.get('environment')!r}, has no name that another program could "
            "import; give --env module:factory, a class or a function that returns an environment"
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
