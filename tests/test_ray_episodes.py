"""Whole episodes from Ray actors, on a Ray of two CPUs that the tests start."""

import logging
import os
import pickle
import signal
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import psutil
import pytest

from headrace.agents.pg import CategoricalPgAgent
from headrace.algos.pg import PPO
from headrace.cli.main import main
from headrace.errors import AgentFailed, EnvFailed, SamplerClosed, WorkerCrashed
from headrace.processes.ray_session import RayActors
from headrace.runners import EpisodeAlgo, LocalRunner
from headrace.runners.logging import Logger
from headrace.samplers import DefaultWorker, FragmentWorker, LocalSampler, RaySampler, SetTaskUpdate, VecWorker
from tests.episode_worlds import Fails, Lengths
from tests.grid_world import GridWorld, ScriptedPolicy
from tests.leftovers import until
from tests.ray_here import NEEDS_RAY, SMALL, require_no_growth, small_ray
from tests.test_episode_samplers import require_consistent, require_equal
from tests.walk import Wide

pytestmark = [pytest.mark.programs, NEEDS_RAY]


@pytest.fixture(scope="module", autouse=True)
def ray() -> Iterator[Any]:
    """The Ray session of the test program, which samplers borrow."""
    with small_ray() as module:
        yield module


@pytest.fixture(autouse=True)
def session_is_borrowed(ray: Any) -> Iterator[None]:
    """Fails a test after which the session that existed before is gone, or an actor still holds its CPUs."""
    yield
    assert ray.is_initialized()
    assert until(lambda: ray.available_resources().get("CPU") == SMALL.num_cpus)


class Dies(Lengths):
    """Kills its process in its third episode, once: a file remembers it."""

    def __init__(self, mark: str) -> None:
        super().__init__()
        self._mark = Path(mark)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        answer = super().reset(seed=seed, options=options)
        if self._number == 2 and not self._mark.exists():
            self._mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return answer


@pytest.mark.parametrize("worker_class", [DefaultWorker, VecWorker, FragmentWorker], ids=lambda cls: cls.__name__)
def test_ray_gives_the_same_episodes_as_this_process(worker_class: Any) -> None:
    found = []
    for sampler_cls in (LocalSampler, RaySampler):
        with sampler_cls(
            CategoricalPgAgent(),
            Lengths,
            max_episode_length=50,
            n_workers=3,
            worker_class=worker_class,
            seed=5,
            deterministic=True,
        ) as sampler:
            found.append(
                [sampler.obtain_samples(0, 200), sampler.obtain_exact_episodes(5), sampler.obtain_samples(1, 150)]
            )
    for one, other in zip(*found, strict=True):
        require_equal(one, other)


def test_pickling() -> None:
    with RaySampler(ScriptedPolicy(), GridWorld, max_episode_length=16, n_workers=1, seed=0) as sampler:
        payload = cloudpickle.dumps(sampler)
        episodes = sampler.obtain_samples(0, 30)
    with pickle.loads(payload) as again:
        require_equal(episodes, again.obtain_samples(0, 30))


def test_updates_of_environments_and_agents() -> None:
    tasks = [SetTaskUpdate(GridWorld, {"goal": goal}) for goal in (2, 6)]
    with RaySampler(ScriptedPolicy(), GridWorld, max_episode_length=16, n_workers=2, seed=0) as sampler:
        episodes = sampler.obtain_samples(0, 60, env_update=tasks)
        other = sampler.obtain_exact_episodes(1, [ScriptedPolicy([1] * 16), ScriptedPolicy([2] * 16)])
    goals = {int(env_id): info["goal"] for env_id, info in zip(episodes.env_ids, episodes.episode_infos, strict=True)}
    assert goals == {0: 2, 1: 6}
    assert [set(one.actions.tolist()) for one in other.split()] == [{1}, {2}]


def test_the_example_of_the_runner() -> None:
    """Four workers on two CPUs."""
    runner = LocalRunner(seed=0, logger=Logger())
    runner.setup(
        algo=EpisodeAlgo(PPO(), CategoricalPgAgent()),
        env="CartPole-v1",
        sampler_cls=RaySampler,
        n_workers=4,
        worker_class=VecWorker,
    )
    assert runner.train(n_epochs=2, batch_size=500) > 0


@pytest.mark.parametrize("on_policy", [False, True])
def test_a_restarted_actor_goes_on_with_parameters_and_updates(
    on_policy: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        RaySampler(
            CategoricalPgAgent(),
            [Lengths, partial(Dies, str(tmp_path / "died"))],
            max_episode_length=50,
            n_workers=2,
            seed=1,
            actors=RayActors(num_cpus=0.5, max_restarts=1),
            on_policy=on_policy,
        ) as sampler,
        caplog.at_level(logging.WARNING),
    ):
        parts = [sampler.obtain_samples(itr, 60) for itr in range(4)]
    assert "is started again" in caplog.text
    found = [
        (env_id, number)
        for part in parts
        for env_id, number in zip(part.env_ids.tolist(), part.numbers.tolist(), strict=True)
    ]
    assert len(set(found)) == len(found)  # no number is used again
    assert {env_id for env_id, _ in found} == {0, 1}
    logits = [part.agent_infos.dist.logits for part in parts]
    assert all(np.isfinite(leaf).all() for leaf in logits)
    for part in parts[:1]:
        own = part.take(np.flatnonzero(part.env_ids == 0))
        require_consistent(own)


def test_training_from_the_command_line(tmp_path: Path) -> None:
    args = ["--env", "CartPole-v1", "--n-steps", "1000", "--seed", "0", "--log-dir", str(tmp_path / "run")]
    main(["train", "--sampler", "ray", "--n-workers", "2", *args])
    assert (tmp_path / "run" / "checkpoint.pt").exists()


def test_an_actor_that_dies_without_restarts(tmp_path: Path) -> None:
    with RaySampler(
        CategoricalPgAgent(), partial(Dies, str(tmp_path / "died")), max_episode_length=50, n_workers=1, seed=1
    ) as sampler:
        with pytest.raises(WorkerCrashed, match=r"worker 0 .* died"):
            sampler.obtain_samples(0, 1000)
        with pytest.raises(SamplerClosed):
            sampler.obtain_samples(1, 10)


def test_failures_have_the_same_words() -> None:
    def broken(env: Any) -> Any:
        raise KeyError("no such task")

    sampler = RaySampler(ScriptedPolicy(), GridWorld, max_episode_length=16, n_workers=1, seed=0)
    with pytest.raises(EnvFailed, match="the update of env 0 raised KeyError: 'no such task'"):
        sampler.obtain_samples(0, 100, env_update=broken)
    with pytest.raises(AgentFailed, match="this policy does not start"):
        RaySampler(Fails(), GridWorld, max_episode_length=16, n_workers=1, seed=0).obtain_samples(0, 1)
    with pytest.raises(TypeError, match="cluster must be a RayCluster"):
        RaySampler(ScriptedPolicy(), GridWorld, max_episode_length=16, cluster="auto")  # type: ignore[arg-type]


@pytest.mark.slow
def test_five_hundred_calls_take_no_more_memory(ray: Any) -> None:
    kept: deque[Any] = deque(maxlen=100)  # as in a runner's logger
    with RaySampler(
        CategoricalPgAgent(), Wide, max_episode_length=50, n_workers=2, worker_class=VecWorker, seed=0
    ) as sampler:
        workers = [psutil.Process(info["pid"]) for info in sampler.obtain_exact_episodes(1).episode_infos]
        require_no_growth(ray, lambda itr: kept.extend(sampler.obtain_samples(itr, 512).last_infos), workers)
