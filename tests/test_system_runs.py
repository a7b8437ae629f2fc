"""Whole runs of actor, policy, trainer and evaluation workers, on this machine."""

import json
import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from headrace.agents.dqn import DqnAgent
from headrace.agents.pg import CategoricalPgAgent, RecurrentCategoricalPgAgent
from headrace.algos.dqn import DQN, DQNConfig
from headrace.algos.pg import A2C, IMPALA, PPO
from headrace.envs import VectorEnvs
from headrace.errors import StreamTimeout, WorkerCrashed
from headrace.services import ParameterDBClient
from headrace.system import (
    ActorConfig,
    Connections,
    Controller,
    EvaluationConfig,
    ExperimentConfig,
    PolicyConfig,
    RunResult,
    TrainerConfig,
    WorkerInformation,
    run_experiment,
    run_node,
)
from headrace.system.members import MemberSpec, local_group
from headrace.system.nodes import NodeClient, RemoteGroup, serve_node
from headrace.system.process import WorkerStart
from tests.environments import Stochastic
from tests.system_workers import Plan, Planned
from tests.vector_worlds import side_by_side

TRAINER = TrainerConfig(agent=CategoricalPgAgent(), algo=IMPALA(), n_steps=600, batch_B=8)
SMALL = ExperimentConfig(
    actors=[ActorConfig(n_envs=4, ring_size=2, sample_steps=5, max_decorrelation_steps=10)] * 2,
    policies=[PolicyConfig()],
    trainers=[TRAINER],
    seed=3,
    final_episodes=3,
    timeout=60.0,
)
INLINE = replace(SMALL, actors=[replace(actor, inference_stream=None) for actor in SMALL.actors], policies=[])


def ran(config: ExperimentConfig, folder: Path, **options: Any) -> RunResult:
    return run_experiment(config, Connections("test", "run", folder), **options)


def trained(config: ExperimentConfig, trainer: TrainerConfig) -> ExperimentConfig:
    return replace(config, trainers=[trainer])


@pytest.mark.parametrize("config", [SMALL, INLINE], ids=["policy worker", "inline"])
def test_a_run_learns_from_as_many_steps_as_asked_and_keeps_the_accounts(
    config: ExperimentConfig, tmp_path: Path
) -> None:
    result = ran(config, tmp_path)
    workers = {worker["name"]: worker for worker in result.summary["workers"]}
    trainer = workers["trainer 0"]
    assert trainer["samples"] == 600  # 15 updates of 40 steps
    assert trainer["batches"] == 15
    posted = sum(workers[name]["batches"] for name in ("actor 0", "actor 1"))
    figures = trainer["figures"]
    # Chunks that no update used any more wait in the stream or in the prefetch; the actors report after the trainer.
    assert figures["gone"] == 0
    assert 15 * 2 <= figures["accepted"] <= posted
    assert figures["age"] <= TRAINER.max_staleness + 1
    assert len(result.returns) == 3
    with ParameterDBClient("test", "run", tmp_path / "parameters") as database:
        assert database.list_tags("default")["final"] == database.version_of("default") == 15


@pytest.mark.programs
@pytest.mark.parametrize(
    "trainer",
    [
        replace(TRAINER, algo=A2C()),
        replace(TRAINER, algo=PPO()),
        replace(TRAINER, agent=RecurrentCategoricalPgAgent(), algo=A2C()),
        replace(TRAINER, agent=DqnAgent(eps_itr_max=10), algo=DQN(DQNConfig(min_steps_learn=100, batch_size=16))),
    ],
    ids=["A2C", "PPO", "recurrent", "DQN"],
)
@pytest.mark.parametrize("config", [SMALL, INLINE], ids=["policy worker", "inline"])
def test_every_kind_of_algorithm_learns(config: ExperimentConfig, trainer: TrainerConfig, tmp_path: Path) -> None:
    result = ran(trained(config, trainer), tmp_path)
    assert result.summary["workers"][0]["batches"] == 15
    assert result.summary["workers"][0]["figures"]["gradNorm"] > 0


@pytest.mark.programs
@pytest.mark.parametrize("config", [SMALL, INLINE], ids=["policy worker", "inline"])
def test_workers_reach_each_other_by_names_over_encrypted_sockets(config: ExperimentConfig, tmp_path: Path) -> None:
    keys = Connections.run_keys(tmp_path)
    result = run_experiment(config, Connections("test", "run", tmp_path, "zmq", keys=keys))
    trainer = result.summary["workers"][0]
    assert trainer["samples"] == 600
    assert trainer["figures"]["gone"] == 0


