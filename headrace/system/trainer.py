"""Trainer workers, which learn from the chunks of all actors, and push parameters."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from headrace.agents.base import Agent
from headrace.algos.base import Algo, OptInfo
from headrace.buffers.tree import tree_map
from headrace.checkpoints.file import load_checkpoint, save_checkpoint
from headrace.errors import CheckpointError
from headrace.runners.seeding import torch_seeded
from headrace.samplers.inference.spec import slot_spec
from headrace.services import ParameterDBClient
from headrace.system.acting import Acting
from headrace.system.connections import Connections
from headrace.system.prefetch import Prefetch
from headrace.system.worker import TICK, PollResult, Worker, WorkerState
from headrace.types import BatchSpec, EnvSpaces, Tree

__all__ = ["FINAL", "ParameterPusher", "TrainerSettings", "TrainerWorker"]

#: Tag of the parameters with which a run ended.
FINAL = "final"


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """What a trainer worker needs.

    Args:
        connections: of the run.
        agent: not initialized.
        algo: not initialized.
        spaces: of one environment.
        acting: contents of a chunk.
        example: a chunk as large as any.
        policy: name of the policy that it trains.
        stream: name of the sample stream.
        n_chunks: chunks of an update.
        n_itr: updates of the run.
        max_staleness: versions that a chunk may be old.
        lease_seconds: see `Admission`.
        qsize: chunks that wait at most.
        push_interval: updates between two pushes of parameters.
        keep: versions without tags that the database keeps.
        checkpoint_interval: seconds between two checkpoints.
        device: where the agent learns.
        torch_threads: threads of the learner.
        resume: whether to go on from the parameters in the database.
        seed: of the run.
    """

    connections: Connections
    agent: Agent
    algo: Algo
    spaces: EnvSpaces
    acting: Acting
    example: Tree
    policy: str
    stream: str
    n_chunks: int
    n_itr: int
    max_staleness: int
    lease_seconds: float
    qsize: int
    push_interval: int
    keep: int
    checkpoint_interval: float
    device: str
    torch_threads: int
    resume: bool
    seed: int

    @property
    def batch(self) -> BatchSpec:
        """Size of the batches."""
        one = self.acting.spec.batch
        return BatchSpec(one.T, one.B * self.n_chunks)

    @property
    def checkpoint(self) -> Path:
        """The file with the state of the algorithm."""
        return self.connections.folder / f"{self.policy}.pt"


class ParameterPusher:
    """A thread that pushes parameters to the database; of those that come too fast, only the newest.

    Args:
        database: where to.
        name: name of the policy.
        keep: versions without tags that stay.
        on_pushed: called in the thread with the version that actors can have now.
    """

    def __init__(self, database: ParameterDBClient, name: str, keep: int, on_pushed: Callable[[int], None]) -> None:
        self._database, self._name, self._keep, self._on_pushed = database, name, keep, on_pushed
        self._newest: queue.Queue[tuple[int, Tree] | None] = queue.Queue(1)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="headrace-push", daemon=True)
        self._thread.start()

    def push(self, version: int, parameters: Tree) -> None:
        """Pushes a version soon. parameters: are copied before this returns."""
        if self._failure is not None:
            raise self._failure
        self._replace((version, tree_map(lambda leaf: leaf.detach().cpu().clone(), parameters)))

    def close(self) -> None:
        """Pushes what is left, and ends the thread; raises what it raised."""
        if self._thread.is_alive():
            self._newest.put(None)
            self._thread.join(60.0)
        if self._failure is not None:
            raise self._failure

    def _replace(self, item: tuple[int, Tree]) -> None:
        while True:
            try:
                self._newest.put_nowait(item)
                return
            except queue.Full:
                with suppress(queue.Empty):
                    self._newest.get_nowait()

    def _run(self) -> None:
        try:
            while (item := self._newest.get()) is not None:
                version, parameters = item
                self._database.push(self._name, parameters, version)
                self._on_pushed(version)
                self._database.gc(self._name, self._keep)
        except BaseException as error:
            self._failure = error


class TrainerWorker(Worker):
    """Learns from each batch of chunks, in the order in which they arrive."""

    def _configure(self, config: TrainerSettings) -> None:
        self._config = config
        stack = self.resources
        torch.set_num_threads(config.torch_threads)
        self._agent, self._algo = agent, algo = config.agent, config.algo
        agent.initialize(config.spaces, seed=config.seed)
        agent.to_device(config.device)
        algo.initialize(agent, n_itr=config.n_itr, batch_spec=config.batch, seed=config.seed)
        acting, connections = config.acting, config.connections
        spec = slot_spec(agent, config.spaces, acting.spec.batch, (acting.n_envs,), {}, acting.spec.bootstrap)
        self._database = stack.enter_context(connections.parameters())
        self._itr = self._resumed() if config.resume else self._fresh()
        self._saved = time.monotonic(), self._itr
        consumer = connections.consumer(config.stream, config.example, config.qsize)
        self._prefetch = Prefetch(consumer, config.n_chunks, spec.agent_info, spec.state, config.device)
        stack.callback(self._prefetch.close)
        admitting = connections.admission(config.stream, config.max_staleness, config.n_chunks, config.lease_seconds)
        stack.callback(admitting.close)
        self._admission = admitting.admission
        self._admission.resume(self._itr)
        self._pusher = ParameterPusher(self._database, config.policy, config.keep, self._admission.advance)
        self._info: OptInfo = {}
        self._waited = 0.0
        self._gone = 0

    def _poll(self) -> PollResult:
        config = self._config
        if self._itr >= config.n_itr:
            self._finish()
            return PollResult()
        self._account()
        begin = time.monotonic()
        batch = self._prefetch.next(TICK)
        self._waited += time.monotonic() - begin
        if batch is None:
            return PollResult()
        for frame in batch.frames:
            self._admission.used(frame, self._itr)
        self._algo.cut(batch.returns)  # chunks come in any order, so columns do not continue
        with torch_seeded(config.seed, self._itr, self._agent.device):
            info = self._algo.optimize_agent(self._itr, batch.samples)
        self._info = info or self._info
        self._itr += 1
        if self._itr % config.push_interval == 0:
            self._pusher.push(self._itr, self._agent.state_dict())
        if time.monotonic() >= self._saved[0] + config.checkpoint_interval:
            self._save()
        return PollResult(int(batch.samples.env.valid.sum()), 1)

    def _account(self) -> None:
        """Lets other chunks start in the place of those that were accepted and did not arrive."""
        gone = self._prefetch.gone - self._gone
        if gone:
            self._gone += gone
            self._admission.forget(gone)
            self.note(f"{gone} chunks were lost or rejected on their way; others take their place")

    def _fresh(self) -> int:
        """Begins a run: older parameters of this name go, the initial ones are version 0."""
        self._database.clear(self._config.policy)
        self._database.push(self._config.policy, self._agent.state_dict(), 0)
        return 0

    def _resumed(self) -> int:
        """Goes on from the newest parameters, with the optimizer of the newest checkpoint; returns the update."""
        config = self._config
        if config.policy not in self._database.list_names():
            self.note(f"there are no parameters of {config.policy!r} to go on from; training begins anew")
            return self._fresh()
        entry = self._database.entry(config.policy, mode="torch")
        try:
            state = load_checkpoint(config.checkpoint)
            self._algo.load_state_dict(state["algo"])
            self._algo.load_contents(config.checkpoint.parent / "replay", state["algo"])
        except (FileNotFoundError, CheckpointError) as error:
            self.note(f"the optimizer begins anew, because there is no checkpoint of it: {error}")
        self._agent.load_state_dict(entry.parameters)
        self.note(f"training goes on after update {entry.version} of {config.n_itr}")
        return entry.version

    def _save(self) -> None:
        """Writes the state of the algorithm."""
        self._algo.save_contents(self._config.checkpoint.parent / "replay")
        save_checkpoint(self._config.checkpoint, {"algo": self._algo.state_dict(), "itr": self._itr})
        self._saved = time.monotonic(), self._itr

    def _settle(self) -> None:
        """Pushes the present parameters, and saves the state that belongs to them."""
        self._pusher.close()
        self._database.push(self._config.policy, self._agent.state_dict(), self._itr)
        if self._saved[1] != self._itr:
            self._save()

    def _finish(self) -> None:
        self._settle()
        self._database.tag(self._config.policy, self._itr, FINAL)
        self.complete()

    def _figures(self) -> Mapping[str, float]:
        counts, ages = self._admission.counts, self._admission.ages
        n_ages = sum(ages.values())
        figures: dict[str, Any] = {
            "version": self._itr,
            "updates": self._config.n_itr,
            "waiting": self._waited,
            "running": counts.running,
            "expired": counts.expired,
            "accepted": counts.accepted,
            "gone": self._gone,
            "age": sum(age * n for age, n in ages.items()) / n_ages if n_ages else 0.0,
        }
        return {**figures, **self._info}

    def _exit(self) -> None:
        if self.state is not WorkerState.COMPLETED:
            self._settle()
