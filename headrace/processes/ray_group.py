"""`RayGroup`: workers in Ray actors, on any machine of a cluster, with the commands and replies of `WorkerGroup`.

Ray is never waited for without a deadline. While a reply is outstanding, the actors are asked twice a second for their
status lines, so a worker that makes no progress is found as in a `WorkerGroup`, and so is an actor that is gone.
"""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

import cloudpickle

from headrace.errors import NotEnoughMemory, SamplerError, Where, WorkerCrashed, WorkerHung, headline, one_line
from headrace.processes.causes import MACHINE_LEFT, cause_of_actor_death
from headrace.processes.child import Failure
from headrace.processes.ray_actor import Actor, nbytes, packed, unpacked
from headrace.processes.ray_session import RayActors, RaySession
from headrace.processes.start_method import pickled
from headrace.processes.status import Phase, ProgressWatch, Status

__all__ = ["RayGroup"]

_log = logging.getLogger("headrace.processes")

_TICK = 0.1  # seconds between two looks at what has come
_LOOK_SECONDS = 0.5  # between two looks at what the workers are doing
_EXIT_SECONDS = 5.0  # for killed actors to be gone
_NOTICE_SECONDS = 10.0  # without a machine for an actor, after which a message says what is missing
_STACK_SECONDS = 1.0  # for the stack of a worker that hangs
_PUT_BYTES = 64 * 2**10  # from which a message goes into the object store, once for all actors
_THREADS = 4  # of an actor: one waits for the worker, the others answer what it is doing


@dataclass
class _Member:
    """One worker and its actor.

    Args:
        actor: Ray's handle of the actor.
        restarts: how many actors the worker had before.
        status: the last known status line of the worker.
        place: "pid 12 on host"; "" until a machine was found for the actor.
        todo: what is still to be sent, and whether its reply is wanted: the setup of a restarted worker is not.
        sent: the same of the command that is being executed, or None.
        asked: the call that executes it, or the one that starts the worker.
        greeted, looked: the outstanding calls of `Actor.hello` and `Actor.look`.
    """

    actor: Any
    restarts: int
    status: Status
    pid: int | None = None
    place: str = ""
    todo: deque[tuple[Any, bool]] = field(default_factory=deque)
    sent: tuple[Any, bool] | None = None
    asked: Any = None
    greeted: Any = None
    looked: Any = None
    since: float = field(default_factory=time.monotonic)
    noticed: bool = False


