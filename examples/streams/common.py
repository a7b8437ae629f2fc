"""What the actor, the policy server and the learner of this folder agree on: sizes, streams, names and keys."""

from __future__ import annotations

import argparse
import tempfile
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np

from headrace.services import ParameterDBClient, RedisNameRecordRepository
from headrace.streams import (
    AdmissionClient,
    AdmissionGate,
    AllowList,
    InferenceClient,
    InferenceServer,
    InferenceStream,
    Keys,
    SampleConsumer,
    SampleProducer,
    SampleStream,
    make_client,
    make_consumer,
    make_producer,
    make_server,
)
from headrace.types import Tree

ENV = "CartPole-v1"
T, B = 8, 32  # steps of a sample, samples of an update
MAX_STALENESS = 2  # versions that a sample may be old when it is learned from
NAME = "cartpole"  # of the parameters
ROLES = ("actor", "policy", "learner")


@dataclass(frozen=True)
class Run:
    """One role's part of a run. over: "shared_memory" or "zmq"; folder: what the processes of a run share."""

    role: str
    over: str
    folder: Path
    redis: str
    n_steps: int

    @staticmethod
    def from_arguments(role: str, description: str | None) -> Run:
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--over", choices=["shared_memory", "zmq"], default="shared_memory")
        parser.add_argument("--folder", type=Path, default=Path("runs/cartpole-streams"))
        parser.add_argument("--redis", default="redis://127.0.0.1:6379", help="where zmq finds the others")
        parser.add_argument("--n-steps", type=int, default=500_000, help="environment steps to learn from")
        args = parser.parse_args()
        args.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Run(role, args.over, args.folder, args.redis, args.n_steps)

    @property
    def name(self) -> str:
        """Name of the streams; runs in different folders do not meet."""
        return f"{NAME}-{zlib.crc32(str(self.folder.resolve()).encode()):08x}"

    def parameters(self) -> ParameterDBClient:
        return ParameterDBClient(NAME, self.over, self.folder / "parameters")

    def producer(self) -> SampleProducer:
        return make_producer(self._samples())

    def consumer(self) -> SampleConsumer:
        return make_consumer(self._samples())

    def client(self) -> InferenceClient:
        return make_client(self._inference())

    def server(self) -> InferenceServer:
        return make_server(self._inference())

    def gate(self) -> AdmissionGate | AdmissionClient:
        """What the actor asks whether it may start a sample."""
        if self.over == "shared_memory":
            return AdmissionGate(self.name)
        return AdmissionClient(self.names().wait(f"{self.name}/admission", timeout=60), keys=self.keys("learner"))

    def names(self) -> RedisNameRecordRepository:
        return RedisNameRecordRepository(self.redis)

    def _samples(self) -> SampleStream:
        example = example_sample()
        if self.over == "shared_memory":
            return SampleStream("shared_memory", name=self.name, example=example, batch_size=B, qsize=4 * B)
        return SampleStream(
            "name",
            name=self.name,
            example=example,
            batch_size=B,
            names=self.names(),
            keys=self.keys("learner"),
            allowed=self.allowed(),
        )

    def _inference(self) -> InferenceStream:
        request = {"observation": np.zeros(4, np.float32)}
        result = {"action": np.int64(0), "logits": np.zeros(2, np.float32), "value": np.float32(0)}
        if self.over == "shared_memory":
            return InferenceStream("shared_memory", name=self.name, example=(request, result))
        return InferenceStream(
            "name",
            name=self.name,
            example=(request, result),
            names=self.names(),
            keys=self.keys("policy"),
            allowed=self.allowed(),
        )

    def keys(self, server: str) -> Keys:
        """This role's CURVE keys, with the public key of the role that it connects to."""
        return Keys.load(self._keys_folder() / self.role).of_server(self._public(server))

    def allowed(self) -> AllowList:
        """Who may talk to this process."""
        return AllowList(self._public(role) for role in ROLES)

    def _public(self, role: str) -> str:
        return Keys.load(self._keys_folder() / role).public

    def _keys_folder(self) -> Path:
        """Returns the folder of the keys; the first process of a run makes it."""
        folder = self.folder / "keys"
        if not folder.exists():
            new = Path(tempfile.mkdtemp(dir=self.folder))
            for role in ROLES:
                Keys.generate().save(new / role)
            with suppress(OSError):  # another process was first
                new.rename(folder)
        return folder


def example_sample() -> Tree:
    """A sample of one environment: T steps, and the observation after them."""
    env = gym.make(ENV)
    observation, _ = env.reset(seed=0)
    env.close()
    return {
        "observation": np.stack([observation] * (T + 1)),
        "final_observation": np.stack([observation] * T),  # zeros, but where an episode ended
        "action": np.zeros(T, np.int64),
        "logits": np.zeros((T, 2), np.float32),
        "value": np.zeros(T, np.float32),
        "reward": np.zeros(T, np.float32),
        "terminated": np.zeros(T, np.bool_),
        "truncated": np.zeros(T, np.bool_),
    }
