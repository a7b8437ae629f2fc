"""What a runner tells: rows of numbers, to the console and to files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.lazy import lazy_exports

if TYPE_CHECKING:
    from headrace.plotting import (
        Curve as Curve,
        Summary as Summary,
        plot_curves as plot_curves,
        plot_learning_curve as plot_learning_curve,
        read_columns as read_columns,
        summary_of as summary_of,
    )
    from headrace.runners.logging.console import ConsoleLogger as ConsoleLogger
    from headrace.runners.logging.csv_file import CsvLogger as CsvLogger
    from headrace.runners.logging.logger import Logger as Logger, Loggers as Loggers
    from headrace.runners.logging.tensorboard import TensorBoardLogger as TensorBoardLogger
    from headrace.runners.logging.wandb import WandbLogger as WandbLogger
    from headrace.runners.row import statistics as statistics

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "ConsoleLogger": "headrace.runners.logging.console",
        "CsvLogger": "headrace.runners.logging.csv_file",
        "Curve": "headrace.plotting",
        "Logger": "headrace.runners.logging.logger",
        "Loggers": "headrace.runners.logging.logger",
        "Summary": "headrace.plotting",
        "TensorBoardLogger": "headrace.runners.logging.tensorboard",
        "WandbLogger": "headrace.runners.logging.wandb",
        "plot_curves": "headrace.plotting",
        "plot_learning_curve": "headrace.plotting",
        "read_columns": "headrace.plotting",
        "statistics": "headrace.runners.row",
        "summary_of": "headrace.plotting",
    },
)
