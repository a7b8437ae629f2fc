"""Run by test_runners.py: a program that trains until it is stopped.

Arguments: a folder for the log, and "kill" if the program is to be killed before the first checkpoint.
"""

import os
import signal
import sys
from typing import Any

from headrace.agents.pg import CategoricalPgAgent
from headrace.algos.pg import A2C
from headrace.runners import Callback, MinibatchRl, RunnerConfig
from headrace.samplers import CpuSampler


class Kill(Callback):
    """Kills the program at the end of the first batch."""

    def on_optimize(self, runner: Any, itr: int, opt_info: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sampler = CpuSampler("CartPole-v1", batch_T=16, batch_B=4, n_workers=2)
    config = RunnerConfig(n_steps=1e9, seed=0, log_interval_steps=64)
    callbacks = [Kill()] if sys.argv[2:] == ["kill"] else []
    runner = MinibatchRl(A2C(), CategoricalPgAgent(), sampler, config, log_dir=sys.argv[1], callbacks=callbacks)
    runner.train()