class RayGroup:
    """Makes actors that run `target(channel, argument)`; see `WorkerGroup`, which does it with processes.

    The target has to send a first reply when it is ready for commands, as `headrace.samplers.sampling_process` does.
    Workers may not write into arrays with which they replied before their next command, and large arrays in replies are
    read-only views of Ray's memory, which is free when they are.

    Args:
        session: the Ray session; the group does not close it.
        target: a function of a module that the machines of the cluster have.
        arguments: one per worker; pickled with cloudpickle.
        actors: what each actor asks of the cluster, and how often it is restarted.
        prologue: called first in each actor with its worker number.
        timeout: seconds without progress after which a worker counts as hung.
        start_timeout: the same for a restarted worker, and seconds within which there must be a machine for an actor.
        status: this process's own status line, which is updated while it waits.
    """

    def __init__(
        self,
        session: RaySession,
        target: Callable[..., None],
        arguments: Sequence[Any],
        *,
        actors: RayActors,
        prologue: Callable[[int], None],
        timeout: float,
        start_timeout: float,
        status: Status | None = None,
    ) -> None:
        self._session, self._ray = session, session.ray
        self._actors = actors
        self._timeout, self._start_timeout = timeout, start_timeout
        self._own_line = (Status() if status is None else status).line
        self._max_restarts = actors.max_restarts
        self._notice = min(_NOTICE_SECONDS, start_timeout / 4)
        self._looks_at = 0.0
        self._answers: dict[int, Any] = {}
        self._setups: dict[str, Any] = {}
        self._members: list[_Member] = []
        self._end = weakref.finalize(self, _kill, session, self._members, os.getpid())
        session.require_open()
        head = cloudpickle.dumps((target, prologue))
        self._starts = [(head, pickled(argument)) for argument in arguments]
        self._lines = [Status() for _ in arguments]
        self._class = self._ray.remote(Actor).options(
            num_cpus=actors.num_cpus,
            num_gpus=actors.num_gpus,
            resources=dict(actors.resources),
            scheduling_strategy=actors.placement,
            max_concurrency=_THREADS,
            max_restarts=0,  # a restarted worker needs its setup, so the group restarts it
        )
        try:
            for rank in range(len(arguments)):
                self._members.append(self._started(rank, 0, wanted=True))
        except BaseException:
            self.kill()
            raise

    def __len__(self) -> int:
        return len(self._members)

    @property
    def pids(self) -> list[int]:
        """PIDs of the workers, each on its own machine."""
        return [member.pid for member in self._members if member.pid is not None]

    @property
    def restarts(self) -> list[int]:
        """How many times each worker was restarted."""
        return [member.restarts for member in self._members]

    def _started(self, rank: int, restarts: int, wanted: bool) -> _Member:
        self._lines[rank].enter(Phase.STARTING)
        actor = self._class.remote(rank, restarts)
        member = _Member(actor, restarts, self._lines[rank], greeted=actor.hello.remote())
        member.sent, member.asked = (None, wanted), actor.start.remote(self._starts[rank])
        return member

    # ---- messages ----

    def send(self, message: Any, ranks: Sequence[int] | None = None) -> None:
        """Sends the same command to all workers or to `ranks`; large arrays in it are stored once for all."""
        payload = self._payload(message)
        for rank in range(len(self)) if ranks is None else ranks:
            self._give(self._members[rank], (payload, True))

    def send_to(self, rank: int, message: Any) -> None:
        """Sends a command to one worker."""
        self.send(message, [rank])

    def send_setup(self, message: Any, key: str = "") -> None:
        """Sends a command to all workers; every restarted worker gets the newest command with each key again."""
        payload = self._payload(message)
        if self._max_restarts:
            self._setups[key] = payload
        for member in self._members:
            self._give(member, (payload, True))

    def _payload(self, message: Any) -> Any:
        """Returns the message as a parcel, or as Ray's reference to it if it is large."""
        self._session.require_open()
        parcel = packed(message)
        if nbytes(parcel) < _PUT_BYTES:
            return parcel
        try:
            return self._ray.put(parcel)
        except self._ray.exceptions.RayError as error:
            raise NotEnoughMemory(
                f"Ray's object store cannot hold a message of {nbytes(parcel) / 2**20:.1f} MiB: {one_line(error)}; "
                "give Ray more object_store_memory"
            ) from None

    def _give(self, member: _Member, command: tuple[Any, bool]) -> None:
        """Sends a command, or keeps it while the worker executes another."""
        if member.asked is not None:
            member.todo.append(command)
            return
        member.sent, member.asked = command, member.actor.command.remote(command[0])

    def replies(self, timeout: float | None = None, ranks: Sequence[int] | None = None) -> list[Any]:
        """Returns one reply from every worker, or from `ranks`, in their order.

        Raises what a worker reports, `WorkerCrashed` if an actor dies more often than it may be restarted, `WorkerHung`
        if one of those asked makes no progress for `timeout` seconds (default: the group's), and `SamplerError` if
        there is no machine for an actor within the group's `start_timeout`.
        """
        asked = range(len(self)) if ranks is None else ranks
        patience = self._timeout if timeout is None else timeout
        watch = ProgressWatch(self._lines, patience)
        starting = ProgressWatch(self._lines, max(patience, self._start_timeout))
        pause = min(_LOOK_SECONDS, patience / 4)
        self._looks_at = time.monotonic() + pause
        while missing := [rank for rank in asked if rank not in self._answers]:
            self._session.require_open()
            self._poll(min(_TICK, pause))
            if time.monotonic() >= self._looks_at:
                self._look()
                self._looks_at = time.monotonic() + pause
            self._own_line[Status.PROGRESS] += 1
            for rank in missing:
                member = self._members[rank]
                if not member.place:
                    self._require_place(rank, member)
                    continue
                patient = starting if member.sent is not None and not member.sent[1] else watch
                if patient.is_stuck(rank):
                    self._raise_hung(rank, member, patient.timeout)
        return [self._answers.pop(rank) for rank in asked]

    # ---- waiting ----

    def _poll(self, tick: float) -> None:
        """Waits at most `tick` seconds for what is outstanding, and takes what has come."""
        calls = {}
        for rank, member in enumerate(self._members):
            for call, take in (
                (member.greeted, self._take_greeting),
                (member.asked, self._take_reply),
                (member.looked, self._take_look),
            ):
                if call is not None:
                    calls[call] = (rank, member, take)
        if not calls:
            time.sleep(tick)
            return
        n_replies = sum(member.asked is not None for member in self._members)
        ready, _ = self._ray.wait([*calls], num_returns=max(1, n_replies), timeout=tick)
        for call in ready:
            rank, member, take = calls[call]
            if self._members[rank] is not member:
                continue  # it was just replaced
            try:
                answer = self._ray.get(call, timeout=self._timeout)
            except self._ray.exceptions.RayError as error:
                self._lost(rank, member, error)
            else:
                take(rank, member, answer)

    def _look(self) -> None:
        """Asks every worker for its status line, whether it was sent a command or not."""
        for member in self._members:
            if member.place and member.looked is None:
                member.looked = member.actor.look.remote()

    def _take_greeting(self, rank: int, member: _Member, answer: tuple[int, str]) -> None:
        member.greeted = None
        member.pid, host = answer
        member.place = f"pid {member.pid} on {host}"
        member.status.line[Status.PROGRESS] += 1

    def _take_look(self, rank: int, member: _Member, answer: bytes) -> None:
        member.looked = None
        member.status.line[:] = memoryview(answer).cast("q")

    def _take_reply(self, rank: int, member: _Member, answer: Any) -> None:
        assert member.sent is not None
        (_, wanted), member.sent, member.asked = member.sent, None, None
        try:
            reply = unpacked(answer)
        except Exception as error:  # from unpickling, which may raise anything
            raise SamplerError(
                f"a reply of worker {rank} cannot be unpickled: {headline(error)}; spaces, infos and results of "
                "environments are pickled: their classes must be in modules that this machine has",
                self._where(rank, member),
            ) from error
        if isinstance(reply, Failure):
            raise reply.error(self._where(rank, member))
        if wanted:
            self._answers[rank] = reply
        if member.todo:
            self._give(member, member.todo.popleft())

    def _where(self, rank: int, member: _Member) -> Where:
        return member.status.where(rank, member.pid)

    # ---- what may go wrong ----

    def _require_place(self, rank: int, member: _Member) -> None:
        """Says that an actor has found no machine to start on; raises SamplerError when that lasts for too long."""
        waited = time.monotonic() - member.since
        late = waited > self._start_timeout
        if not late and (member.noticed or waited < self._notice):
            return
        waiting = [other for other in self._members if not other.place]
        for other in waiting:
            other.noticed = True
        total, free = self._session.resources()
        sentence = (
            f"{len(waiting)} of {len(self)} Ray actors have not started in {waited:.0f} s: each asks for "
            f"{self._actors.wanted}, the cluster has {total}, of which {free} are free"
        )
        if late:
            raise SamplerError(
                f"{sentence}; start fewer workers (n_workers), let each ask for less (RayActors(num_cpus=0.5)), or "
                "enlarge the cluster; `start_timeout` is how long to wait"
            )
        _log.warning("%s; waiting for %.0f s more", sentence, self._start_timeout - waited)

    def _lost(self, rank: int, member: _Member, error: Any) -> None:
        """Restarts a worker whose call failed, or raises why it failed."""
        kinds = self._ray.exceptions
        if isinstance(error, kinds.RayTaskError):  # our own code in the actor raised, or its answer did not fit
            if isinstance(error.cause, kinds.ObjectStoreFullError | MemoryError):
                raise NotEnoughMemory(
                    f"Ray's object store cannot hold a reply of worker {rank}: {one_line(error.cause)}; give Ray more "
                    "object_store_memory",
                    self._where(rank, member),
                ) from None
            raise WorkerCrashed(f"{self._described(rank, member)} failed: {one_line(error.cause)}") from None
        reason = cause_of_actor_death(error)
        # Ray may choose a machine that is gone before it has noticed.
        moves = not member.place and reason == MACHINE_LEFT
        if member.restarts >= self._max_restarts and not moves:
            limit = f"; it was restarted {member.restarts} times" if member.restarts else ""
            where = Where(rank, member.pid)  # what it was doing at the last look may be long past
            raise WorkerCrashed(f"{self._described(rank, member)} died: {reason}{limit}", where) from None
        if not moves:
            _log.warning("%s died: %s; it is started again", self._described(rank, member), reason)
        with suppress(Exception):  # it may only be out of reach
            self._ray.kill(member.actor)
        # What it was doing, and what it was sent meanwhile, is done after its setup. It was made, or set up, for the
        # first time if those replies are still outstanding.
        outstanding = ([] if member.sent is None else [member.sent]) + [*member.todo]
        wanted = [command for command in outstanding if command[1]]
        first = any(payload is None for payload, _ in wanted)
        self._members[rank] = again = self._started(rank, member.restarts + (not moves), wanted=first)
        if moves:
            again.since, again.noticed = member.since, member.noticed
        pending = [payload for payload, _ in wanted]
        setups = [setup for setup in self._setups.values() if not any(setup is payload for payload in pending)]
        again.todo.extend((setup, False) for setup in setups)
        again.todo.extend(command for command in wanted if command[0] is not None)

    def _described(self, rank: int, member: _Member) -> str:
        return f"worker {rank} (a Ray actor{', ' if member.place else ''}{member.place})"

    def _raise_hung(self, rank: int, member: _Member, timeout: float) -> NoReturn:
        stack = ""
        call = member.actor.stack.remote()
        with suppress(self._ray.exceptions.RayError):
            stack = self._ray.get(call, timeout=_STACK_SECONDS)
        raise WorkerHung(
            f"{self._described(rank, member)} made no progress for {timeout:g} s; a slower environment needs a larger "
            "`timeout` (construction and resets: `start_timeout`)",
            self._where(rank, member),
            stack,
        )

    # ---- the end ----

    def stop(self) -> None:
        """Asks every worker to close and waits for it; raises errors that a worker reports while closing."""
        if not self._end.alive:
            return
        self._max_restarts = 0
        failure: SamplerError | None = None
        try:
            self.send(None)
            self.replies()
        except SamplerError as error:
            failure = error
        self.kill()
        if failure is not None:
            raise failure

    def kill(self) -> None:
        """Kills every actor at once. Safe to call at any time, and twice.

        It also runs when the group is garbage collected, and when the interpreter exits.
        """
        self._end()


def _kill(session: RaySession, members: list[_Member], pid: int) -> None:
    """Kills the actors, and waits until they are gone."""
    if os.getpid() != pid or not session.is_open:
        members.clear()
        return
    ray = session.ray
    gone = []
    for member in members:
        with suppress(Exception):
            ray.kill(member.actor)
            gone.append(member.actor.hello.remote())
    members.clear()
    if gone:
        with suppress(Exception):
            ray.wait(gone, num_returns=len(gone), timeout=_EXIT_SECONDS)
