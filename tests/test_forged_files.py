"""Files of runs that were forged, damaged, or taken from elsewhere: nothing in them is run, and what is refused is
said in one line that names the file.
"""

import json
import logging
import pickle
import random
import re
import shutil
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.agents.dqn import DqnAgent
from headrace.agents.pg import CategoricalPgAgent
from headrace.algos.dqn import DQN, DQNConfig
from headrace.algos.pg import PPO, PPOConfig
from headrace.cli.main import main
from headrace.errors import CheckpointError
from headrace.replays import ReplayFile, build_ring, replay_spec
from headrace.runners import MinibatchRl, RunnerConfig, load_checkpoint, save_checkpoint
from headrace.runners.logging import Logger
from headrace.samplers import SerialSampler
from headrace.types import BatchSpec
from tests.forging import Does, checkpoint_of, damaged, forged_replay, forged_run, forged_states
from tests.test_cli import PROGRAM
from tests.test_resume import StopAt
from tests.walk import Walk

pytestmark = pytest.mark.usefixtures("copies_tried_here")

BATCH = BatchSpec(4, 3)
SEED = 4
DEADLINE = 120


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
    """Resumes for one batch. Returns ("", the log's warnings), or (the reason for refusing, "")."""
    caplog.clear()
    why = ""
    try:
        with caplog.at_level(logging.WARNING, "headrace"):
            make(resume_from=folder, stop_at=0).train()
    except CheckpointError as error:
        why = str(error)
    if not why:
        return "", "\n".join(record.getMessage() for record in caplog.records)
    assert "\n" not in why
    assert len(why) < 2000
    assert str(folder) in why
    return why, ""


#: What a resumed run does not read, or what may be so: a number in the place of a number, fewer episodes or losses.
_MAY_BE = re.compile(
    r"\b(about\.|algo\.optimizer\.agent\.(param_groups|state is dict)|runner\.(own|opt_infos))|more in agent|"
    r"is (int|float|dict 13)"
)