@pytest.mark.programs
def test_vector_environments_are_slices(tmp_path: Path) -> None:
    actor = replace(SMALL.actors[0], env=VectorEnvs(partial(side_by_side, make=Stochastic, mode="NEXT_STEP")))
    result = ran(replace(SMALL, actors=[actor], final_episodes=0), tmp_path)
    assert result.summary["workers"][0]["batches"] == 15


@pytest.mark.programs
def test_two_policy_workers_share_a_stream_and_evaluations_are_written_down(tmp_path: Path) -> None:
    config = replace(
        SMALL, policies=[PolicyConfig()] * 2, eval_managers=[EvaluationConfig(n_envs=2, n_episodes=2, interval=0.1)]
    )
    config = trained(config, replace(TRAINER, n_steps=2000, keep=100))
    result = ran(config, tmp_path)
    workers = {worker["name"]: worker for worker in result.summary["workers"]}
    assert workers["policy 0"]["samples"] > 0
    assert workers["policy 1"]["samples"] > 0
    assert workers["eval 0"]["batches"] > 0
    with ParameterDBClient("test", "run", tmp_path / "parameters") as database:
        measured = [database.metadata_of("default", version) for version in database.list_versions("default")]
    assert any("mean_return" in metadata for metadata in measured)


def when(condition: Callable[[Controller], bool], act: Callable[[Controller], None]) -> Callable[[Controller], None]:
    """Returns what acts once, as soon as the condition holds."""
    done: list[bool] = []

    def look(controller: Controller) -> None:
        if not done and condition(controller):
            done.append(True)
            act(controller)

    return look


def has_learned(controller: Controller) -> bool:
    return controller.members[0].batches >= 3


def kill(kind: str) -> Callable[[Controller], None]:
    def act(controller: Controller) -> None:
        pid = next(one.pid for one in controller.members if one.name.startswith(kind))
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    return act


LONG = trained(SMALL, replace(TRAINER, n_steps=8000))


@pytest.mark.parametrize("kind", ["actor", "policy"])
def test_learning_goes_on_after_the_death_of_an(kind: str, tmp_path: Path) -> None:
    result = ran(
        trained(LONG, replace(TRAINER, n_steps=8000, lease_seconds=1.0)),
        tmp_path,
        on_look=when(has_learned, kill(kind)),
    )
    fallen = next(worker for worker in result.summary["workers"] if worker["name"].startswith(kind))
    assert fallen["restarts"] == 1
    assert result.summary["workers"][0]["batches"] == 200


@pytest.mark.programs
def test_the_death_of_the_trainer_ends_the_run_and_resume_goes_on(tmp_path: Path) -> None:
    with pytest.raises(WorkerCrashed, match="trainer 0"):
        ran(LONG, tmp_path, on_look=when(has_learned, kill("trainer")))
    with ParameterDBClient("test", "run", tmp_path / "parameters") as database:
        reached = database.version_of("default")
    assert reached >= 1
    result = ran(LONG, tmp_path, resume=True)
    trainer = result.summary["workers"][0]
    assert trainer["batches"] == 200 - reached
    assert trainer["figures"]["version"] == 200


@pytest.mark.programs
def test_sigterm_ends_a_run_in_good_order_and_resume_is_exact_about_updates(tmp_path: Path) -> None:
    stopped = ran(LONG, tmp_path, on_look=when(has_learned, Controller.stop))
    assert stopped.stopped
    assert not len(stopped.returns)
    reached = int(stopped.summary["workers"][0]["batches"])
    with ParameterDBClient("test", "run", tmp_path / "parameters") as database:
        assert database.version_of("default") >= reached
    assert (tmp_path / "default.pt").exists()
    result = ran(LONG, tmp_path, resume=True)
    assert result.summary["workers"][0]["figures"]["version"] == 200


class BreaksLater(Stochastic):
    """Raises in its 50th step."""

    def step(self, action: Any) -> Any:
        self._taken = getattr(self, "_taken", 0) + 1
        if self._taken == 50:
            raise ValueError("the simulator broke")
        return super().step(action)


