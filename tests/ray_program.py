"""Run by test_ray_programs.py: programs that start a Ray of their own, in several ways. Each prints its results."""

import importlib
import logging
import sys
import time
from typing import Any

from headrace.agents.pg import CategoricalPgAgent
from headrace.errors import SamplerError, WorkerCrashed
from headrace.processes.ray_session import RayActors, RayCluster
from headrace.samplers import RayBatchSampler, RaySampler
from tests.episode_worlds import Lengths
from tests.faulty import SEED, FaultyEnv
from tests.ray_here import SMALL
from tests.walk import Walk


def say(text: Any) -> None:
    print(text, flush=True)


def sampler_of(env: Any = Walk, **options: Any) -> RayBatchSampler:
    values: dict[str, Any] = {"batch_T": 8, "batch_B": 2, "n_workers": 1, "cluster": SMALL}
    values |= {"actors": RayActors(num_cpus=0.5), "max_decorrelation_steps": 0}
    return RayBatchSampler(env, **{**values, **options})


def works(sampler: RayBatchSampler, itr: int = 0) -> None:
    samples, _ = sampler.obtain_samples(itr)
    say(tuple(samples.env.reward.shape))


def ray_lives() -> bool:
    return bool(importlib.import_module("ray").is_initialized())


def life() -> None:
    """Ray is there while a sampler is: the first of two that ends leaves it to the other, and an error ends it, too.

    Then the program ends Ray under a sampler, which must not start it again.
    """
    first, second = sampler_of().initialize(CategoricalPgAgent()), sampler_of().initialize(CategoricalPgAgent())
    first.shutdown()
    works(second)
    say(ray_lives())
    second.shutdown()
    say(ray_lives())

    faulty = sampler_of(FaultyEnv, env_kwargs={"fault": "raise", "phase": "step"}, batch_B=4)
    try:
        with faulty.initialize(CategoricalPgAgent(), seed=SEED):  # Ray starts again
            faulty.obtain_samples(0)
    except SamplerError as failure:
        say(failure.message)
    say(ray_lives())

    third = sampler_of().initialize(CategoricalPgAgent())
    works(third)
    importlib.import_module("ray").shutdown()
    try:
        works(third)
    except SamplerError as failure:
        say(failure.message)
    third.shutdown()
    say(ray_lives())


def exit_without_shutdown() -> None:
    works(sampler_of().initialize(CategoricalPgAgent()))
    say("left")


def sleep() -> None:
    sampler = sampler_of().initialize(CategoricalPgAgent())
    works(sampler)
    say("asleep")
    time.sleep(1000)


class Said(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def on_two_machines(kind: str, address: str, actors: RayActors) -> tuple[Any, Any]:
    """Returns a sampler of batches or of episodes with two workers, and what it returns in one call, of both."""
    cluster = RayCluster(address=address)
    if kind == "batches":
        sampler = sampler_of(cluster=cluster, actors=actors, batch_B=4, n_workers=2)
        sampler.initialize(CategoricalPgAgent(), seed=0)
        return sampler, lambda itr: tuple(sampler.obtain_samples(itr)[0].env.reward.shape)
    episodes = RaySampler(
        CategoricalPgAgent(), Lengths, max_episode_length=50, n_workers=2, seed=0, cluster=cluster, actors=actors
    )

    def collect(itr: int) -> Any:
        episodes.obtain_samples(itr, 50)
        return episodes.obtain_exact_episodes(2).env_ids.tolist()

    return episodes, collect


def node_dies(kind: str, max_restarts: str) -> None:
    """A cluster of two machines, one of which dies: with restarts, its workers move to the other."""
    said = Said()
    logging.getLogger("headrace").addHandler(said)
    cluster_utils: Any = importlib.import_module("ray.cluster_utils")
    node = {"num_cpus": 2, "object_store_memory": SMALL.object_store_memory, "include_dashboard": False}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=node)
    other = cluster.add_node(num_cpus=2, object_store_memory=SMALL.object_store_memory)
    try:
        actors = RayActors(placement="SPREAD", max_restarts=int(max_restarts))
        sampler, collect = on_two_machines(kind, cluster.address, actors)
        with sampler:
            say(collect(0))
            cluster.remove_node(other, allow_graceful=False)
            itr, deadline = 1, time.monotonic() + 60  # an actor outlives its machine's raylet by a moment
            while not said.texts and time.monotonic() < deadline:
                collect(itr)
                itr += 1
            say(collect(itr))
    except WorkerCrashed as failure:
        say(failure.message)
    finally:
        say(said.texts)
        say(ray_lives())
        cluster.shutdown()


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