def forged_checkpoints(
    n: int, seed: int, name: str, runs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each is refused, or so close to a real one that a batch is learned from it."""
    mark, rng = tmp_path / "mark", random.Random(seed)
    state = load_checkpoint(runs[name] / "checkpoint.pt")
    forged = forged_states(state, mark, rng)
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
        assert why or _MAY_BE.search(what), what
        shutil.rmtree(folder)


def damaged_checkpoints(
    n: int, seed: int, runs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The previous checkpoint is used, with a warning; if that is damaged too, both are named."""
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
        assert ("checkpoint-previous.pt is " in why) if both else ("is used instead" in warned), what
        shutil.rmtree(folder)


def contents(folder: Path) -> dict[str, bytes]:
    """Returns the contents of the segments, without links to endless files."""
    return {path.name: path.read_bytes() for path in folder.glob("rows-*.bin") if path.is_file()}


def forged_replays(n: int, seed: int, runs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Training continues; the log names the replay if anything is missing."""
    rng = random.Random(seed)
    for number in range(n):
        folder = tmp_path / "run"
        shutil.copytree(runs["dqn"], folder)
        before = contents(folder / "replay")
        what = forged_replay(folder / "replay", runs["dqn-other"] / "replay", rng)
        changed = any(contents(folder / "replay").get(name) != content for name, content in before.items())
        try:
            why, warned = goes_on(dqn, folder, caplog)
        except Exception as error:
            raise AssertionError(f"forged replay {number} of seed {seed}: {what}") from error
        if changed:
            assert str(folder / "replay") in why + warned or "right checksum" in what or "another run" in what, what
        shutil.rmtree(folder)


def small_run(folder: Path, *options: str) -> None:
    args = ["--sampler", "serial", "--batch-T", "8", "--batch-B", "4", "--n-steps", "96", "--log-interval-steps", "32"]
    more = ["--eval-episodes", "1", "--ppo.epochs", "1", "--log-dir", str(folder), *options]
    assert main(["train", "--env", "CartPole-v1", *args, *more]) == 0


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of two runs of the command."""
    base = tmp_path_factory.mktemp("commands")
    small_run(base / "one")
    small_run(base / "two", "--seed", "7", "--n-steps", "128")
    return base / "one", base / "two"


def in_this_process(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    capsys.readouterr()
    status = main(list(args))
    return status, capsys.readouterr().err


def as_a_program(*args: str) -> tuple[int, str]:
    command = [*PROGRAM, *args]
    done = subprocess.run(command, capture_output=True, check=False, text=True, timeout=DEADLINE)
    return done.returncode, done.stderr


def forged_runs(
    n: int, seed: int, run: Callable[..., tuple[int, str]], folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """The command continues the run, or says in one line why not, with an exit status."""
    mark, rng = tmp_path / "mark", random.Random(seed)
    for number in range(n):
        folder = tmp_path / "run"
        shutil.copytree(folders[0], folder)
        what = f"forged run {number} of seed {seed}: {forged_run(folder, folders[1], mark, rng)}"
        try:
            status, said = run("train", "--resume", str(folder), "--n-steps", "128")
        except Exception as error:
            raise AssertionError(what) from error
        assert not mark.exists(), what
        assert "Traceback" not in said, what
        complaints = [line for line in said.splitlines() if line.startswith("headrace: ")]
        assert len(complaints) == (status != 0), what
        assert status in (0, 1, 2), what
        shutil.rmtree(folder)


def test_environments_in_a_checkpoint_are_refused(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, mark = tmp_path / "run", tmp_path / "mark"
    shutil.copytree(folders[0], run)
    state = load_checkpoint(run / "checkpoint.pt")
    state["sampler"]["train"] = {i: zlib.compress(pickle.dumps(Does(mark))) for i in range(4)}
    state["environments"] = {"why_not": ""}
    save_checkpoint(run / "checkpoint.pt", state)
    status, said = in_this_process(capsys, "train", "--resume", str(run), "--n-steps", "999")
    assert (status, said.count("\n")) == (1, 1)
    assert f"{run / 'checkpoint.pt'} is a checkpoint, but this runner of this headrace did not write it" in said
    assert "sampler has the unknown entry 'train'" in said
    assert not mark.exists()


@pytest.mark.parametrize("command", [["train", "--resume"], ["eval"]], ids=["train", "eval"])
def test_code_named_in_a_folder_is_run_only_if_signed_or_requested(
    command: list[str], folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, mark = tmp_path / "run", tmp_path / "mark"
    shutil.copytree(folders[0], run)
    config = json.loads((run / "config.json").read_text())
    config |= {"env": "os:mkdir", "env_kwargs": {"path": str(mark)}}
    (run / "config.json").write_text(json.dumps(config))
    status, said = in_this_process(capsys, *command, str(run))
    assert status in (1, 2)
    assert "names code to import, os:mkdir, but was not written by this user on this machine" in said
    assert "--env os:mkdir" in said
    assert not mark.exists()
    in_this_process(capsys, *command, str(run), "--env", "os:mkdir")
    assert mark.exists(), "a person said so"


def test_missing_replay_is_logged(runs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for gone in ("replay", "replay/rows-0000000000000000008.bin"):
        folder = tmp_path / "run"
        shutil.copytree(runs["dqn"], folder)
        if (folder / gone).is_dir():
            shutil.rmtree(folder / gone)
        else:
            (folder / gone).unlink()
        why, warned = goes_on(dqn, folder, caplog)
        assert not why
        says = (
            "holds no replay, but the checkpoint was saved with one of 24 rows"
            if gone == "replay"
            else ("lacks rows 0 to 11, which were saved there; continuing with the 12 others")
        )
        assert f"{folder / 'replay'} {says}" in warned
        shutil.rmtree(folder)


def test_actions_outside_the_action_space_are_refused(
    runs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs["dqn"], folder)
    spec = replay_spec(BATCH, np.zeros(3, np.float32), np.zeros((), np.int64), 300)
    ring = build_ring(spec, np.zeros)
    ReplayFile(folder / "replay", spec).load(ring)
    ring.action[3, 1] = 9
    shutil.rmtree(folder / "replay")
    ReplayFile(folder / "replay", spec).save(ring)
    why, _ = goes_on(dqn, folder, caplog)
    assert why == f"{folder / 'replay'} holds actions from 0 to 9, and the environment has 3; it is of another run"


def test_forged_files_are_refused(runs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    forged_checkpoints(8, 0, "ppo", runs, tmp_path, caplog)
    forged_checkpoints(6, 1, "dqn", runs, tmp_path, caplog)
    damaged_checkpoints(4, 2, runs, tmp_path, caplog)
    forged_replays(6, 3, runs, tmp_path, caplog)


def test_forged_runs_are_refused(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forged_runs(6, 4, lambda *args: in_this_process(capsys, *args), folders, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(5))
def test_thousand_forged_files_are_refused(
    seed: int,
    runs: dict[str, Path],
    folders: tuple[Path, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    forged_checkpoints(60, 10 + seed, "ppo", runs, tmp_path, caplog)
    forged_checkpoints(50, 20 + seed, "dqn", runs, tmp_path, caplog)
    damaged_checkpoints(20, 30 + seed, runs, tmp_path, caplog)
    forged_replays(35, 40 + seed, runs, tmp_path, caplog)
    forged_runs(29, 50 + seed, lambda *args: in_this_process(capsys, *args), folders, tmp_path)
    forged_runs(6, 60 + seed, as_a_program, folders, tmp_path)
