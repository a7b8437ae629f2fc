"""Action servers: one process computes the actions of all workers, on a GPU or here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter_ns

from headrace.agents.base import Agent
from headrace.processes.group import WorkerWatch
from headrace.processes.handoff import Handoff
from headrace.processes.patience import Patience
from headrace.processes.status import Phase, Status
from headrace.samplers.collection.slice import SliceReport
from headrace.samplers.inference.actor import Actor
from headrace.samplers.timing import ServerTiming

__all__ = [
    "ActionServer",
    "AlternatingActionServer",
    "AsyncActionServer",
    "AsyncAlternatingActionServer",
    "AsyncNoOverlapAlternatingActionServer",
    "NoOverlapAlternatingActionServer",
    "ServedGroup",
]


@dataclass
class ServedGroup:
    """Environments that are served together.

    Args:
        handoff: to the workers that step them.
        watch: what to sleep on while they do.
        ranks: of these workers, in the order of the hand-off's peers.
        slices: their numbers, in column order.
        actor: acts for them.
    """

    handoff: Handoff
    watch: WorkerWatch
    ranks: Sequence[int]
    slices: Sequence[int]
    actor: Actor

    def wait_ready(self) -> None:
        """Waits until every worker of the group stands at its next row."""
        # A method and no lambda: the frame of a lambda keeps what it encloses even when it is cleared, and an error
        # that came through it would keep the batch alive.
        self.handoff.wait_for(self.handoff.count + 1, self._sleep)
        self.watch.awake()

    def _sleep(self, awaited: Sequence[int]) -> bool:
        return self.watch.sleep([self.ranks[index] for index in awaited])

    def give_states(self, reports: Sequence[SliceReport]) -> None:
        """Adds recurrent states to the final entries that travelled with the reports (of all slices)."""
        for index, states in zip(self.slices, self.actor.overflow, strict=True):
            overflow = reports[index].overflow
            if overflow is not None:
                overflow.state = states


class ActionServer:
    """Waits for a row of every worker, acts for all of them at once, lets them step.

    Args:
        agent: acts.
        groups: of training environments.
        evaluation: of evaluation environments.
        patience: for how long to look before sleeping while no row comes.
        status: says where an agent failed.
        overlap: whether a group may step while another does.
    """

    def __init__(
        self,
        agent: Agent,
        groups: Sequence[ServedGroup],
        evaluation: Sequence[ServedGroup],
        patience: Patience,
        status: Status,
        overlap: bool = True,
    ) -> None:
        self.overlap = overlap
        self.groups = list(groups)
        self.timing = ServerTiming()
        self._agent = agent
        self._evaluation = list(evaluation)
        self._patience = patience
        self._status = status

    def update_spin(self) -> None:
        """Decides for how long to look before sleeping."""
        self._patience.decide()

    def serve_actions(self, itr: int, version: int, batch_index: int, n_rows: int) -> None:
        """Acts for the `n_rows` rows of batch number `batch_index` of every group, whose workers have been told to
        collect it, and values the row behind them.
        """
        self._agent.sample_mode(itr)
        for group in self.groups:
            group.actor.begin(version, batch_index * n_rows, batch_index % group.actor.n_slots)
        self._serve(self.groups, n_rows, finish=True)

    def begin_evaluation(self, itr: int) -> None:
        """Before the first rows of an evaluation: greedy, zero states."""
        self._agent.eval_mode(itr)
        for group in self._evaluation:
            group.actor.restart()

    def serve_actions_evaluation(self, version: int, first_step: int, n_rows: int) -> None:
        """Acts for `n_rows` rows of an evaluation."""
        for group in self._evaluation:
            group.actor.begin(version, first_step)
        self._serve(self._evaluation, n_rows, finish=False)

    @property
    def late(self) -> int:
        """Rows whose news nobody rang for; see `Handoff`."""
        return sum(group.handoff.late for group in (*self.groups, *self._evaluation))

    def _serve(self, groups: Sequence[ServedGroup], n_rows: int, finish: bool) -> None:
        """Every group comes in n_rows + 1 times, and the last time nobody is let go to step.

        finish: the last time, value the row and close the batch.
        """
        timing, line = self.timing, self._status.line
        held: ServedGroup | None = None  # acted for, and not let go before the other group has come in
        now = perf_counter_ns()
        for t in range(n_rows + 1):
            line[Status.PHASE], line[Status.STEP] = Phase.ACTING, t
            line[Status.PROGRESS] += 1
            for group in groups:
                before = now
                group.wait_ready()
                now = perf_counter_ns()
                timing.waiting_ns += now - before
                if held is not None:
                    held.handoff.post()
                    held = None
                if t < n_rows:
                    group.actor.act(t)
                if self.overlap or len(groups) == 1 or t == n_rows:
                    group.handoff.post()
                else:
                    held = group
                if t < n_rows:
                    group.actor.record(t)
                    if len(groups) > 1:
                        group.actor.own_state()  # the agent acts for the others next
                elif finish:
                    group.actor.finish()
                before, now = now, perf_counter_ns()
                timing.acting_ns += now - before
        self._status.enter(Phase.WAITING)


#: rlpyt has a class for each schedule, and for each of them in a sampler process; here one serves any number of groups.
AlternatingActionServer = ActionServer
NoOverlapAlternatingActionServer = ActionServer
AsyncActionServer = ActionServer
AsyncAlternatingActionServer = ActionServer
AsyncNoOverlapAlternatingActionServer = ActionServer
