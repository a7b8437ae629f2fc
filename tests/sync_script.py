"""Run by test_sync_runners.py under torchrun: a rank of a training. Arguments: a folder, and "hang" if rank 1 is to."""

import os
import sys
import time
from pathlib import Path

import torch

from headrace.algos.base import OptInfo
from headrace.algos.pg import A2C
from headrace.buffers.samples import Samples
from headrace.runners import SyncRl
from headrace.runners.logging.logger import Logger
from tests.ranks import Exact
from tests.test_sync_runners import Normalizing, sampler, settings


class Hangs(A2C):
    """Rank 1 sleeps in batch 3."""

    def optimize_agent(self, itr: int, samples: Samples) -> OptInfo:
        if itr == 3 and self.ranks.rank == 1:
            time.sleep(60)
        return super().optimize_agent(itr, samples)


if __name__ == "__main__":
    folder, hangs = Path(sys.argv[1]), sys.argv[2:] == ["hang"]
    agent = Normalizing(ModelCls=Exact)
    config = settings(2, rank_timeout=0.5 if hangs else 60.0)
    SyncRl(Hangs() if hangs else A2C(), agent, sampler(2), config, logger=Logger(), log_dir=folder / "run").train()
    torch.save(agent.state_dict()["model"], folder / f"{os.environ['RANK']}.pt")
