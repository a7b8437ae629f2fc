"""What is published: a source distribution that can be tested, and a wheel with the package and nothing else."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
FOLDERS = ("benchmarks", "docs", "examples", "headrace", "tests")
#: Files beside them.
TOP = ("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "Makefile", "README.md", "SECURITY.md")
BUILD = ("constraints.txt", "pyproject.toml", "setup.py")


def files_of(folder: Path) -> set[str]:
    """Without what Python, Sphinx and compilers leave there."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.suffix != ".so")
    return {str(path) for path in paths if not {"__pycache__", "_build"} & {*path.parts}}


def built(kind: str, source: Path) -> Path:
    """An sdist or a wheel, by the hook of the build backend that pip calls."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}('dist'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return source / "dist" / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution. It is built in a copy, because a build leaves files beside its sources."""
    copy, folder = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("sdist")
    for name in FOLDERS:
        for file in files_of(ROOT / name):
            (copy / name / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name / file, copy / name / file)
    for name in (*TOP, *BUILD):
        shutil.copy(ROOT / name, copy)
    with tarfile.open(built("sdist", copy)) as archive:
        archive.extractall(folder, filter="data")
    (found,) = folder.iterdir()
    return found


@pytest.fixture(scope="module")
def wheel(unpacked: Path) -> dict[str, str]:
    """The text of each file in the wheel that is built from the source distribution; "" for the compiled part."""
    with zipfile.ZipFile(built("wheel", unpacked)) as archive:
        return {name: "" if name.endswith(".so") else archive.read(name).decode() for name in archive.namelist()}


def test_source_distribution_contains_the_tests_and_their_files(unpacked: Path) -> None:
    for name in FOLDERS:
        assert files_of(unpacked / name) == files_of(ROOT / name), name
    assert {*TOP, *BUILD} <= {path.name for path in unpacked.iterdir()}


def test_wheel_contains_only_the_package(wheel: dict[str, str]) -> None:
    package = {name for name in wheel if ".dist-info/" not in name}
    compiled = {name for name in package if name.endswith(".so")}
    assert package - compiled == {f"headrace/{name}" for name in files_of(ROOT / "headrace")}
    modules = {name.partition(".")[0] for name in compiled}
    # Where Cython and a C compiler are.
    assert modules == {f"headrace/_native/{name}" for name in ("acting", "batch", "learning", "stepping", "waiting")}
    assert {"headrace/py.typed", "headrace/__init__.pyi", "headrace/samplers/__init__.pyi"} <= package


def in_dist_info(wheel: dict[str, str], name: str) -> str:
    (text,) = (text for path, text in wheel.items() if path.endswith(f".dist-info/{name}"))
    return text


def test_wheel_has_complete_metadata(wheel: dict[str, str]) -> None:
    about: Message = message_from_string(in_dist_info(wheel, "METADATA"))
    assert (about["Name"], about["Requires-Python"], about["License-Expression"]) == ("headrace", ">=3.11", "MIT")
    advice = re.compile(r'pip install "headrace\[(?=\w)|\bextra\("(?=\w)')
    advised = {
        text[found.end() :].partition("]")[0].partition('"')[0]
        for text in wheel.values()
        for found in advice.finditer(text)
    }
    assert {"cli", "plot", "redis"} <= advised <= {*about.get_all("Provides-Extra", [])}
    assert "headrace = headrace.cli.main:main" in in_dist_info(wheel, "entry_points.txt")
    assert "MIT License" in in_dist_info(wheel, "licenses/LICENSE")
