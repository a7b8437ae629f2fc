"""Action servers: one process computes the actions of all workers, on a GPU or on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter_ns

from headrace.agents.base import Agent
from headrace.processes.handoff import Handoff
from headrace.processes.patience import Patience
from headrace.processes.status import Phase, Status
from headrace.processes.watch import WorkerWatch
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
    """A group of environments that are served together.

    Args:
        handoff: the hand-off to the workers that step them.
        watch: sleeps while the workers step, and watches them.
        ranks: ranks of these workers, in the order of the hand-off's peers.
        slices: numbers of the group's slices, in column order.
        actor: acts for the group.
    """

    handoff: Handoff
    watch: WorkerWatch
    ranks: Sequence[int]
    slices: Sequence[int]
    actor: Actor

    def wait_ready(self) -> None:
        """Waits until every worker of the group has written its next row."""
        # `_sleep` is a method, not a lambda: the frame of a lambda keeps its closure even when it is cleared, and an
        # error that passed through it would keep the batch alive.
        self.handoff.wait_for(self.handoff.count + 1, self._sleep)
        self.watch.awake()

    def _sleep(self, awaited: Sequence[int]) -> bool:
        return self.watch.sleep([self.ranks[index] for index in awaited])

    def give_states(self, reports: Sequence[SliceReport]) -> None:
        """Adds recurrent states to the overflow entries in the reports of all slices."""
        for index, states in zip(self.slices, self.actor.overflow, strict=True):
            overflow = reports[index].overflow
            if overflow is not None:
                overflow.state = states


class ActionServer:
    """Waits for a row from every worker, acts for all of them at once, and lets them step.

    Args:
        agent: the agent that acts.
        groups: groups of training environments.
        evaluation: groups of evaluation environments.
        patience: decides how long to spin before sleeping while no row arrives.
        status: where the process records what it is doing, for error messages.
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
        """Decides how long to spin before sleeping."""
        self._patience.decide()

    def load(self, itr: int, batch_index: int) -> bool:
        """Takes over the agent's parameters for a batch, before the workers are commanded to collect it.

        Args:
            itr: number of the batch, for the agent's schedules.
            batch_index: counts batches from 0.

        Returns:
            Whether rows will be read for more than their observations: for previous inputs or `is_first`.
        """
        self._agent.sample_mode(itr)
        # A list, because every actor has to load, also after one that reads more.
        return any([group.actor.load(batch_index % group.actor.n_slots) for group in self.groups])

    def serve_actions(self, version: int, batch_index: int, n_rows: int) -> None:
        """Acts for one batch of every group, then values the row after the last.

        The workers must already have been commanded to collect the batch, after `load`.

        Args:
            version: version of the parameters.
            batch_index: counts batches from 0; addresses the noise.
            n_rows: number of rows of the batch.
        """
        for group in self.groups:
            group.actor.begin(version, batch_index * n_rows, batch_index % group.actor.n_slots)
        self._serve(self.groups, n_rows, finish=True)

    def begin_evaluation(self, itr: int) -> None:
        """Sets the agent to evaluation mode and zeros the states before the first rows of an evaluation."""
        self._agent.eval_mode(itr)
        for group in self._evaluation:
            group.actor.load()
            group.actor.restart()

    def serve_actions_evaluation(self, version: int, first_step: int, n_rows: int) -> None:
        """Acts for `n_rows` rows of an evaluation.

        Args:
            version: version of the parameters.
            first_step: number of the first time step; addresses the noise.
            n_rows: number of rows.
        """
        for group in self._evaluation:
            group.actor.begin(version, first_step)
        self._serve(self._evaluation, n_rows, finish=False)

    @property
    def late(self) -> int:
        """Number of sleeps that timed out although a row was ready; nonzero only if the protocol of `Handoff` is
        broken.
        """
        return sum(group.handoff.late for group in (*self.groups, *self._evaluation))

    def _serve(self, groups: Sequence[ServedGroup], n_rows: int, finish: bool) -> None:
        """Serves n_rows + 1 rows of every group; after the last one, no worker steps.

        Args:
            groups: the groups to serve.
            n_rows: number of rows to act for.
            finish: whether to value the last row and complete the batch.
        """
        timing, line = self.timing, self._status.line
        held: ServedGroup | None = None  # has its actions, but may step only when the other group is ready
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
                        group.actor.own_state()  # the agent acts for the other group next
                elif finish:
                    group.actor.finish()
                before, now = now, perf_counter_ns()
                timing.acting_ns += now - before
        self._status.enter(Phase.WAITING)


#: rlpyt has one class per schedule, and one more for each in a sampler process; here one class serves any number of
#: groups.
AlternatingActionServer = ActionServer
NoOverlapAlternatingActionServer = ActionServer
AsyncActionServer = ActionServer
AsyncAlternatingActionServer = ActionServer
AsyncNoOverlapAlternatingActionServer = ActionServer
