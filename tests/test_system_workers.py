"""Workers and their controller: states, commands, order, deaths, and what is left afterwards."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import SamplerError, WorkerCrashed, WorkerFailed, WorkerHung
from headrace.system import Connections, Controller, Worker, WorkerInformation, WorkerState
from headrace.system.controller import summary
from headrace.system.members import Member, MemberSpec, local_group
from headrace.system.process import WorkerStart
from headrace.system.progress import table
from headrace.system.worker import Command
from tests.system_workers import Listening, Plan, Planned

INFORMATION = WorkerInformation("actor", 0, 1, seed=0)


def phases(folder: Path, name: str = "actor 0") -> list[str]:
    return (folder / name).read_text().split()


def run_here(tmp_path: Path, *commands: Any, **plan: Any) -> tuple[Planned, Listening]:
    """Runs a worker in this process until it is told to exit."""
    worker = Planned()
    listening = Listening([Command("configure", (INFORMATION, Plan(tmp_path, **plan))), *commands, Command("exit")])
    worker.run(listening)
    return worker, listening


def later(condition: Callable[[], bool]) -> Callable[[], None]:
    """Returns what waits for a condition in the place of a command, while the worker does nothing else."""

    def wait() -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.001)

    return wait


def test_a_worker_is_ready_running_paused_running_and_ends(tmp_path: Path) -> None:
    _, listening = run_here(
        tmp_path, Command("start"), *[None] * 5, Command("pause"), *[None] * 5, Command("start"), None
    )
    states = [report.state for report in listening.reports]
    assert states == [WorkerState.READY, WorkerState.RUNNING, WorkerState.PAUSED, WorkerState.RUNNING]
    paused, again = listening.reports[2:]
    assert paused.samples == 2 * paused.batches == 2 * paused.figures["polls"] >= 10
    assert again.batches == paused.batches  # nothing is done in a pause
    assert phases(tmp_path) == ["process", "configure", "poll", "pause", "exit"]


def test_a_worker_completes_and_does_nothing_afterwards(tmp_path: Path) -> None:
    worker, listening = run_here(tmp_path, Command("start"), *[None] * 20, Command("report", 0), None, polls=3)
    assert worker.state is WorkerState.COMPLETED
    assert listening.reports[-1].batches == 3


def test_a_report_is_answered_when_the_state_changes(tmp_path: Path) -> None:
    _, listening = run_here(tmp_path, Command("start"), Command("report", 600), *[None] * 20, polls=10)
    assert [report.state for report in listening.reports] == [
        WorkerState.READY,
        WorkerState.RUNNING,
        WorkerState.COMPLETED,
    ]


def test_an_outstanding_report_is_answered_before_the_next_command(tmp_path: Path) -> None:
    _, listening = run_here(tmp_path, Command("start"), Command("report", 600), None, None, Command("pause"))
    assert [report.state for report in listening.reports[1:]] == [
        WorkerState.RUNNING,
        WorkerState.RUNNING,
        WorkerState.PAUSED,
    ]


def test_a_worker_is_configured_once_and_before_its_start(tmp_path: Path) -> None:
    again = Command("configure", (INFORMATION, Plan(tmp_path)))
    with pytest.raises(WorkerFailed, match=r"actor 0 failed while being configured: .*configured once"):
        run_here(tmp_path, again)
    with pytest.raises(WorkerFailed, match=r"start\(\) before configure"):
        Planned().run(Listening([Command("start")]))


@pytest.mark.parametrize(
    ("phase", "words"),
    [("configure", "being configured"), ("poll", "working"), ("pause", "being paused"), ("exit", "exiting")],
)
def test_errors_name_the_worker_and_what_it_was_doing(tmp_path: Path, phase: str, words: str) -> None:
    with pytest.raises(WorkerFailed, match=rf"^actor 0 failed while {words}: ValueError: as planned") as caught:
        run_here(tmp_path, Command("start"), None, Command("pause"), fail=phase)
    assert "in _enter" in caught.value.traceback_text


# ---- with a controller ----


def member(index: int, plan: Plan, restart: bool = False, timeout: float = 20.0, kind: str = "actor") -> Member:
    information = WorkerInformation(kind, index, 1, seed=0)
    spec = MemberSpec(WorkerStart(information, Planned, plan), restart)
    return Member(spec, partial(local_group, start_method="fork", timeout=timeout))


def controlled(*members: Member, **options: Any) -> Controller:
    return Controller(members, [one for one in members if not one.spec.restart], **{"start_timeout": 20.0, **options})


def test_all_are_configured_before_any_is_started(tmp_path: Path) -> None:
    log = tmp_path / "order"

    class Ordered(Planned):
        def _configure(self, config: Plan) -> None:
            super()._configure(config)
            time.sleep(0.2 * self.information.index)
            self._append("configured")

        def start(self) -> None:
            self._append("started")
            super().start()

        def _append(self, what: str) -> None:
            with log.open("a") as file:
                file.write(f"{what}\n")

    members = []
    for index in range(3):
        start = WorkerStart(WorkerInformation("actor", index, 3, seed=0), Ordered, Plan(tmp_path, polls=3))
        members.append(Member(MemberSpec(start, False), partial(local_group, start_method="fork", timeout=20.0)))
    controlled(*members).run()
    assert log.read_text().split() == ["configured"] * 3 + ["started"] * 3


def test_a_run_ends_when_its_decisive_workers_have_completed(tmp_path: Path) -> None:
    one, other = member(0, Plan(tmp_path, polls=5)), member(1, Plan(tmp_path), restart=True)
    controller = controlled(one, other)
    controller.run()
    assert one.state is WorkerState.COMPLETED
    assert other.state is WorkerState.PAUSED
    assert one.batches == 5
    assert phases(tmp_path, "actor 1") == ["process", "configure", "poll", "pause", "exit"]
    assert summary(controller)["workers"][0]["samples"] == 10


def test_processes_have_the_names_of_their_workers(tmp_path: Path) -> None:
    names: list[str] = []

    def look(controller: Controller) -> None:
        names.extend(Path(f"/proc/{one.pid}/comm").read_text().strip() for one in controller.members if one.pid)

    controlled(member(0, Plan(tmp_path, polls=50)), on_look=look).run()
    assert "actor 0" in names


@pytest.mark.parametrize("phase", ["configure", "poll", "exit"])
def test_a_worker_that_raises_ends_the_run(tmp_path: Path, phase: str) -> None:
    plan = Plan(tmp_path, fail=phase, polls=None if phase == "poll" else 5)
    with pytest.raises(WorkerFailed, match=r"^actor 0 failed while .*ValueError: as planned"):
        controlled(member(0, plan), member(1, Plan(tmp_path), restart=True)).run()


@pytest.mark.parametrize("phase", ["configure", "poll"])
def test_a_worker_that_is_killed_ends_the_run(tmp_path: Path, phase: str) -> None:
    with pytest.raises(WorkerCrashed, match=r"actor 0.*SIGKILL"):
        controlled(member(0, Plan(tmp_path, die=phase)), member(1, Plan(tmp_path), restart=True)).run()


@pytest.mark.parametrize("phase", ["configure", "poll", "exit"])
def test_a_worker_that_hangs_ends_the_run(tmp_path: Path, phase: str) -> None:
    hung = member(0, Plan(tmp_path, hang=phase, polls=5 if phase == "exit" else None), timeout=0.5)
    with pytest.raises(WorkerHung, match=r"actor 0 made no progress"):
        controlled(hung, start_timeout=0.5).run()


def test_a_worker_that_may_is_started_anew(tmp_path: Path) -> None:
    falls = member(1, Plan(tmp_path, die="poll", lives=2), restart=True)
    lasting = member(0, Plan(tmp_path))

    def look(controller: Controller) -> None:
        if falls.restarts == 2 and falls.state is WorkerState.RUNNING and falls.report.batches:
            controller.stop()

    controlled(lasting, falls, on_look=look).run()
    assert falls.restarts == 2
    assert phases(tmp_path, "actor 1").count("process") == 3


def test_a_worker_that_dies_while_it_is_configured_starts_with_the_others(tmp_path: Path) -> None:
    falls = member(1, Plan(tmp_path, die="configure", lives=1), restart=True)
    lasting = member(0, Plan(tmp_path, polls=200))
    controlled(lasting, falls).run()
    assert falls.restarts == 1
    assert falls.batches > 0
    assert lasting.state is WorkerState.COMPLETED


@pytest.mark.parametrize("how", ["fail", "die"])
@pytest.mark.parametrize("phase", ["pause", "exit"])
def test_what_could_be_started_anew_does_not_fail_a_run_that_is_over(tmp_path: Path, how: str, phase: str) -> None:
    plan = Plan(tmp_path, fail=phase) if how == "fail" else Plan(tmp_path, die=phase)
    falls = member(1, plan, restart=True)
    lasting = member(0, Plan(tmp_path, polls=50))
    controlled(lasting, falls).run()
    assert lasting.state is WorkerState.COMPLETED
    assert phases(tmp_path, "actor 0")[-1] == "exit"


def test_the_summary_is_json_before_any_episode(tmp_path: Path) -> None:
    controller = controlled(member(0, Plan(tmp_path, polls=3)))
    controller.run()
    state = json.loads(json.dumps(summary(controller), allow_nan=False))
    assert state["mean_return"] is None
    assert "mean return of the last 100: unknown" in table(state, None, 0.0)[-1]


def test_resources_are_closed_when_a_worker_cannot_be_configured() -> None:
    closed: list[str] = []

    class Fails(Planned):
        def _configure(self, config: Any) -> None:
            self.resources.callback(closed.append, "closed")
            raise ValueError("no such place")

    with pytest.raises(WorkerFailed, match="no such place"):
        Fails().run(Listening([Command("configure", (INFORMATION, None))]))
    assert closed == ["closed"]


def test_processes_that_ask_for_the_keys_of_a_run_get_the_same(tmp_path: Path) -> None:
    pytest.importorskip("zmq", reason="keys need pyzmq")
    with ThreadPoolExecutor(8) as threads:
        keys = {key.public for key in threads.map(lambda _: Connections.run_keys(tmp_path), range(24))}
    assert len(keys) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["keys.json"]
    assert (tmp_path / "keys.json").stat().st_mode & 0o777 == 0o600


def test_a_worker_that_dies_three_times_at_its_start_ends_the_run(tmp_path: Path) -> None:
    falls = member(1, Plan(tmp_path, fail="poll"), restart=True)
    with pytest.raises(WorkerFailed, match=r"^actor 1.*as planned"):
        controlled(member(0, Plan(tmp_path)), falls).run()
    assert phases(tmp_path, "actor 1").count("process") == 3


def test_counts_go_on_after_a_restart(tmp_path: Path) -> None:
    falls = member(1, Plan(tmp_path, die="poll", well=1.5, lives=1), restart=True)
    seen: list[int] = []

    def look(controller: Controller) -> None:
        seen.append(falls.batches)
        if falls.restarts and falls.report.batches:
            controller.stop()

    controlled(member(0, Plan(tmp_path)), falls, on_look=look).run()
    assert falls.batches_before > 0
    assert seen == sorted(seen)


def test_ctrl_c_ends_all_workers_in_good_order(tmp_path: Path) -> None:
    interrupts: list[threading.Timer] = []

    def look(controller: Controller) -> None:
        if not interrupts and all(one.state is WorkerState.RUNNING for one in controller.members):
            interrupts.append(threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)))
            interrupts[0].start()

    with pytest.raises(KeyboardInterrupt):
        controlled(member(0, Plan(tmp_path)), member(1, Plan(tmp_path), restart=True), on_look=look).run()
    assert phases(tmp_path, "actor 0")[-1] == phases(tmp_path, "actor 1")[-1] == "exit"


def test_a_worker_of_twenty_lines() -> None:
    class Counting(Worker):
        def _configure(self, config: int) -> None:
            self._left = config

        def _poll(self) -> Any:
            from headrace.system import PollResult

            self._left -= 1
            if not self._left:
                self.complete()
            return PollResult(sample_count=1)

    start = WorkerStart(WorkerInformation("counter", 0, 1, seed=0), Counting, 7)
    one = Member(MemberSpec(start, False), partial(local_group, start_method="fork", timeout=20.0))
    controlled(one).run()
    assert one.samples == 7


def test_errors_of_members_are_of_one_tree() -> None:
    assert issubclass(WorkerFailed, SamplerError)
