"""What is asked of Ray, and what is said when it is missing, too old, or cannot be reached; without Ray."""

import socket
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from headrace.cli.main import main
from headrace.errors import SamplerError
from headrace.processes.causes import cause_of_actor_death
from headrace.processes.ray_actor import nbytes, packed, unpacked
from headrace.processes.ray_session import RayActors, RayCluster, RaySession, loaded_ray
from headrace.samplers import RayBatchSampler
from tests.walk import Walk


def ray_of(version: str = "2.60.0", **functions: Any) -> ModuleType:
    """Returns a module in Ray's place."""
    module = ModuleType("ray")
    module.__dict__.update({"__version__": version, "is_initialized": lambda: False, **functions})
    return module


def test_absent_ray_is_one_sentence_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r'^Ray is not installed \(.*\); pip install "headrace\[ray\]"$'):
        RayBatchSampler(Walk, batch_T=4, batch_B=2)


def test_absent_ray_is_one_line_on_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["train", "--sampler", "ray", "--env", "CartPole-v1", "--n-steps", "100"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith('pip install "headrace[ray]"')


@pytest.mark.parametrize(
    ("version", "old"), [("2.9.3", True), ("2.60.0", False), ("2.100.1", False), ("3.0.0rc1", False)]
)
def test_old_ray_is_refused(version: str, old: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", ray_of(version))
    if old:
        with pytest.raises(ImportError, match=rf"^Ray {version} is too old: 2.60 or later is needed; pip install -U"):
            loaded_ray()
    else:
        assert loaded_ray().__version__ == version


def test_cluster_that_cannot_be_reached_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", ray_of(init=lambda **_: pytest.fail("Ray would try for minutes")))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(
        SamplerError, match=rf"^the Ray cluster 127.0.0.1:{port} cannot be reached \(Connection.*status"
    ):
        RaySession(RayCluster(address=f"127.0.0.1:{port}"))


def test_address_of_the_environment_variable_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(address: str, logging_level: str) -> None:
        raise ConnectionError(f"nothing at {address}")

    monkeypatch.setitem(sys.modules, "ray", ray_of(init=init))
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(
        SamplerError, match=r"^the Ray cluster auto could not be joined: ConnectionError: nothing at auto"
    ):
        RaySession(RayCluster())


def test_borrowed_session_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    context = SimpleNamespace(gcs_address="here:1", get_job_id=lambda: "1")
    functions: dict[str, Any] = {"is_initialized": lambda: True, "get_runtime_context": lambda: context}
    monkeypatch.setitem(sys.modules, "ray", ray_of(**functions, shutdown=lambda: pytest.fail("it was borrowed")))
    session = RaySession(RayCluster())
    assert session.borrowed
    assert session.is_open
    context.get_job_id = lambda: "2"  # the program ended it, and started another
    assert not session.is_open
    with pytest.raises(SamplerError, match=r"the program called ray.shutdown\(\)"):
        session.require_open()
    session.close()
    session.close()


@pytest.mark.parametrize(
    ("cls", "arguments", "kind", "message"),
    [
        (RayCluster, {"address": 5}, TypeError, "address must be"),
        (RayCluster, {"address": ""}, TypeError, "address must be"),
        (RayCluster, {"address": "head"}, ValueError, 'address must be "host:port" or "auto", got'),
        (RayCluster, {"address": "ray://head:10001"}, ValueError, "is of a Ray client"),
        (RayCluster, {"num_cpus": 0}, ValueError, "num_cpus must be at least 1"),
        (RayCluster, {"num_cpus": 1.5}, TypeError, "num_cpus must be a whole number"),
        (RayCluster, {"object_store_memory": 1000}, ValueError, "object_store_memory must be at least"),
        (RayCluster, {"address": "head:6379", "num_cpus": 2}, ValueError, "num_cpus is of a new Ray"),
        (RayActors, {"num_cpus": -1}, ValueError, "num_cpus must be a fraction of one or a whole number"),
        (RayActors, {"num_cpus": 1.5}, ValueError, "num_cpus must be a fraction of one or a whole number"),
        (RayActors, {"num_cpus": float("nan")}, ValueError, "num_cpus must be a fraction"),
        (RayActors, {"num_gpus": "1"}, TypeError, "num_gpus must be a number"),
        (RayActors, {"num_gpus": True}, TypeError, "num_gpus must be a number"),
        (RayActors, {"resources": ["a"]}, TypeError, "resources must be a dict"),
        (RayActors, {"resources": {"a": None}}, TypeError, r"resources\['a'\] must be a number"),
        (RayActors, {"resources": {"CPU": 1}}, ValueError, "use num_cpus and num_gpus"),
        (RayActors, {"placement": "spread"}, ValueError, "placement must be 'DEFAULT' or 'SPREAD'"),
        (RayActors, {"max_restarts": -1}, ValueError, "max_restarts must be at least 0"),
        (RayActors, {"max_restarts": 1.0}, TypeError, "max_restarts must be a whole number"),
        (
            RayBatchSampler,
            {"EnvCls": Walk, "batch_T": 4, "batch_B": 2, "cluster": "auto"},
            TypeError,
            "cluster must be a RayCluster",
        ),
        (
            RayBatchSampler,
            {"EnvCls": Walk, "batch_T": 4, "batch_B": 2, "actors": 2},
            TypeError,
            "actors must be a RayActors",
        ),
        (RayBatchSampler, {"EnvCls": Walk, "batch_T": 4, "batch_B": 0}, ValueError, "batch_B must be at least 1"),
        (
            RayBatchSampler,
            {"EnvCls": Walk, "batch_T": 4, "batch_B": 2, "device": "cuda"},
            ValueError,
            "acts in its workers",
        ),
        (
            RayBatchSampler,
            {"EnvCls": Walk, "batch_T": 4, "batch_B": 2, "gpus": 1},
            TypeError,
            "the settings are .*cluster, actors",
        ),
    ],
)
def test_wrong_settings_are_named(
    cls: Any, arguments: dict[str, Any], kind: type[BaseException], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", ray_of())
    with pytest.raises(kind, match=message):
        cls(**arguments)


def test_message_arrives_with_its_arrays_which_are_not_copied_if_they_are_large() -> None:
    small, large = np.arange(5), np.arange(10_000)
    parcel = packed({"small": small, "large": large, "text": "t"})
    assert [array.nbytes for array in parcel[1]] == [large.nbytes]
    assert np.shares_memory(parcel[1][0], large)
    assert large.nbytes < nbytes(parcel) < large.nbytes + 1000
    found = unpacked(parcel)
    np.testing.assert_array_equal(found["small"], small)
    np.testing.assert_array_equal(found["large"], large)
    assert np.shares_memory(found["large"], large)
    assert not np.shares_memory(found["small"], small)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("The actor is dead because it was killed by `ray.kill`.", "it was killed with ray.kill()"),
        ("The actor is dead because its node has died. Node Id: 1", "its machine left the cluster"),
        ("The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR", "its process ended"),
        (
            "The actor died because of an error raised in its creation task, ...\nKeyError: 1",
            "it could not be made: Key",
        ),
        ("something\n  else", "something else"),
    ],
)
def test_reason_of_an_actors_death_is_one_sentence(text: str, cause: str) -> None:
    assert cause_of_actor_death(RuntimeError(text)).startswith(cause)
