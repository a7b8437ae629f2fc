"""Files of runs that were forged, damaged, or taken from elsewhere: nothing in them is run, and what is refused is said in
one line that names the file.
"""

import logging
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.agents.dqn import DqnAgent
from headrace.agents.pg import CategoricalPgAgent
from headrace.algos.dqn import DQN, DQNConfig
from headrace.algos.pg import PPO, PPOConfig
from headrace.errors import CheckpointError
from headrace.replays import ReplayFile, build_ring, replay_spec
from headrace.runners import Callback, MinibatchRl, Runner, RunnerConfig, load_checkpoint
from headrace.runners.logging import Logger
from headrace.samplers import SerialSampler
from headrace.types import BatchSpec
from tests.forging import checkpoint_of, damaged, forged_replay, forged_states
from tests.walk import Walk

BATCH = BatchSpec(4, 3)
SEED = 4
DEADLINE = 120


class StopAt(Callback):
    """Stops after so many batches."""

    def __init__(self, itr: int) -> None:
        self._itr = itr

    def on_optimize(self, runner: Runner, itr: int, opt_info: Any) -> None:
        if runner.counters.itr >= self._itr:
            runner.stop()


def ppo(**place: Any) -> MinibatchRl:
    algo = PPO(PPOConfig(epochs=1, minibatches=1, normalize_reward=True))
    agent = CategoricalPgAgent(model_kwargs={"hidden_sizes": (4,), "normalize_observation": True})
    return runner(algo, agent, **place)


def dqn(**place: Any) -> MinibatchRl:
    config = DQNConfig(
        batch_size=4, replay_ratio=1, min_steps_learn=12, replay_size=300, n_step=2, prioritized_replay=True
    )
    return runner(DQN(config), DqnAgent(model_kwargs={"hidden_sizes": (4,)}), **place)


def runner(algo: Any, agent: Any, *, seed: int = SEED, stop_at: int = 6, **place: Any) -> MinibatchRl:
    return MinibatchRl(
        algo,
        agent,
        SerialSampler(Walk, batch_T=BATCH.T, batch_B=BATCH.B, max_decorrelation_steps=0),
        RunnerConfig(n_steps=100 * BATCH.size, seed=seed, log_interval_steps=2 * BATCH.size, log_traj_window=5),
        logger=Logger(),
        callbacks=[StopAt(stop_at)],
        **place,
    )


Make = Callable[..., MinibatchRl]
MAKERS: dict[str, Make] = {"ppo": ppo, "dqn": dqn}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of runs that were stopped after 6 batches, by name; `…-other` are of another seed."""
    base = tmp_path_factory.mktemp("runs")
    for name, make in MAKERS.items():
        make(log_dir=base / name).train()
        make(log_dir=base / f"{name}-other", seed=5).train()
    for name in ("dqn", "dqn-other"):
        in_segments(base / name / "replay")
    return {path.name: path for path in base.iterdir()}


def in_segments(folder: Path) -> None:
    """The same replay with a segment for each batch."""
    spec = replay_spec(BATCH, np.zeros(3, np.float32), np.zeros((), np.int64), 300)
    ring = build_ring(spec, np.zeros)
    stop = ReplayFile(folder, spec).load(ring)
    shutil.rmtree(folder)
    file = ReplayFile(folder, spec, segment_bytes=1)
    for ring.cursor[0] in range(BATCH.T, stop + 1, BATCH.T):
        file.save(ring)
    assert len(list(folder.iterdir())) == 6


def goes_on(make: Make, folder: Path, caplog: pytest.LogCaptureFixture) -> tuple[str, str]:
    """Resumes for a batch. Answers ("", what the log warned of), or (why it was refused, "")."""
    caplog.clear()
    try:
        with caplog.at_level(logging.WARNING, "headrace"):
            make(resume_from=folder, stop_at=0).train()
    except (CheckpointError, OSError, FloatingPointError) as error:
        text = str(error)
        assert "\n" not in text
        assert len(text) < 2000
        assert str(folder) in text or isinstance(error, FloatingPointError)
        return text, ""
    return "", "\n".join(record.getMessage() for record in caplog.records)


def forged_checkpoints(
    n: int, seed: int, name: str, runs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each is refused, or so near to a true one that a batch is learned from it."""
    mark, rng = tmp_path / "mark", random.Random(seed)
    state = load_checkpoint(runs[name] / "checkpoint.pt")
    forged = forged_states(state, mark, rng)
    n_refused = 0
    for number in range(n):
        folder = tmp_path / "run"
        shutil.copytree(runs[name], folder)
        what, changed = next(forged)
        (folder / "checkpoint.pt").write_bytes(checkpoint_of(changed))
        try:
            why, _ = goes_on(MAKERS[name], folder, caplog)
        except Exception as error:
            raise AssertionError(f"forged checkpoint {number} of seed {seed}: {what}") from error
        assert not mark.exists(), what
        n_refused += bool(why)
        shutil.rmtree(folder)
    assert n_refused > 0.8 * n, "what is taken is a number in the place of a number"


def damaged_checkpoints(
    n: int, seed: int, runs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The one before is taken, with a warning; where that is damaged as well, both are named."""
    rng = random.Random(seed)
    for _ in range(n):
        folder = tmp_path / "run"
        shutil.copytree(runs["ppo"], folder)
        both = rng.random() < 0.3
        for name in ("checkpoint.pt", "checkpoint-previous.pt")[: 1 + both]:
            what, content = damaged((folder / name).read_bytes(), rng)
            (folder / name).write_bytes(content)
        why, warned = goes_on(ppo, folder, caplog)
        assert f"{folder / 'checkpoint.pt'} is " in (why if both else warned), what
        assert ("checkpoint-previous.pt is " in why) if both else ("going on from" in warned), what
        shutil.rmtree(folder)


def forged_replays(n: int, seed: int, runs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Training goes on; where anything is missing the log names the replay."""
    rng = random.Random(seed)
    for number in range(n):
        folder = tmp_path / "run"
        shutil.copytree(runs["dqn"], folder)
        before = {path.name: path.read_bytes() for path in (folder / "replay").iterdir()}
        what = forged_replay(folder / "replay", runs["dqn-other"] / "replay", rng)
        try:
            why, warned = goes_on(dqn, folder, caplog)
        except Exception as error:
            raise AssertionError(f"forged replay {number} of seed {seed}: {what}") from error
        now = {path.name: path.read_bytes() for path in (folder / "replay").glob("rows-*.bin")}
        if any(now.get(name) != content for name, content in before.items()):
            assert str(folder / "replay") in why + warned or "right checksum" in what or "another run" in what, what
        shutil.rmtree(folder)


def test_some_forged_files(runs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    forged_checkpoints(25, 0, "ppo", runs, tmp_path, caplog)
    forged_checkpoints(15, 1, "dqn", runs, tmp_path, caplog)
    damaged_checkpoints(8, 2, runs, tmp_path, caplog)
    forged_replays(12, 3, runs, tmp_path, caplog)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_a_thousand_forged_files(
    seed: int, runs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    forged_checkpoints(70, 10 + seed, "ppo", runs, tmp_path, caplog)
    forged_checkpoints(60, 20 + seed, "dqn", runs, tmp_path, caplog)
    damaged_checkpoints(20, 30 + seed, runs, tmp_path, caplog)
    forged_replays(50, 40 + seed, runs, tmp_path, caplog)
