"""The actor, the policy server and the learner of `examples/streams`, as a user starts them in three terminals."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

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
