"""All of headrace's claims of speed from one run: a table of ratios, each measured by the benchmark that it names.

    python benchmarks/peers/install.py --venvs ~/.cache/headrace-peers
    python benchmarks/reach.py --venvs ~/.cache/headrace-peers --out reach.md

About 35 minutes on two idle cores. "must" and "aim" are the figures that the library sets itself. A benchmark that
fails leaves a dash, and its last line on standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE / "peers"))
from install import python_of  # noqa: E402
from table import figures_of  # noqa: E402


@dataclass(frozen=True)
class Row:
    """A row of the table. figure: as measured, "–" where it could not be; by: the command."""

    case: str
    must: str
    aim: str
    figure: str
    by: str


def output(command: list[str], python: str = sys.executable) -> str:
    """Returns what a benchmark printed; empty if it failed."""
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    print("running", *command, file=sys.stderr, flush=True)
    done = subprocess.run(
        [python, str(HERE / command[0]), *command[1:]], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        print((done.stderr.strip() or "no message").splitlines()[-1], file=sys.stderr, flush=True)
        return ""
    return done.stdout


def found(pattern: str, text: str) -> str:
    """Returns the groups of all matches, joined; a dash if there is none."""
    matches = re.findall(pattern, text, re.DOTALL)
    return "; ".join(" ".join(one) if isinstance(one, tuple) else one for one in matches) or "–"


def ratio_to(cells: list[dict[str, Any]], world: str, B: int, contender: str) -> str:
    """Returns how many times as fast headrace's sampler of the same kind is."""
    own = [figure for figure in figures_of(cells, world, B) if figure.contender == contender]
    return str(own[0].ratio) if own else "–"


def best_of_best(cells: list[dict[str, Any]], world: str, B: int, left_out: str = "-") -> str:
    """Returns the steps per second of the best of headrace's samplers over those of the best of the others."""
    figures = [one for one in figures_of(cells, world, B) if left_out not in one.contender]
    ours = [one.steps_per_second for one in figures if one.contender.startswith("headrace")]
    others = [one.steps_per_second for one in figures if not one.contender.startswith("headrace")]
    return f"{max(ours) / max(others):.2f}" if ours and others else "–"


def peers(venvs: Path, rounds: int) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "peers.json"
        command = ["peers/compare.py", "--venvs", str(venvs), "--rounds", str(rounds), "--limit", "2400"]
        output([*command, "--out", str(path)])
        cells = json.loads(path.read_text())["cells"] if path.exists() else []
    by = "`peers/compare.py`"
    for peer, must, aim in (
        ("Gymnasium Sync", "≥ 1.8; ≥ 4", "2.2; 6"),
        ("PufferLib Serial", "≥ 2; ≥ 4", "2.5; 6"),
    ):
        figure = "; ".join(ratio_to(cells, "plain", B, peer) for B in (64, 8))
        yield Row(f"plain CartPole, `SerialSampler` / {peer}, B = 64; B = 8", must, aim, figure, by)
    case = '`gymnasium.make("CartPole-v1")`, B = 64, best of ours / best of the others on the same environment'
    scalar = [cell for cell in cells if "vector" not in cell["contender"] and "EnvPool" not in cell["contender"]]
    yield Row(case, "≥ 1.7", "2.2", best_of_best(scalar, "make", 64), by)
    case = "ALE Pong, CNN, B = 16, best of ours / best of the others: the same environment; with EnvPool's"
    figure = f"{best_of_best(scalar, 'pong', 16)}; {best_of_best(cells, 'pong', 16)}"
    yield Row(case, "≥ 1.2", "1.5", figure, by)


