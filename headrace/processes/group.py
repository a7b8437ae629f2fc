"""`WorkerGroup`: the only place, except `fresh.py`, that starts, signals or joins processes.

A group is a fixed set of workers, each with a pipe and a line of shared memory that says what it is doing. Commands are
sent through the pipes, and each gets one reply. Every wait has a deadline and watches pipes and processes together: a
worker that dies, or makes no progress for its timeout, raises an error at once. The first error is raised; then all
workers and their children are killed.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import select
import signal
import time
import weakref
from collections.abc import Callable, Sequence
from multiprocessing import connection, reduction, resource_tracker
from multiprocessing.util import Finalize
from typing import Any, NoReturn

import psutil

from headrace.errors import NO_DESCRIPTORS, SamplerError, Where, WorkerCrashed, WorkerHung, headline
from headrace.memory import anonymous_file
from headrace.processes.causes import after_a_fork, cause_of_death
from headrace.processes.child import Failure, Start, child_main
from headrace.processes.lifeline import Lifeline
from headrace.processes.members import EXIT_SECONDS, Members, set_deadline, sigint_blocked, uninterrupted
from headrace.processes.start_method import end_if_imported, pickled
from headrace.processes.status import LINE_BYTES, TICK, Phase, ProgressWatch, Status, StatusBoard

__all__ = ["WorkerGroup"]

_log = logging.getLogger("headrace.processes")


class WorkerGroup:
    """Starts workers that run `target(channel, argument)`; see `headrace.processes.child`.

    Args:
        target: a module-level function.
        arguments: one per worker; pickled with cloudpickle unless the start method is fork.
        start_method: "fork", "forkserver" or "spawn".
        prologue: called first in each child with its worker number (threads, affinity).
        name: prefix of the process names.
        timeout: seconds without progress after which a worker counts as hung.
        status: this process's own status line, which is updated while it waits: waiting for a living worker is
            progress.
        names: name of each process in messages, default "worker 0", "worker 1", …; with names of their own, errors do
            not carry a worker number.
    """

    def __init__(
        self,
        target: Callable[..., None],
        arguments: Sequence[Any],
        *,
        start_method: str,
        prologue: Callable[[int], None],
        name: str,
        timeout: float,
        status: Status | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        end_if_imported()
        if multiprocessing.current_process().daemon:
            raise SamplerError(
                "workers cannot be started from a daemonic process of multiprocessing, which may not have children; "
                "start this process with daemon=False, or use a SerialSampler"
            )
        n = len(arguments)
        self._timeout = timeout
        self._own_line = (Status() if status is None else status).line
        self._names = names
        self._forked = start_method == "fork"
        payloads = arguments if start_method == "fork" else [pickled(argument) for argument in arguments]
        status_fd = anonymous_file(LINE_BYTES * n)
        self._members = Members(StatusBoard(status_fd, n), Lifeline.make())
        self._answers: dict[int, Any] = {}  # replies already read from their pipes
        self._end = weakref.finalize(self, Members.kill, self._members)
        # The finalizer runs at exit, too. But an interrupt in anybody's finalizer skips all others, and multiprocessing
        # would then wait for the workers: it has to kill them first.
        self._members.at_exit = Finalize(None, self._members.kill, exitpriority=0)
        self._lines = self._members.board.lines
        for line in self._lines:  # before the workers run and can do so
            line.enter(Phase.STARTING)
        self._poll = select.poll()  # watches pipe and end of every worker whose reply is outstanding
        self._everybody = select.poll()  # watches the end of every worker, whether asked or not
        self._pipes: dict[int, int] = {}  # watched descriptors, and the rank of each
        self._ends: dict[int, int] = {}
        context: Any = multiprocessing.get_context(start_method)
        if start_method != "fork":
            resource_tracker.ensure_running()  # Python's own helper; its first start would unblock SIGINT below
        lifeline = self._members.lifeline
        try:
            for rank, payload in enumerate(payloads):
                ours, theirs = context.Pipe()
                set_deadline(ours, timeout)
                self._members.pipes.append(ours)
                self._members.dumps.append(anonymous_file(0))
                inherited = [pipe.fileno() for pipe in self._members.pipes] + (lifeline.fds if lifeline else [])
                start = Start(rank, n, os.getpid(), lifeline is not None, inherited if start_method == "fork" else [])
                process = context.Process(
                    target=child_main, name=f"{name}-{rank}", args=(target, payload, prologue, theirs, start)
                )
                with theirs, sigint_blocked():
                    process.start()
                    self._members.add(process)
                    self._everybody.register(process.sentinel, select.POLLIN)
                self._register(rank)
                if lifeline is not None:
                    tie = lifeline.tie(self._pid(rank))
                    try:
                        self.send_fd_to(rank, tie)
                    finally:
                        os.close(tie)
                self.send_fd_to(rank, status_fd)
                self.send_fd_to(rank, self._members.dumps[rank])
        except BaseException as error:
            self.kill()
            if isinstance(error, OSError) and error.errno not in NO_DESCRIPTORS:
                raise WorkerCrashed(f"a worker process could not be started: {headline(error)}") from error
            raise
        finally:
            os.close(status_fd)
        if lifeline is not None:
            lifeline.complete()

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def pids(self) -> list[int]:
        """PIDs of the workers."""
        return [process.pid for process in self._members.processes if process.pid is not None]

    def _pid(self, rank: int) -> int:
        pid = self._members.processes[rank].pid
        assert pid is not None
        return pid

    def send(self, message: Any, ranks: Sequence[int] | None = None) -> None:
        """Sends the same command to all workers or to `ranks`; raises if any worker has already ended."""
        self._require_running()
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        for rank in range(len(self)) if ranks is None else ranks:
            self._send_bytes(rank, data)

    def send_to(self, rank: int, message: Any) -> None:
        """Sends a command to one worker."""
        self._send_bytes(rank, pickle.dumps(message, pickle.HIGHEST_PROTOCOL))

    def _send_bytes(self, rank: int, data: bytes) -> None:
        try:
            self._members.pipes[rank].send_bytes(data)
        except BlockingIOError:
            self._raise_hung(rank, self._timeout)
        except OSError:
            self.raise_for(rank)

    def send_fd(self, fd: int) -> None:
        """Sends a descriptor to every worker, which takes it with `Channel.receive_fd`."""
        for rank in range(len(self)):
            self.send_fd_to(rank, fd)

    def replies(self, timeout: float | None = None, ranks: Sequence[int] | None = None) -> list[Any]:
        """Returns one reply from every worker, or from `ranks`, in their order.

        Raises whatever a worker reports, `WorkerCrashed` if any worker dies, asked or not, and `WorkerHung` if one of
        those asked makes no progress for `timeout` seconds (default: the group's). Checking never loses the
        reply of a living worker.
        """
        asked = range(len(self)) if ranks is None else ranks
        watch = self.watch(timeout)
        while any(rank not in self._answers for rank in asked):
            self._poll_workers(min(TICK, watch.timeout / 4))
            self.require_progress(watch, [rank for rank in asked if rank not in self._answers])
        for rank in asked:
            self._register(rank)
        return [self._answers.pop(rank) for rank in asked]

    def answered(self, rank: int, watch: ProgressWatch) -> bool:
        """Returns whether a worker's reply has arrived, without waiting; raises as `replies` does."""
        if rank not in self._answers:
            self.look()
            self.require_progress(watch, [rank])
        return rank in self._answers

    def look(self) -> None:
        """Reads the replies that have arrived, one per worker, without waiting; raises if a worker failed or ended."""
        self._poll_workers(0.0)
        self._require_running()

    def replied(self, rank: int) -> bool:
        """Returns whether a reply was read that nobody has asked for yet; the next one waits in the pipe."""
        return rank in self._answers

    def watch(self, timeout: float | None = None) -> ProgressWatch:
        """Returns a watch for workers without progress for `timeout` seconds (default: the group's), from now on."""
        return ProgressWatch(self._lines, self._timeout if timeout is None else timeout)

    @property
    def sources(self) -> list[tuple[int, int]]:
        """For each worker, the descriptors to poll: its pipe, and one that becomes readable when it ends."""
        members = self._members
        return [
            (pipe.fileno(), process.sentinel) for pipe, process in zip(members.pipes, members.processes, strict=True)
        ]

    def note_progress(self) -> None:
        """Marks progress of this process: waiting for living workers is progress."""
        self._own_line[Status.PROGRESS] += 1

    def take(self, readable: Sequence[int], ended: Sequence[int]) -> None:
        """Reads replies from readable pipes; raises for a worker that failed, or that ended without a reply."""
        for rank in readable:
            self._answers[rank] = self._receive(rank)
            self._unregister(rank)
        for rank in ended:
            if rank not in self._answers and not self._members.pipes[rank].poll(0):  # it may have reported before
                self.raise_for(rank)

    def _poll_workers(self, seconds: float) -> None:
        """Waits at most `seconds` for a worker to reply or to end, and reads the replies."""
        ready = [fd for fd, _ in self._poll.poll(seconds * 1e3)]
        self.note_progress()
        self.take(
            [self._pipes[fd] for fd in ready if fd in self._pipes],
            [self._ends[fd] for fd in ready if fd in self._ends] if ready else self.ended([*self._ends.values()]),
        )

    def _require_running(self) -> None:
        if ended := {fd for fd, _ in self._everybody.poll(0)}:
            for rank, process in enumerate(self._members.processes):
                if process.sentinel in ended:
                    self.raise_for(rank)

    def _register(self, rank: int) -> None:
        """Starts watching a worker's pipe and end."""
        pipe, end = self._members.pipes[rank].fileno(), self._members.processes[rank].sentinel
        self._pipes[pipe] = self._ends[end] = rank
        self._poll.register(pipe, select.POLLIN)
        self._poll.register(end, select.POLLIN)

    def _unregister(self, rank: int) -> None:
        """Stops watching a worker whose reply was read: its next reply must not be read before this one is taken."""
        pipe, end = self._members.pipes[rank].fileno(), self._members.processes[rank].sentinel
        del self._pipes[pipe], self._ends[end]
        self._poll.unregister(pipe)
        self._poll.unregister(end)

    def ended(self, ranks: Sequence[int]) -> list[int]:
        """Returns the workers that have ended. Sentinels do not show it while a process forked by the worker holds them
        open.
        """
        return [rank for rank in ranks if self._members.ended(rank)]

    def require_progress(self, watch: ProgressWatch, ranks: Sequence[int]) -> None:
        """Raises WorkerHung if one of `ranks` has made no progress for too long."""
        for rank in ranks:
            if watch.is_stuck(rank):
                self._raise_hung(rank, watch.timeout)

    def stop(self) -> None:
        """Asks every worker to close and waits for it; raises errors that a worker reports while closing."""
        if self._members.killed:
            return
        failure: SamplerError | None = None
        try:
            self.send(None)
            self.replies()
            deadline = time.monotonic() + EXIT_SECONDS
            for process in self._members.processes:
                process.join(max(0.0, deadline - time.monotonic()))
        except SamplerError as error:
            failure = error
        self.kill()
        if failure is not None:
            raise failure

    def kill(self) -> None:
        """Kills every worker and its children at once. Safe to call at any time, and twice.

        It also runs when the group is garbage collected, and when the interpreter exits.
        """
        with uninterrupted(deliver=True):
            self._end()

    def _receive(self, rank: int) -> Any:
        try:
            answer = self._members.pipes[rank].recv()
        except BlockingIOError:
            self._raise_hung(rank, self._timeout)
        except (EOFError, OSError):  # a peer killed with unread data gives ECONNRESET, not EOF
            self.raise_for(rank)
        except Exception as error:  # from unpickling, which may raise anything
            raise SamplerError(
                f"a reply of {self._name(rank)} cannot be unpickled: {headline(error)}; spaces, infos and results of "
                "environments are pickled: if their classes are made at run time, use a wrapper that returns "
                "Gymnasium's own spaces and plain values",
                self._where(rank),
            ) from error
        if isinstance(answer, Failure):
            raise answer.error(self._where(rank))
        return answer

    def _where(self, rank: int) -> Where:
        worker = rank if self._names is None else None
        return self._lines[rank].where(worker, self._members.processes[rank].pid)

    def _name(self, rank: int) -> str:
        return f"worker {rank}" if self._names is None else self._names[rank]

    def raise_for(self, rank: int) -> NoReturn:
        """Raises the last report of worker `rank`, which has ended, or the cause of its death."""
        process = self._members.processes[rank]
        process.join(EXIT_SECONDS)
        pipe = self._members.pipes[rank]
        try:
            while pipe.poll(0):
                answer = pipe.recv()
                if isinstance(answer, Failure):
                    raise answer.error(self._where(rank))
        except (EOFError, OSError):
            pass  # nothing more to read
        where = self._where(rank)
        ended = self._members.ended(rank)
        cause = cause_of_death(process.exitcode, self._name(rank), where.phase, ended, self._forked)
        raise WorkerCrashed(cause, where, self._dumped(rank))

    def _raise_hung(self, rank: int, timeout: float) -> NoReturn:
        if self._members.ended(rank):
            self.raise_for(rank)
        where = self._where(rank)
        stopped = psutil.Process(self._pid(rank)).status() == psutil.STATUS_STOPPED
        if not stopped:
            self._ask_for_stack(rank)
        raise WorkerHung(
            f"{self._name(rank)} made no progress for {timeout:g} s"
            + (" (it is stopped: SIGSTOP or a debugger)" if stopped else "")
            + "; a slower environment needs a larger `timeout` (construction and resets: `start_timeout`)"
            + (after_a_fork(where.phase) if self._forked and not stopped else ""),
            where,
            self._dumped(rank),
        )

    def _ask_for_stack(self, rank: int) -> None:
        """Makes the worker's faulthandler write its stack; C code that blocks the signal never does."""
        try:
            os.kill(self._pid(rank), signal.SIGUSR1)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + 0.1
        while time.monotonic() < deadline and not self._dumped(rank):
            connection.wait([self._members.processes[rank].sentinel], 0.005)

    def _dumped(self, rank: int) -> str:
        """Returns what the worker's faulthandler wrote."""
        dump = self._members.dumps[rank]
        return os.pread(dump, os.fstat(dump).st_size, 0).decode(errors="replace")

    def send_fd_to(self, rank: int, fd: int) -> None:
        """Sends a descriptor to one worker."""
        try:
            reduction.send_handle(self._members.pipes[rank], fd, self._pid(rank))
        except OSError as error:
            if error.errno in NO_DESCRIPTORS:
                raise  # send_handle duplicates the pipe's: this process has too many open, the worker is fine
            self.raise_for(rank)
