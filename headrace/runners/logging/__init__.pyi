"""Loggers: write the progress of a runner to the console and to files."""

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