def trainings(venvs: Path) -> Iterator[Row]:
    python = str(python_of(venvs, "current"))
    for env, n_steps in (("CartPole-v1", "100000"), ("HalfCheetah-v5", "65536")):
        command = ["training.py", "--env", env, "--n-steps", n_steps, "--seeds", "0", "1", "2"]
        text = output(command, python)
        ours, theirs = (
            [float(seconds) for seconds in re.findall(rf"{library}\s+seed \d+: return .*?, +([\d.]+) s", text)]
            for library in ("headrace", "sb3")
        )
        ratios = [other / own for own, other in zip(ours, theirs, strict=True)]
        figure = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else "–"
        yield Row(f"whole training, {env} / Stable-Baselines3", "≥ 2", "3", figure, f"`{' '.join(command)}`")


def single(case: str, must: str, aim: str, command: list[str], pattern: str) -> Callable[[], Iterator[Row]]:
    """Returns a function that measures one row."""

    def rows() -> Iterator[Row]:
        yield Row(case, must, aim, found(pattern, output(command)), f"`{' '.join(command)}`")

    return rows


SINGLE = (
    single(
        "`SerialSampler` over environment and its own policy, B = 64, µs per step",
        "",
        "0.6",
        ["sampling.py", "--env", "CartPole-v1", "--sampler", "serial", "--T", "64", "--B", "64"],
        r"omega\s+(-?[\d.]+)",
    ),
    single(
        "the same, B = 8",
        "",
        "2",
        ["sampling.py", "--env", "CartPole-v1", "--sampler", "serial", "--T", "64", "--B", "8"],
        r"omega\s+(-?[\d.]+)",
    ),
    single(
        "`CpuSampler(2)` / two independent `SerialSampler`s",
        "≥ 0.92",
        "0.96",
        ["sampling.py", "--env", "CartPole-v1", "--sampler", "cpu", "--T", "64", "--B", "64", "--W", "2"],
        r"eta\s+([\d.]+)\s+(\([^)]*\))",
    ),
    single(
        "`AlternatingSampler(1)` / bare pair",
        "≥ 1.1",
        "1.3",
        ["serving.py", "--W", "1", "--samplers", "alternating"],
        r"X / X0 ([\d.]+) (\([^)]*\))",
    ),
    single(
        "vector environment in a sampler / bare loop, B = 64; 256; 1,024",
        "≥ 0.92; ≥ 0.97",
        "",
        ["vector_envs.py", "--B", "64", "256", "1024"],
        r"([\d.]+) of the bare loop",
    ),
    single(
        "two workers, vector CartPole, B = 512 / bare loop on one core",
        "≥ 1.6",
        "1.8",
        ["vector_envs.py", "--B", "512", "--sampler", "cpu", "--W", "2"],
        r"([\d.]+) of the bare loop",
    ),
    single(
        "call of an asynchronous sampler whose batch is ready, µs; the least that messages need",
        "1 % of a batch",
        "",
        ["asynchronous.py", "--sampler", "serial"],
        r"(?:hand-over|bare) (\d+) µs",
    ),
    single(
        "memory of a served worker, forked; forkserver; spawn, MB",
        "≤ 60",
        "40",
        ["memory.py", "--samplers", "gpu"],
        r"([\d.]+) MB",
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venvs", type=Path, required=True, help="folder that peers/install.py filled")
    parser.add_argument("--rounds", type=int, default=5, help="of the comparison with other libraries")
    parser.add_argument("--only", nargs="+", choices=["peers", "single", "training"], help="some of the rows")
    parser.add_argument("--out", type=Path, required=True, help="Markdown file")
    args = parser.parse_args()
    venvs = args.venvs.expanduser().resolve()
    wanted = args.only or ["peers", "single", "training"]
    rows: list[Row] = []
    if "peers" in wanted:
        rows += peers(venvs, args.rounds)
    if "single" in wanted:
        rows += [row for measure in SINGLE for row in measure()]
    if "training" in wanted:
        rows += trainings(venvs)
    lines = ["| | must | aim | measured | by |", "|---|---|---|---|---|"]
    lines += [f"| {row.case} | {row.must} | {row.aim} | {row.figure} | {row.by} |" for row in rows]
    args.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
