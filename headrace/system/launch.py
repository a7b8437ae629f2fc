"""Runs an experiment: turns its configuration into workers, and gives them to a controller."""

from __future__ import annotations

import copy
import json
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import cloudpickle
import numpy as np

from headrace.agents.base import Agent
from headrace.buffers.samples import SlotSpec, build_slot
from headrace.buffers.tree import allocate_like, tree_leaves
from headrace.envs.factory import EnvFactory
from headrace.envs.vector.spec import VectorEnvs
from headrace.processes.start_method import choose_start_method
from headrace.processes.status import Status
from headrace.rng import draw_seed
from headrace.samplers.collection.loop import private_array
from headrace.samplers.collection.make_envs import train_envs
from headrace.samplers.inference.spec import slot_spec
from headrace.samplers.presets import SerialSampler
from headrace.services import ParameterDBClient
from headrace.storage import write_whole
from headrace.system.acting import Acting
from headrace.system.actor import ActorSettings, ActorWorker
from headrace.system.connections import Connections
from headrace.system.controller import Controller, summary
from headrace.system.evaluation import EvaluationSettings, EvaluationWorker
from headrace.system.experiment import ActorConfig, ExperimentConfig, TrainerConfig
from headrace.system.members import Group, Member, MemberSpec, local_group
from headrace.system.nodes import NodeClient, RemoteGroup, serve_node
from headrace.system.policy import PolicySettings, PolicyWorker
from headrace.system.process import WorkerStart, show_name
from headrace.system.ring import slice_config
from headrace.system.trainer import TrainerSettings, TrainerWorker
from headrace.system.worker import Worker, WorkerInformation
from headrace.types import BatchSpec, EnvSpaces, Tree

__all__ = ["RunResult", "members_of", "run_experiment", "run_node"]

_log = logging.getLogger("headrace.system")

