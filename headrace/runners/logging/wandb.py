"""Sends log rows to Weights & Biases."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from headrace.extras import extra
from headrace.runners.logging.logger import Logger

__all__ = ["WandbLogger"]


class WandbLogger(Logger):
    """Sends each log row to a run of Weights & Biases, at step `CumSteps`; columns keep their names, NaN is left out.

    Args:
        project: project of the run.
        name: name of the run. Default: chosen by wandb.
        config: settings to show in place of the run's.
        folder: where wandb stores its local files.
        mode: "online", "offline" (sent later by `wandb sync`) or "disabled". Default: wandb's own settings.

    Raises:
        ImportError: if wandb is not installed; the message names the extra.
    """

    def __init__(
        self,
        project: str = "headrace",
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        folder: str | Path | None = None,
        mode: Literal["online", "offline", "disabled"] | None = None,
    ) -> None:
        with extra("wandb", "sending to Weights & Biases needs wandb"):
            # Import now, so that an error is raised before environments and workers start.
            import wandb
        self._project, self._name, self._mode = project, name, mode
        self._config = None if config is None else dict(config)
        self._folder = None if folder is None else str(Path(folder).absolute())
        self._open = wandb.init
        self._run: Any = None

    def settings(self, config: Mapping[str, Any]) -> None:
        """See `Logger`."""
        if self._config is None:
            self._config = dict(config)

    def start(self, n_steps: int) -> None:
        """See `Logger`. wandb starts threads and processes here, after a runner has forked its workers."""
        self._run = self._open(
            project=self._project, name=self._name, config=self._config, dir=self._folder, mode=self._mode
        )

    def row(self, row: Mapping[str, float]) -> None:
        """See `Logger`."""
        numbers = {name: value for name, value in row.items() if not math.isnan(value)}
        self._run.log(numbers, step=int(row["CumSteps"]))

    def close(self) -> None:
        """See `Logger`."""
        if self._run is not None:
            self._run.finish()
            self._run = None
