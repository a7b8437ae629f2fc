"""Trying pickled copies does not change a run, whatever its environments are; and which environments are saved."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.copy_trial_kinds import KINDS

pytestmark = pytest.mark.programs

ROOT = Path(__file__).parent.parent
FILE = ROOT / "tests" / "copy_trial_kinds.py"
HOW = {
    "script": ([str(FILE)], None),
    "stdin": (["-"], FILE),
    "module": (["-c", "from tests.copy_trial_kinds import main; main()"], None),
}
#: One of each way to be saved, and one of each way not to be.
QUICK = ["plain", "ezpickle", "module global", "close removes", "segfault", "hangs", "a port", "connection", "legacy"]
SERVED = ["CpuSampler", "AlternatingSampler", "AsyncSerialSampler"]


def check(how: str, cases: list[tuple[str, str]], folder: Path) -> None:
    args, program = HOW[how]
    command = [sys.executable, args[0], *args[1:], json.dumps(cases)]
    with Path(os.devnull if program is None else program).open() as stdin:
        done = subprocess.run(
            command,
            stdin=stdin,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
    came = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(came) == len(cases), done.stderr
    for (sampler, kind), found in zip(cases, came, strict=True):
        reason = KINDS[kind][2 if how == "module" else 1]
        assert found["same"], (sampler, kind)
        assert found["own"], (sampler, kind)
        assert reason in found["why"], (sampler, kind, found["why"])
        assert bool(reason) == bool(found["why"]), (sampler, kind, found["why"])


def test_copy_trial_does_not_change_batches_of_a_script(tmp_path: Path) -> None:
    check("script", [("SerialSampler", kind) for kind in QUICK], tmp_path)


def test_copy_trial_does_not_change_batches_of_module_environments_workers_and_servers(tmp_path: Path) -> None:
    served = list(zip(SERVED, ["plain", "segfault", "module global"], strict=True))
    check(
        "module", [*(("SerialSampler", kind) for kind in ("close removes", "connection", "address")), *served], tmp_path
    )


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
def test_copy_trial_of_all_kinds_of_environments(how: str, tmp_path: Path) -> None:
    check(how, [("SerialSampler", kind) for kind in KINDS], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [*SERVED, "GpuSampler", "AsyncCpuSampler"])
def test_copy_trial_in_other_samplers(sampler: str, tmp_path: Path) -> None:
    kinds = ["plain", "lambda", "table", "close removes", "module global", "segfault", "address", "thread", "large"]
    for how in ("script", "module"):
        check(how, [(sampler, kind) for kind in kinds], tmp_path)