_CHUNKS_AHEAD = 4  # chunks that wait for a trainer at most, in updates


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Args:
        returns: of the episodes of the final evaluation; empty if there was none.
        seconds: from the start of the workers to their end.
        stopped: whether it was ended before its time.
        summary: what the controller knew last about all workers.
    """

    returns: Sequence[float]
    seconds: float
    stopped: bool
    summary: Any

    @property
    def mean_return(self) -> float:
        """Mean return of the final evaluation."""
        return float(np.mean(self.returns)) if len(self.returns) else float("nan")


def run_experiment(
    config: ExperimentConfig,
    connections: Connections,
    *,
    resume: bool = False,
    start_method: str = "auto",
    several_machines: bool = False,
    on_controller: Callable[[Controller], None] = lambda controller: None,
    on_look: Callable[[Controller], None] = lambda controller: None,
) -> RunResult:
    """Runs an experiment to its end.

    Args:
        config: its workers.
        connections: how they reach each other.
        resume: whether to go on from the parameters in the run's database.
        start_method: "fork", "forkserver", "spawn" or "auto".
        several_machines: whether workers with a `node` above 0 run on other machines, see `run_node`; otherwise all run
            here.
        on_controller: called with the controller before anything starts, for signal handlers.
        on_look: see `Controller`.

    Returns:
        How it ended.

    Raises:
        TypeError, ValueError: for a field of the configuration that is wrong, before anything starts.
        SamplerError: the first failure that ended the run, which names its worker.
        TimeoutError: if another machine does not join.
    """
    config = _seeded(config.checked())
    connections.folder.mkdir(parents=True, exist_ok=True)
    specs = members_of(config, connections, resume)
    status = connections.folder / "status.json"

    def look(controller: Controller) -> None:
        write_whole(status, [json.dumps(summary(controller)).encode()])
        on_look(controller)

    with ExitStack() as stack:
        nodes: dict[int, NodeClient] = {}
        if several_machines:
            names = stack.enter_context(connections.repository())
            names.add(connections.full_name("seed"), str(config.seed), replace=True)
            for node in sorted({spec.node for spec in specs} - {0}):
                nodes[node] = NodeClient(connections, node, config.start_timeout)
                stack.callback(nodes[node].close)
        here = partial(local_group, start_method=choose_start_method(start_method), timeout=config.timeout)
        show_name("controller")

        def make_group(spec: MemberSpec) -> Group:
            return RemoteGroup(nodes[spec.node], spec) if spec.node in nodes else here(spec)

        members = [Member(spec, make_group) for spec in specs]
        trainers = [one for one in members if one.spec.start.worker is TrainerWorker]
        controller = Controller(members, trainers or members, start_timeout=config.start_timeout, on_look=look)
        on_controller(controller)
        begin = time.monotonic()
        controller.run()
        seconds = time.monotonic() - begin
    returns: list[float] = []
    if not controller.stopped and config.trainers and config.final_episodes:
        returns = final_returns(config, connections)
    return RunResult(returns, seconds, controller.stopped, summary(controller))


def run_node(
    config: ExperimentConfig, connections: Connections, node: int, *, resume: bool = False, start_method: str = "auto"
) -> None:
    """Runs the workers of one machine, until the controller on machine 0 ends the run.

    Args:
        config: the workers of all machines, as on machine 0.
        connections: how they reach each other.
        node: number of this machine, from 1.
        resume: see `run_experiment`; the same on all machines.
        start_method: see `run_experiment`.

    Raises:
        ValueError: if no worker belongs to this machine.
        StreamTimeout, TimeoutError: if the controller does not come, or goes away.
    """
    config = config.checked()
    with connections.repository() as names:
        seed = int(names.wait(connections.full_name("seed"), timeout=config.start_timeout))
    specs = members_of(replace(config, seed=seed), connections, resume)
    if all(spec.node != node for spec in specs):
        raise ValueError(f"no worker has node={node}; the nodes are {sorted({spec.node for spec in specs})}")
    show_name(f"node {node}")
    here = partial(local_group, start_method=choose_start_method(start_method), timeout=config.timeout)
    serve_node(connections, node, specs, here, start_timeout=config.start_timeout)


def _seeded(config: ExperimentConfig) -> ExperimentConfig:
    return replace(config, seed=draw_seed()) if config.seed is None else config


def members_of(config: ExperimentConfig, connections: Connections, resume: bool) -> list[MemberSpec]:
    """Returns the workers of a checked configuration, in the order in which they are configured and started."""
    assert config.seed is not None
    worlds = {trainer.policy: _world(config, trainer) for trainer in config.trainers}
    specs: list[MemberSpec] = []

    def add(kind: str, index: int, count: int, worker: type[Worker], settings: Any, restart: bool, node: int) -> None:
        assert config.seed is not None
        information = WorkerInformation(kind, index, count, config.seed)
        threads = settings.torch_threads if isinstance(settings, TrainerSettings) else 1
        specs.append(MemberSpec(WorkerStart(information, worker, settings), restart, threads, node))

    for index, trainer in enumerate(config.trainers):
        settings = _trainer(config, connections, trainer, worlds[trainer.policy], resume)
        add("trainer", index, len(config.trainers), TrainerWorker, settings, False, trainer.node)
    streams: dict[str, int] = {}
    for policy in config.policies:
        streams[policy.inference_stream] = streams.get(policy.inference_stream, 0) + 1
    ranks = dict.fromkeys(streams, 0)
    for index, policy in enumerate(config.policies):
        world, stream = worlds[policy.policy], policy.inference_stream
        policy_settings = PolicySettings(
            connections=connections,
            agent=config.trainer_of(policy.policy).agent,
            spaces=world.spaces,
            acting=world.acting,
            policy=policy.policy,
            stream=stream,
            rank=ranks[stream],
            servers=streams[stream],
            max_batch=policy.max_batch,
            max_wait=policy.max_wait,
            pull_interval=policy.pull_interval,
            device=policy.device,
            seed=config.seed,
        )
        ranks[stream] += 1
        add("policy", index, len(config.policies), PolicyWorker, policy_settings, True, policy.node)
    for index, one in enumerate(config.eval_managers):
        evaluation = EvaluationSettings(
            connections=connections,
            env=one.env,
            env_kwargs=one.env_kwargs,
            agent=config.trainer_of(one.policy).agent,
            policy=one.policy,
            n_envs=one.n_envs,
            n_episodes=one.n_episodes,
            interval=one.interval,
            seed=config.seed,
        )
        add("eval", index, len(config.eval_managers), EvaluationWorker, evaluation, True, one.node)
    first_id = 0
    for index, actor in enumerate(config.actors):
        settings_of_actor = _actor(config, connections, actor, worlds[actor.policy], index, first_id, streams)
        first_id += actor.n_envs * actor.ring_size
        add("actor", index, len(config.actors), ActorWorker, settings_of_actor, True, actor.node)
    counts: dict[str, int] = {}
    for own in config.workers:
        number = counts.get(own.kind, 0)
        counts[own.kind] = number + 1
        count = sum(one.kind == own.kind for one in config.workers)
        add(own.kind, number, count, own.worker, own.config, own.restart, own.node)
    return specs


@dataclass(frozen=True)
class _World:
    """What the agent of a policy sees and does."""

    spaces: EnvSpaces
    spec: SlotSpec
    acting: Acting


def _world(config: ExperimentConfig, trainer: TrainerConfig) -> _World:
    """Makes one environment and one agent to see what they are like."""
    assert config.seed is not None
    actor = next(one for one in config.actors if trainer.sample_stream in one.sample_streams)
    factory = EnvFactory.of(actor.env, actor.env_kwargs, "env")
    one = slice_config(
        factory,
        range(actor.n_envs),
        seed=config.seed,
        discount=1.0,
        env_info_keys=actor.env_info_keys or {},
        max_decorrelation_steps=0,
    )
    if not isinstance(factory.make, VectorEnvs):
        one = replace(one, env_ids=one.env_ids[:1])
    envs, _ = train_envs(one, Status())
    try:
        spaces = envs.spaces
    finally:
        envs.close()
    agent: Agent = copy.deepcopy(trainer.agent)
    agent.initialize(spaces, seed=config.seed)
    batch = BatchSpec(actor.sample_steps, actor.n_envs)
    spec = slot_spec(agent, spaces, batch, (actor.n_envs,), actor.env_info_keys or {}, trainer.algo.bootstrap_value)
    return _World(spaces, spec, Acting.of(spec, agent.noise_size, agent.noise_has_env_id))


def _trainer(
    config: ExperimentConfig, connections: Connections, trainer: TrainerConfig, world: _World, resume: bool
) -> TrainerSettings:
    assert config.seed is not None
    n_chunks = config.n_chunks(trainer)
    return TrainerSettings(
        connections=connections,
        agent=trainer.agent,
        algo=trainer.algo,
        spaces=world.spaces,
        acting=world.acting,
        example=_largest_chunk(world.acting.spec),
        policy=trainer.policy,
        stream=trainer.sample_stream,
        n_chunks=n_chunks,
        n_itr=config.n_itr(trainer),
        max_staleness=trainer.max_staleness,
        lease_seconds=trainer.lease_seconds,
        qsize=_CHUNKS_AHEAD * n_chunks,
        push_interval=trainer.push_interval,
        keep=trainer.keep,
        checkpoint_interval=trainer.checkpoint_interval,
        device=trainer.device,
        torch_threads=trainer.torch_threads,
        resume=resume,
        seed=config.seed,
    )


def _actor(
    config: ExperimentConfig,
    connections: Connections,
    actor: ActorConfig,
    world: _World,
    index: int,
    first_id: int,
    streams: dict[str, int],
) -> ActorSettings:
    assert config.seed is not None
    n, trainer = actor.n_envs, config.trainer_of(actor.policy)
    inline = actor.inference_stream is None
    return ActorSettings(
        connections=connections,
        factory=EnvFactory.of(actor.env, actor.env_kwargs, "env"),
        env_ids=[range(first_id + n * k, first_id + n * (k + 1)) for k in range(actor.ring_size)],
        acting=world.acting,
        discount=trainer.algo.discount,
        env_info_keys=actor.env_info_keys or {},
        max_decorrelation_steps=actor.max_decorrelation_steps,
        inference_stream=actor.inference_stream,
        servers=1 if inline else streams[str(actor.inference_stream)],
        rank=index,
        sample_streams=tuple(actor.sample_streams),
        qsize=_CHUNKS_AHEAD * config.n_chunks(trainer),
        policy=actor.policy,
        agent=cloudpickle.dumps(trainer.agent) if inline else None,
        pull_interval=actor.pull_interval,
        seed=config.seed,
    )


def _largest_chunk(spec: SlotSpec) -> Tree:
    """Returns a chunk in which as many episodes end as there are steps."""
    slot = build_slot(spec, private_array)
    n = spec.batch.size
    chunk = {name: value for name, value in vars(slot).items() if name != "final" and tree_leaves(value)}
    final = {
        "time": np.zeros(n, np.int64),
        "column": np.zeros(n, np.int64),
        "observation": _rows(spec.observation, n),
        "prev_action": _rows(spec.action, n),
        "prev_reward": np.zeros(n, np.float32),
    }
    if tree_leaves(spec.state):
        final["state"] = _rows(spec.state, n)
    return {**chunk, "returns": np.zeros((1, spec.batch.B), np.float32), "final": final}


def _rows(example: Tree, n: int) -> Tree:
    return allocate_like(example, (n,), np.zeros)


def final_returns(config: ExperimentConfig, connections: Connections) -> list[float]:
    """Evaluates the parameters with which the run ended, greedily; returns the returns of all episodes."""
    trainer = config.trainers[0]
    actor = next(one for one in config.actors if one.policy == trainer.policy)
    agent: Agent = copy.deepcopy(trainer.agent)
    sampler = SerialSampler(
        actor.env,
        actor.env_kwargs,
        batch_T=1,
        batch_B=1,
        max_decorrelation_steps=0,
        eval_n_envs=min(config.final_episodes, 20),
        eval_max_trajectories=config.final_episodes,
    )
    with sampler.initialize(agent, seed=config.seed):
        with connections.parameters() as database:
            agent.load_state_dict(_newest(database, trainer.policy))
        return [info.Return for info in sampler.evaluate_agent(config.n_itr(trainer))]


def _newest(database: ParameterDBClient, policy: str) -> Any:
    return database.get(policy, mode="torch")
