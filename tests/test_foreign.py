"""Environments of other packages that exit, hang or cannot be made: the error names the remedy."""

import signal
import subprocess
import sys
from time import monotonic, sleep
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from headrace.agents.pg import CategoricalPgAgent
from headrace.cli.main import main
from headrace.errors import EnvFailed, SamplerError, WorkerCrashed, WorkerHung
from headrace.processes.causes import cause_of_death
from headrace.processes.members import Members
from headrace.samplers import CpuSampler, SerialSampler
from tests.foreign import Exits, Hangs, MadeAtRunTime, MadeNowhere, NeedsAWorld, OnePerProcess
from tests.leftovers import DEADLINE

SIZES: dict[str, Any] = {"batch_T": 4, "batch_B": 2, "max_decorrelation_steps": 0}
FORKSERVER = 'start_method="forkserver" (command line: --start-method forkserver)'


@pytest.mark.parametrize(
    ("exitcode", "phase", "forked", "named"),
    [
        (1, "stepping", True, True),
        (1, "constructing the environment", True, True),
        (-signal.SIGSEGV, "resetting", True, True),
        (-signal.SIGABRT, "evaluating", True, True),
        (1, "stepping", False, False),
        (-signal.SIGKILL, "stepping", True, False),
        (1, "choosing actions", True, False),
        (1, "waiting for a command", True, False),
    ],
)
def test_forkserver_is_named_where_a_forked_worker_died_in_an_environment(
    exitcode: int, phase: str, forked: bool, named: bool
) -> None:
    assert (FORKSERVER in cause_of_death(exitcode, "worker 0", phase, True, forked)) == named


@pytest.mark.parametrize(("env", "kind"), [(Exits, WorkerCrashed), (Hangs, WorkerHung)])
def test_forked_worker_that_exits_or_hangs_in_an_environment_is_reported(env: Any, kind: type[SamplerError]) -> None:
    sampler = CpuSampler(env, n_workers=1, start_method="fork", timeout=1.0, start_timeout=DEADLINE, **SIZES)
    with pytest.raises(kind) as caught:
        sampler.initialize(CategoricalPgAgent(), seed=0).obtain_samples(0)
    assert FORKSERVER in str(caught.value)


@pytest.mark.parametrize("env", [MadeAtRunTime, MadeNowhere])
def test_space_class_made_at_run_time_is_an_error_with_the_remedy(env: Any) -> None:
    with pytest.raises(SamplerError) as caught:
        CpuSampler(env, n_workers=1, start_method="fork", **SIZES).initialize(CategoricalPgAgent(), seed=0)
    assert "Gymnasium's own spaces" in str(caught.value)
    assert "run time" in str(caught.value)


def test_missing_constructor_arguments_error_names_env_kwargs(capsys: pytest.CaptureFixture[str]) -> None:
    for kwargs in ({}, {"world": "flat", "colour": 3}):
        with pytest.raises(EnvFailed, match="pass its arguments as env_kwargs"):
            SerialSampler(NeedsAWorld, kwargs, **SIZES).initialize(CategoricalPgAgent(), seed=0)
    assert main(["train", "--env", "tests.foreign:NeedsAWorld"]) == 2
    assert "its arguments go into --env-kwargs" in capsys.readouterr().err


def test_one_environment_per_process_works_with_n_workers_equal_batch_b() -> None:
    with pytest.raises(EnvFailed, match="n_workers=batch_B, which gives each environment its own process"):
        CpuSampler(OnePerProcess, n_workers=1, **SIZES).initialize(CategoricalPgAgent(), seed=0)
    with CpuSampler(OnePerProcess, n_workers=2, **SIZES).initialize(CategoricalPgAgent(), seed=0) as sampler:
        assert sampler.obtain_samples(0)[0].env.reward.shape == (4, 2)


def test_zombie_process_counts_as_ended() -> None:
    """As under a fork server that is stopped, or where the program's parent never asks."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        handle = psutil.Process(process.pid)
        unknown: Any = SimpleNamespace(exitcode=None)
        members = Members(board=unknown, lifeline=None, processes=[unknown], handles=[handle])
        assert not members.ended(0)
        process.kill()
        deadline = monotonic() + DEADLINE
        while handle.status() != psutil.STATUS_ZOMBIE and monotonic() < deadline:
            sleep(0.01)
        assert handle.is_running()  # as psutil has it
        assert members.ended(0)
