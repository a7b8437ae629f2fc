"""The actor, the policy server and the learner of `examples/streams`, as a user starts them in three terminals."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from headrace.streams import Frame, InferenceStream, IpSampleConsumer, SampleStream, make_consumer, make_server
from tests.leftovers import DEADLINE
from tests.redis_here import NEEDS_REDIS, RedisServer

pytestmark = pytest.mark.programs

FOLDER = Path(__file__).parent.parent / "examples" / "streams"


@pytest.fixture(params=["shared_memory", pytest.param("zmq", marks=NEEDS_REDIS)])
def options(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[str]]:
    chosen = ["--over", request.param, "--folder", str(tmp_path / "run")]
    if request.param == "shared_memory":
        yield chosen
        return
    server = RedisServer(tmp_path)
    try:
        yield [*chosen, "--redis", server.url]
    finally:
        server.kill()


def test_the_learner_learns_from_what_the_actor_collects(options: list[str], tmp_path: Path) -> None:
    with ExitStack() as stack:
        running = {}
        for name in ("learner", "policy_server", "actor"):
            command = [sys.executable, str(FOLDER / f"{name}.py"), *options, "--n-steps", "5120"]
            output = stack.enter_context(open(tmp_path / name, "w"))
            running[name] = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
            stack.callback(running[name].wait, DEADLINE)
            stack.callback(running[name].kill)
        codes = {name: process.wait(DEADLINE) for name, process in running.items()}
        said = {name: (tmp_path / name).read_text() for name in running}
        assert codes == dict.fromkeys(running, 0), said
    assert "ages of the samples: {0: " in said["learner"]
    assert "greedy: mean return" in said["learner"]


def test_the_external_simulator_needs_no_package_but_its_four(tmp_path: Path) -> None:
    """Importing any other dependency of headrace fails in its interpreter."""
    pytest.importorskip("zmq", reason="needs pyzmq")
    for name in ("torch", "gymnasium", "cloudpickle", "typing_extensions", "safetensors", "tqdm"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is not installed')\n")
    server = make_server(InferenceStream("ip", address="tcp://127.0.0.1:0"))
    consumer = make_consumer(SampleStream("ip", address="tcp://127.0.0.1:0"))
    assert isinstance(consumer, IpSampleConsumer)
    root = Path(__file__).parent.parent
    script = root / "examples/streams/external_simulator.py"
    command = [sys.executable, "-W", "error", str(script), server.address, consumer.address, "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(root)])}
    simulator = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        n_left = 2 * 16 * 8
        while n_left and simulator.poll() is None:
            batch = server.poll_requests(timeout=0.1)
            if len(batch):
                action = (batch.requests["observation"].sum(axis=1) < 0).astype(np.int64)
                server.respond(batch, {"action": action}, "push to the middle", 3)
                n_left -= len(batch)
        samples = [consumer.consume(timeout=DEADLINE) for _ in range(2)]
        printed, errors = simulator.communicate(timeout=DEADLINE)
    finally:
        simulator.kill()
        simulator.wait(DEADLINE)
        server.close()
        consumer.close()
    assert (simulator.returncode, errors) == (0, "")
    assert printed.endswith("sample 1: 16 steps of 8 carts, last with version 3 of the policy\n")
    for sample in samples:
        assert isinstance(sample, Frame)
        assert sample.tree["observation"].shape == (16, 8, 2)
        assert sample.version == 3
