"""The trainings of docs/results.md: `headrace train` and Stable-Baselines3's PPO in turn, three seeds each.

    pip install stable-baselines3 sb3-contrib
    python benchmarks/results.py                     # all of them, one after the other
    python benchmarks/results.py Pendulum-v1 --seeds 0
    python benchmarks/results.py --table             # Markdown of what is there so far

Every training is a process of its own. headrace's are the command that the page names, with its logs and checkpoints;
Stable-Baselines3's are those of `benchmarks/training.py`, with the same steps, batches and settings. Seconds are those
of training; CPU seconds are those of the whole process with its workers, start and evaluation included. Runs and
figures go to runs/results; what is there already is not run again.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import resource
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

RUNS = Path("runs/results")
FIGURES = RUNS / "figures.jsonl"


@dataclass(frozen=True)
class Job:
    """One line of the table: options that both sides take, and options of `headrace train` alone."""

    name: str
    env: str
    options: tuple[str, ...] = ()
    eval_episodes: int = 100
    beside: bool = True
    sb3: tuple[str, ...] = ()

    def command(self, seed: int) -> list[str]:
        """Of headrace."""
        return [
            "headrace",
            "train",
            *("--env", self.env),
            *self.options,
            *("--seed", str(seed), "--eval-episodes", str(self.eval_episodes)),
            *("--log-dir", str(RUNS / f"{self.name}-seed{seed}")),
        ]

    def sb3_command(self, seed: int) -> list[str]:
        """Of Stable-Baselines3."""
        own = ["--env", self.env, *self.options, *self.sb3, "--eval-episodes", str(self.eval_episodes)]
        return [
            sys.executable,
            str(Path(__file__).with_name("training.py")),
            *own,
            "--only",
            "sb3",
            "--seeds",
            str(seed),
        ]


HIDDEN = "examples.recurrent_agent:hidden_velocities"
JOBS = (
    Job("Acrobot-v1", "Acrobot-v1"),
    Job("Pendulum-v1", "Pendulum-v1"),
    Job("CartPole-no-velocities-LSTM", HIDDEN, ("--recurrent", "lstm")),
    Job("CartPole-no-velocities-feed-forward", HIDDEN, beside=False),
    Job("LunarLander-v3", "LunarLander-v3"),
    Job("HalfCheetah-v5", "HalfCheetah-v5"),
    Job(
        "Pong",
        "headrace.envs:make_atari",
        ("--n-steps", "200000", "--torch-threads", "2"),
        eval_episodes=4,
        sb3=("--vec-env", "subproc"),
    ),
)


@dataclass(frozen=True)
class Figure:
    """Of one training."""

    job: str
    library: str
    seed: int
    mean_return: float
    seconds: float
    cpu_seconds: float


def trained(job: Job, library: str, seed: int) -> Figure:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = job.command(seed) if library == "headrace" else job.sb3_command(seed)
    text = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if library == "headrace":
        found = re.search(r"mean return (-?[\d.]+)", text)
        assert found is not None, text
        mean_return = float(found[1])
        with (RUNS / f"{job.name}-seed{seed}" / "progress.csv").open(newline="") as file:
            seconds = float(list(csv.DictReader(file))[-1]["CumTime"])
    else:
        answer = json.loads(text.splitlines()[-1])
        mean_return, seconds = answer["mean_return"], answer["seconds"]
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Figure(job.name, library, seed, mean_return, seconds, cpu)


def known() -> list[Figure]:
    return [Figure(**json.loads(line)) for line in FIGURES.read_text().splitlines()] if FIGURES.exists() else []


def table() -> str:
    lines = [
        "| | library | mean return | seeds | seconds | CPU seconds |",
        "|---|---|---|---|---|---|",
    ]
    for job in JOBS:
        for library in ("headrace", "sb3"):
            own = sorted((f for f in known() if (f.job, f.library) == (job.name, library)), key=lambda f: f.seed)
            if own:
                returns = [f.mean_return for f in own]
                lines.append(
                    f"| {job.name} | {library} | {statistics.fmean(returns):.1f} ({min(returns):.1f} … "
                    f"{max(returns):.1f}) | {', '.join(str(f.seed) for f in own)} "
                    f"| {statistics.median(f.seconds for f in own):.0f} "
                    f"| {statistics.median(f.cpu_seconds for f in own):.0f} |"
                )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", metavar="job", help=", ".join(job.name for job in JOBS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--libraries", nargs="+", choices=["headrace", "sb3"], default=["headrace", "sb3"])
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    unknown = set(args.jobs) - {job.name for job in JOBS}
    if unknown:
        parser.error(f"unknown jobs {sorted(unknown)}")
    if not args.table:
        RUNS.mkdir(parents=True, exist_ok=True)
        for job in JOBS:
            for seed in args.seeds if not args.jobs or job.name in args.jobs else ():
                for library in args.libraries if job.beside else ("headrace",):
                    if not any((f.job, f.library, f.seed) == (job.name, library, seed) for f in known()):
                        figure = trained(job, library, seed)
                        with FIGURES.open("a") as file:
                            print(json.dumps(asdict(figure)), file=file)
                        print(figure, flush=True)
    print(table())


if __name__ == "__main__":
    main()
