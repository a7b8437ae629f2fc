"""Installs the libraries that `compare.py` runs beside headrace, from the package index.

    python benchmarks/peers/install.py --venvs ~/peers

Each group of libraries that accept the same versions gets a virtual environment of its own in that folder, which must
lie outside the repository. A group that is there already is left alone. `versions.json` in the folder holds what was
installed, and what could not be, with the reason.

PufferLib 2.0.2, the last release with a wheel, is installed without the versions that it asks for (numpy==1.23.3,
gymnasium<=0.29.1, gym<=0.23), so that it steps the same environment as the others. Sample Factory has the versions that
it asks for (numpy<2, gymnasium<1). EnvPool brings assets of other environments along, some hundred megabytes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

#: A build of torch without CUDA where the index has one; an unpinned torch pulls gigabytes.
TORCH = "torch==2.13.0"
VERSIONS = "versions.json"


@dataclass(frozen=True)
class Group:
    """Libraries in one virtual environment. requirements: installed together; alone: one by one, without dependencies;
    libraries: distributions whose versions are reported.
    """

    requirements: tuple[str, ...]
    alone: tuple[str, ...]
    libraries: tuple[str, ...]


GROUPS = {
    "current": Group(
        (
            *(TORCH, "numpy==2.4.6", "gymnasium==1.4.0", "psutil", "cloudpickle", "typing_extensions"),
            *("stable-baselines3==2.9.2", "tianshou==2.0.1", "torchrl==0.14.1"),
            *("envpool==1.2.5", "gym==0.26.2", "pettingzoo"),  # the last two are imported by PufferLib
            *("ale-py==0.12.1", "opencv-python-headless"),
            *("mujoco==3.3.7", "tyro", "rich", "matplotlib"),  # for `benchmarks/training.py`
        ),
        ("pufferlib==2.0.2",),
        ("torch", "numpy", "gymnasium", "stable-baselines3", "tianshou", "torchrl", "pufferlib", "envpool"),
    ),
    # It asks for gymnasium<1 and numpy<2.
    "sample-factory": Group(
        (TORCH, "numpy<2", "psutil", "sample-factory==2.1.1"),
        (),
        ("torch", "numpy", "gymnasium", "sample-factory"),
    ),
    # It is not on the package index; should it ever be, it needs an environment of its own.
    "rlpyt": Group(("rlpyt",), (), ("rlpyt",)),
}


def python_of(venvs: Path, group: str) -> Path:
    """Returns the interpreter of a group."""
    return venvs / group / "bin" / "python"


def installed(python: Path, libraries: tuple[str, ...]) -> dict[str, str]:
    """Returns the versions of distributions; those that are missing are left out."""
    code = (
        "import json, sys; from importlib import metadata as m; "
        "have = {d.name.lower().replace('_', '-'): d.version for d in m.distributions()}; "
        "print(json.dumps({name: have[name] for name in sys.argv[1:] if name in have}))"
    )
    done = subprocess.run([str(python), "-c", code, *libraries], stdout=subprocess.PIPE, text=True, check=True)
    versions: dict[str, str] = json.loads(done.stdout)
    return versions


def pip(python: Path, *arguments: str) -> str:
    """Installs; returns the last line of the error, empty if there was none."""
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return "" if done.returncode == 0 else (lines or ["pip failed"])[-1]


def install(venvs: Path, name: str, group: Group) -> dict[str, str]:
    """Makes the virtual environment of a group; returns errors by library."""
    python = python_of(venvs, name)
    venv.create(venvs / name, with_pip=True, clear=True)
    errors = {requirement: pip(python, "--no-deps", requirement) for requirement in group.alone}
    errors[" ".join(group.requirements)] = pip(python, *group.requirements)
    return {what: error for what, error in errors.items() if error}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venvs", type=Path, required=True, help="folder of the virtual environments")
    parser.add_argument("--groups", nargs="+", choices=sorted(GROUPS), default=list(GROUPS))
    args = parser.parse_args()
    venvs = args.venvs.expanduser().resolve()
    if venvs.is_relative_to(Path(__file__).resolve().parents[2]):
        parser.error(f"--venvs {venvs} is inside the repository; choose a folder outside it")
    venvs.mkdir(parents=True, exist_ok=True)
    record = venvs / VERSIONS
    known = json.loads(record.read_text()) if record.exists() else {}
    for name in args.groups:
        if known.get(name, {}).get("versions") and python_of(venvs, name).exists():
            continue
        errors = install(venvs, name, GROUPS[name])
        known[name] = {"versions": installed(python_of(venvs, name), GROUPS[name].libraries), "errors": errors}
        record.write_text(json.dumps(known, indent=1))
    print(json.dumps(known, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
