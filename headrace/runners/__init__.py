"""Runners: the training loop, written for you."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.lazy import lazy_exports

if TYPE_CHECKING:
    from headrace.checkpoints.file import load_checkpoint as load_checkpoint, save_checkpoint as save_checkpoint
    from headrace.runners.asynchronous import AsyncRl as AsyncRl, AsyncRlEval as AsyncRlEval
    from headrace.runners.base import Runner as Runner
    from headrace.runners.callbacks import Callback as Callback, EarlyStop as EarlyStop, StopAtReturn as StopAtReturn
    from headrace.runners.config import RunnerConfig as RunnerConfig
    from headrace.runners.minibatch import MinibatchRl as MinibatchRl, MinibatchRlEval as MinibatchRlEval
    from headrace.runners.run_folder import RunFolder as RunFolder, RunRecord as RunRecord

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "AsyncRl": "headrace.runners.asynchronous",
        "AsyncRlEval": "headrace.runners.asynchronous",
        "Callback": "headrace.runners.callbacks",
        "EarlyStop": "headrace.runners.callbacks",
        "MinibatchRl": "headrace.runners.minibatch",
        "MinibatchRlEval": "headrace.runners.minibatch",
        "RunFolder": "headrace.runners.run_folder",
        "RunRecord": "headrace.runners.run_folder",
        "Runner": "headrace.runners.base",
        "RunnerConfig": "headrace.runners.config",
        "StopAtReturn": "headrace.runners.callbacks",
        "load_checkpoint": "headrace.checkpoints.file",
        "save_checkpoint": "headrace.checkpoints.file",
    },
)
