"""Sample Factory: its sampling API, with its own actor-critic; it records actions, logits, log-probs and values."""

from __future__ import annotations

import shutil
import tempfile
from typing import Any

from loop import Collect
from sample_factory.algo.sampling.simplified_sampling_api import SyncSamplingAPI
from sample_factory.algo.utils.env_info import obtain_env_info_in_a_separate_process
from sample_factory.algo.utils.rl_utils import samples_per_trajectory
from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
from sample_factory.envs.env_utils import register_env
from worlds import WORKERS, WORLDS, T


def make_env(name: str, cfg: Any, env_config: Any, render_mode: str | None = None) -> Any:
    return WORLDS[name]()


def collector(mode: str, world: str, B: int) -> Collect:
    """mode: parallel, a worker per core with two halves of environments, and an inference worker."""
    register_env(world, make_env)
    folder = tempfile.mkdtemp()
    options = {
        "env": world,
        "experiment": "sampling",
        "train_dir": folder,
        "device": "cpu",
        "num_workers": WORKERS,
        "num_envs_per_worker": B // WORKERS,
        "worker_num_splits": 2 if B // WORKERS % 2 == 0 else 1,
        "rollout": T,
        "batch_size": T * B,
        "encoder_mlp_layers": (64, 64),
        "nonlinearity": "tanh",
        "use_rnn": False,
        "normalize_input": False,
        "normalize_returns": False,
    }
    words = []
    for name, value in options.items():
        words += [f"--{name}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    parser, _ = parse_sf_args(words)
    cfg = parse_full_cfg(parser, words)
    info = obtain_env_info_in_a_separate_process(cfg)
    rows = SyncSamplingAPI(cfg, info)
    rows.start()
    shutil.rmtree(folder, ignore_errors=True)

    def collect(n_batches: int) -> int:
        steps = 0
        while steps < n_batches * T * B:
            steps += samples_per_trajectory(rows.get_trajectories_sync())
        return steps

    return collect
