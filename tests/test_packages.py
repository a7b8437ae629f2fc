"""Environments of other packages, installed with pip, in three samplers."""

import importlib.metadata
import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.package_envs import CASES, Case

HERE = Path(__file__).parent.parent
#: Of the running interpreter, which a package must not replace.
KEPT = ("torch", "gymnasium", "numpy")


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("name", CASES)
def test_installed_package_gives_equal_batches_in_three_samplers(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    python = interpreter_with(case, tmp_path)
    done = subprocess.run(
        [python, "-m", "tests.package_envs", name],
        cwd=HERE,
        env={**os.environ, "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    answer = json.loads(done.stdout.splitlines()[-1]) if done.stdout else {"error": done.stderr}
    assert "error" not in answer, answer["error"]
    if case.repeats:
        assert answer["different"] == {"again": [], "CpuSampler": [], "AlternatingSampler": []}


def interpreter_with(case: Case, folder: Path) -> str:
    """Returns a Python that has the packages of the case, and those of the running one, such as torch."""
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout.strip()
    (Path(site) / "running.pth").write_text(sysconfig.get_path("purelib"))
    kept = [f"{name}=={importlib.metadata.version(name)}" for name in KEPT if name not in case.requirements]
    (folder / "kept.txt").write_text("\n".join(kept))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "-c", str(folder / "kept.txt")]
    done = subprocess.run([*pip, *case.requirements.split()], capture_output=True, text=True, timeout=900, check=False)
    if done.returncode:
        pytest.skip(f"{case.requirements} cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    return str(python)