@pytest.mark.programs
def test_an_environment_that_always_breaks_ends_the_run_with_its_error(tmp_path: Path) -> None:
    config = replace(LONG, actors=[replace(SMALL.actors[0], env=BreaksLater)], final_episodes=0)
    config = trained(config, replace(TRAINER, n_steps=50_000, lease_seconds=1.0))
    with pytest.raises(Exception, match=r"actor 0.*the simulator broke"):
        ran(config, tmp_path)


def test_the_state_of_a_run_is_written_for_others(tmp_path: Path) -> None:
    ran(SMALL, tmp_path)
    state = json.loads((tmp_path / "status.json").read_text())
    assert [worker["name"] for worker in state["workers"]] == ["trainer 0", "policy 0", "actor 0", "actor 1"]


@pytest.mark.slow
def test_twenty_random_kills_do_not_stop_learning(tmp_path: Path) -> None:
    config = trained(SMALL, replace(TRAINER, n_steps=200_000, lease_seconds=1.0))
    kills: list[str] = []
    chance = random.Random(5)

    def look(controller: Controller) -> None:
        alive = [one for one in controller.members if one.spec.restart and one.pid and one.lived > 11]
        if alive and len(kills) < 20 and has_learned(controller):
            victim = chance.choice(alive)
            assert victim.pid is not None
            kills.append(victim.name)
            os.kill(victim.pid, signal.SIGKILL)
        if len(kills) == 20 and all(one.lived > 5 for one in controller.members if one.spec.restart):
            controller.stop()

    result = ran(config, tmp_path, on_look=look)
    workers = result.summary["workers"]
    assert len(kills) == 20
    assert sum(worker["restarts"] for worker in workers) == 20
    trainer = workers[0]
    posted = sum(worker["batches"] for worker in workers if worker["name"].startswith("actor"))
    # What dead actors had finished since their last reports is missing in their sums, so the trainer may know of more.
    assert trainer["figures"]["accepted"] >= trainer["batches"] * 2
    assert posted <= trainer["figures"]["accepted"] + trainer["figures"]["gone"] + 20


def node_program(config: ExperimentConfig, connections: Connections) -> None:
    run_node(config, connections, 1)


@pytest.mark.programs
def test_workers_on_another_node_obey_the_controller(tmp_path: Path) -> None:
    keys = Connections.run_keys(tmp_path)
    connections = Connections("test", "run", tmp_path, "zmq", keys=keys)
    actors = [SMALL.actors[0], replace(SMALL.actors[1], node=1)]
    config = trained(replace(SMALL, actors=actors), replace(TRAINER, n_steps=4000, lease_seconds=1.0))
    other = multiprocessing.get_context("fork").Process(target=node_program, args=(config, connections))
    other.start()
    try:
        parents: list[int] = []

        def act(controller: Controller) -> None:
            pid = controller.members[-1].pid
            assert pid is not None
            parents.append(psutil.Process(pid).ppid())
            os.kill(pid, signal.SIGKILL)

        result = run_experiment(config, connections, several_machines=True, on_look=when(has_learned, act))
        assert parents == [other.pid]
        workers = {worker["name"]: worker for worker in result.summary["workers"]}
        assert workers["trainer 0"]["batches"] == 100
        assert workers["actor 1"]["restarts"] == 1
        other.join(30)
        assert other.exitcode == 0
    finally:
        other.kill()
        other.join()


def test_a_node_ends_its_workers_when_the_controller_is_gone(tmp_path: Path) -> None:
    keys = Connections.run_keys(tmp_path)
    connections = Connections("test", "run", tmp_path, "zmq", keys=keys)
    specs = [MemberSpec(WorkerStart(WorkerInformation("actor", 0, 1, 0), Planned, Plan(tmp_path)), True, node=1)]
    here = partial(local_group, start_method="fork", timeout=20.0)
    failures: list[BaseException] = []

    def serve() -> None:
        try:
            serve_node(connections, 1, specs, here, start_timeout=20.0, silence=0.5)
        except StreamTimeout as error:
            failures.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    client = NodeClient(connections, 1, 20.0)
    group = RemoteGroup(client, specs[0])
    group.look()
    assert psutil.pid_exists(group.pids[0])
    thread.join(30)
    assert "heard nothing from the controller" in str(failures[0])
    client.close()
