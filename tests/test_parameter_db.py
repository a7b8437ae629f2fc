"""The parameter database: one contract for metadata in SQLite and in MongoDB, and its faults with real kills."""

import json
import logging
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headrace.errors import ParameterDBError
from headrace.services import ParameterDBClient
from headrace.services.parameters.contents import packed
from headrace.storage import digest, file_lock
from tests.leftovers import DEADLINE, until
from tests.quick import quick_and_slow
from tests.test_checkpoint import files_of_at_most

pytest.importorskip("safetensors", reason="parameters are stored as safetensors files")

FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def mongo_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str | None]:
    """Address of a server that speaks MongoDB's protocol; None if the packages for it are missing."""
    try:
        import nx_27017  # noqa: F401
        import pymongo
    except ImportError:
        yield None
        return
    folder = tmp_path_factory.mktemp("mongo")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {"--db": "memory", "--host": "127.0.0.1", "-p": port, "--pid-file": folder / "pid"}
    options |= {"--log-file": folder / "log"}
    words = [str(word) for option in options.items() for word in option]
    with (folder / "errors").open("wb") as errors:
        server = subprocess.Popen(
            [sys.executable, "-m", "nx_27017.nx_27017", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )

    def answers() -> bool:
        assert server.poll() is None, (folder / "errors").read_text()
        with socket.socket() as trial:
            return trial.connect_ex(("127.0.0.1", port)) == 0

    try:
        assert until(answers)
        client: Any = pymongo.MongoClient(f"mongodb://127.0.0.1:{port}", serverSelectionTimeoutMS=60_000)
        with client:
            assert client.admin.command("ping")["ok"] == 1
        yield f"mongodb://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait(DEADLINE)


def opened(kind: str, mongo_url: str | None, folder: Path) -> ParameterDBClient:
    if kind == "mongodb" and mongo_url is None:
        pytest.skip("needs pymongo and nx-27017")
    return ParameterDBClient("experiment", "trial", folder, metadata=mongo_url if kind == "mongodb" else "sqlite")


@pytest.fixture(params=["sqlite", "mongodb"])
def queried(request: pytest.FixtureRequest, mongo_url: str | None, tmp_path: Path) -> Iterator[ParameterDBClient]:
    """A client for tests of queries, with each kind of metadata."""
    with opened(request.param, mongo_url, tmp_path) as client:
        yield client


# pymongo's threads need half a second to end, after each test.
@pytest.fixture(params=["sqlite", pytest.param("mongodb", marks=pytest.mark.slow)])
def db(request: pytest.FixtureRequest, mongo_url: str | None, tmp_path: Path) -> Iterator[ParameterDBClient]:
    """A client for the other tests of the contract."""
    with opened(request.param, mongo_url, tmp_path) as client:
        yield client


@pytest.fixture
def files(tmp_path: Path) -> Iterator[ParameterDBClient]:
    """A client for tests of what does not depend on the kind of metadata."""
    with ParameterDBClient("experiment", "trial", tmp_path) as client:
        yield client


def weights(version: int, size: int = 12) -> dict[str, Any]:
    return {"layer": {"w": np.full(size, version, np.float32), "b": np.arange(4)}, "steps": version}


def version_in(tree: dict[str, Any]) -> int:
    """Returns the version that all of a tree belongs to."""
    version: int = tree["steps"]
    assert (tree["layer"]["w"] == version).all()
    return version


def file_of(db: ParameterDBClient, version: int, name: str = "policy") -> Path:
    (path,) = (db.folder / name).glob(f"v{version:012d}-*.safetensors")
    return path


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def run(*functions: Callable[[], None]) -> list[int | None]:
    """Runs functions in forked processes at once; returns their exit codes."""
    processes = [FORK.Process(target=function) for function in functions]
    for process in processes:
        process.start()
    for process in processes:
        process.join(DEADLINE)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join(DEADLINE)
    return codes


# ---- the contract ----


def test_pushed_parameters_come_back(db: ParameterDBClient) -> None:
    pushed = {**weights(7), "empty": {}, "rate": 0.1, "name": "a", "on": True, "none": None, "nan": float("nan")}
    db.push("policy", pushed, 7)
    got = db.get("policy")
    assert [*got] == [*pushed]
    assert {key: got[key] for key in ("steps", "empty", "rate", "name", "on", "none")} == {
        "steps": 7, "empty": {}, "rate": 0.1, "name": "a", "on": True, "none": None,
    }  # fmt: skip
    assert got["nan"] != got["nan"]
    for name in ("w", "b"):
        np.testing.assert_array_equal(got["layer"][name], pushed["layer"][name], strict=True)
    got["layer"]["w"][:] = 0  # it belongs to the caller
    assert version_in(db.get("policy")) == 7


def test_latest_is_the_highest_version_whatever_is_pushed_last(db: ParameterDBClient) -> None:
    for version in (1, 3, 2):
        db.push("policy", weights(version), version)
    assert version_in(db.get("policy")) == version_in(db.get("policy", "latest")) == db.version_of("policy") == 3
    assert version_in(db.get("policy", 2)) == 2
    assert db.list_versions("policy") == [1, 2, 3]
    assert db.list_tags("policy") == {"latest": 3}


def test_missing_versions_are_errors_that_say_what_is_there(db: ParameterDBClient) -> None:
    with pytest.raises(ParameterDBError, match="policy has no version 'latest'; it has no version; push it"):
        db.get("policy")
    db.push("policy", weights(1), 1, tags="first")
    for identifier in (2, "best", {"win_rate": 1.0}):
        with pytest.raises(ParameterDBError, match="it has the versions 1 to 1, with the tags first"):
            db.get("policy", identifier)
    with pytest.raises(ParameterDBError, match="no version"):
        db.version_of("policy", 5)
    for change in (lambda: db.tag("other", "latest", "a"), lambda: db.gc("other", 1), lambda: db.clone("other", "new")):
        with pytest.raises(ParameterDBError, match="other has no version"):
            change()
    assert not (db.folder / "other").exists()


def test_tags_are_set_moved_and_removed(db: ParameterDBClient) -> None:
    db.push("policy", weights(1), 1, tags="best", metadata={"level": 1})
    db.push("policy", weights(2), 2, tags=["a", "b.c"], metadata={"level": 2})
    assert db.list_tags("policy") == {"a": 2, "b.c": 2, "best": 1, "latest": 2}
    assert version_in(db.get("policy", "best")) == 1
    db.tag("policy", 2, "best")
    assert db.version_of("policy", "best") == 2
    db.tag("policy", {"level": 1}, "a")
    assert db.version_of("policy", "a") == 1
    db.untag("policy", "best")
    assert not db.has_tag("policy", "best")
    assert db.has_tag("policy", "a")
    assert db.has_tag("policy", "latest")
    assert not db.has_tag("other", "latest")
    with pytest.raises(ValueError, match="'latest', which is always the highest version"):
        db.tag("policy", 1, "latest")


def test_the_same_push_again_does_nothing_and_another_one_is_an_error(db: ParameterDBClient) -> None:
    db.push("policy", weights(1), 1, metadata={"a": 1})
    db.push("policy", weights(1), 1, metadata={"a": 1})
    for parameters, metadata in ((weights(2), {"a": 1}), (weights(1), {"a": 2})):
        with pytest.raises(ParameterDBError, match="version 1 of policy exists with other parameters or metadata"):
            db.push("policy", parameters, 1, metadata=metadata)
    assert version_in(db.get("policy")) == 1
    assert db.metadata_of("policy") == {"a": 1}


def test_collection_keeps_tagged_versions_the_latest_and_the_newest_others(db: ParameterDBClient) -> None:
    for version in range(10):
        db.push("policy", weights(version), version, tags="kept" if version == 3 else None, metadata={"v": version})
    db.update_metadata("policy", 2, {"v": 20})
    assert db.get("policy", {"v": 5})["steps"] == 5
    assert db.gc("policy", max_untagged_version_count=2) == [0, 1, 2, 4, 5, 6]
    assert db.list_versions("policy") == [3, 7, 8, 9]
    with pytest.raises(ParameterDBError):
        db.get("policy", {"v": 5})
    assert db.gc("policy", 0) == [7, 8]
    assert sorted(path.name[:13] for path in (db.folder / "policy").glob("v*")) == ["v000000000003", "v000000000009"]
    with pytest.raises(ValueError, match="at least one of them, not below 0"):
        db.gc("policy")
    with pytest.raises(ValueError, match="not below 0"):
        db.gc("policy", -1)


def test_collection_by_age_uses_the_clock_of_the_file_system(db: ParameterDBClient) -> None:
    for version in range(5):
        db.push("policy", weights(version), version, tags="old" if version == 0 else None)
    for version in (0, 1, 4):
        about = file_of(db, version).stat()
        os.utime(file_of(db, version), (about.st_atime, about.st_mtime - 7200))
    assert db.gc("policy", ttl=3600) == [1]
    assert db.list_versions("policy") == [0, 2, 3, 4]


def test_clear_removes_a_name_and_nothing_else(db: ParameterDBClient) -> None:
    for name in ("policy", "critic"):
        db.push(name, weights(1), 1, tags="a", metadata={"level": 1})
        db.update_metadata(name, 1, {"level": 2})
    db.clear("policy")
    db.clear("nothing")
    assert db.list_names() == ["critic"]
    assert (db.list_versions("policy"), db.list_tags("policy")) == ([], {})
    db.push("policy", weights(1), 1, metadata={"level": 3})
    assert db.metadata_of("policy") == {"level": 3}
    assert db.version_of("policy", {"level": 3}) == 1


def test_names_trials_and_experiments_are_kept_apart(db: ParameterDBClient, tmp_path: Path) -> None:
    db.push("policy", weights(1), 1, metadata={"a": 1})
    db.push("critic", weights(2), 2, metadata={"a": 1})
    assert db.list_names() == ["critic", "policy"]
    assert db.version_of("policy", {"a": 1}) == 1
    for experiment, trial in (("experiment", "other"), ("other", "trial")):
        with ParameterDBClient(experiment, trial, tmp_path) as other:
            assert other.list_names() == []
            assert other.list_versions("policy") == []


def test_get_waits_for_the_first_version(db: ParameterDBClient) -> None:
    pusher = threading.Timer(0.05, lambda: db.push("policy", weights(4), 4, tags="best", metadata={"a": 1}))
    pusher.start()
    for identifier in ("latest", 4, "best", {"a": 1}):
        assert version_in(db.get("policy", identifier, block=True, timeout=DEADLINE)) == 4
    pusher.join()
    with pytest.raises(ParameterDBError, match=r"no version 5 after 0\.02 seconds"):
        db.get("policy", 5, block=True, timeout=0.02)


def test_clone_copies_versions_tags_and_metadata(db: ParameterDBClient, tmp_path: Path) -> None:
    for version in (1, 2, 3):
        db.push("policy", weights(version), version, tags=f"t{version}", metadata={"level": version})
    db.update_metadata("policy", 2, {"level": 20})
    assert db.clone("policy", "opponent") == [1, 2, 3]
    assert db.list_tags("opponent") == {"t1": 1, "t2": 2, "t3": 3, "latest": 3}
    assert db.version_of("opponent", {"level": 20}) == 2
    assert version_in(db.get("opponent", "t1")) == 1
    with pytest.raises(ParameterDBError, match="opponent has 3 versions; clear it"):
        db.clone("policy", "opponent")
    with ParameterDBClient("experiment", "next", tmp_path) as other:
        assert db.clone("policy", "start", {"level": 20}, into=other) == [2]
        assert other.list_versions("start") == [2]
        assert other.metadata_of("start") == {"level": 20}
        assert other.list_tags("start") == {"latest": 2}


# ---- metadata ----

LEVELS: list[dict[str, Any]] = [
    {"win_rate": 0.2, "kind": "main", "n": 1, "env": {"level": 1}},
    {"win_rate": 0.5, "kind": "main", "n": 2, "env": {"level": 2}},
    {"win_rate": 0.8, "kind": "exploiter", "n": 3, "env": {"level": 2}},
    {"win_rate": 1, "kind": None, "env": {}},
    {},
]


#: Queries of LEVELS, with the versions that match.
QUERIES: list[tuple[dict[str, Any], list[int]]] = [
    ({}, [4, 3, 2, 1, 0]),
    ({"kind": "main"}, [1, 0]),
    ({"kind": {"$eq": "main"}, "n": 2}, [1]),
    ({"kind": "main", "win_rate": {"$gt": 0.2}}, [1]),
    ({"win_rate": {"$gt": 0.2, "$lt": 1}}, [2, 1]),
    ({"win_rate": {"$gte": 0.5, "$lte": 0.8}}, [2, 1]),
    ({"win_rate": 1.0}, [3]),
    ({"n": {"$in": [1, 3, 9]}}, [2, 0]),
    ({"n": {"$nin": [1, 3]}}, [4, 3, 1]),
    ({"n": {"$ne": 1}}, [4, 3, 2, 1]),
    ({"n": {"$exists": True}}, [2, 1, 0]),
    ({"n": {"$exists": False}}, [4, 3]),
    ({"env.level": 2}, [2, 1]),
    ({"env.level": {"$lt": 2}}, [0]),
    ({"kind": {"$gt": "exploiter"}}, [1, 0]),
    ({"win_rate": {"$gt": "0"}}, []),
    ({"missing": 1}, []),
    ({"kind": None}, [4, 3]),
]


def test_queries_find_the_same_versions_in_every_kind_of_metadata(queried: ParameterDBClient) -> None:
    for version, metadata in enumerate(LEVELS):
        queried.push("policy", weights(version), version, metadata={**metadata, "id": version})
    for query, versions in QUERIES:
        found = [5]
        for _ in versions:
            found.append(queried.version_of("policy", {**query, "id": {"$lt": found[-1]}}))
        assert found[1:] == versions, query
        with pytest.raises(ParameterDBError, match="has no version"):
            queried.get("policy", {**query, "id": {"$lt": found[-1]}})


def test_booleans_never_equal_numbers(files: ParameterDBClient) -> None:
    """As in MongoDB; the server of these tests keeps documents in SQLite, where true is 1."""
    for version, value in enumerate((1, True, 1.0, 0, False)):
        files.push("policy", weights(version), version, metadata={"a": value})
    for query, version in (({"a": 1}, 2), ({"a": True}, 1), ({"a": {"$ne": False}}, 3), ({"a": {"$lt": 1}}, 3)):
        assert files.version_of("policy", query) == version


def test_several_matches_give_the_newest_or_a_reproducible_draw(queried: ParameterDBClient) -> None:
    for version in range(4):
        queried.push("policy", weights(version), version, metadata={"pool": version != 1})
    assert version_in(queried.get("policy", {"pool": True})) == 3
    drawn = [version_in(queried.get("policy", {"pool": True}, draw=(5, step))) for step in range(20)]
    assert {*drawn} == {0, 2, 3}
    assert drawn == [version_in(queried.get("policy", {"pool": True}, draw=(5, step))) for step in range(20)]
    assert drawn != [version_in(queried.get("policy", {"pool": True}, draw=(6, step))) for step in range(20)]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"$or": []}, "a query has the key"),
        ({"a..b": 1}, "a query has the key"),
        ({"a": {"$where": "1"}}, r"operator '\$where', expected one of \$eq"),
        ({"a": {"b": 1}}, "operator 'b'"),
        ({"a": {}}, "an empty dict"),
        ({"a": {"$gt": None}}, "expected a number or a string"),
        ({"a": {"$in": 1}}, "expected a list"),
        ({"a": {"$exists": 1}}, "expected True or False"),
        ({"a": float("nan")}, "expected a finite number"),
        ({"a": [1]}, "expected a finite number"),
        (1.5, "expected a whole number"),
        (True, "expected a whole number"),
        (-1, "expected a whole number"),
        ("../x", "identifier is '../x'"),
    ],
    ids=str,
)
def test_wrong_identifiers_are_refused(files: ParameterDBClient, query: Any, words: str) -> None:
    files.push("policy", weights(1), 1, metadata={"a": 1})
    with pytest.raises(ValueError, match=words):
        files.get("policy", query)


def test_pipelines_run_on_mongodb_and_are_refused_elsewhere(
    queried: ParameterDBClient, request: pytest.FixtureRequest
) -> None:
    for version, metadata in enumerate(LEVELS):
        queried.push("policy", weights(version), version, metadata=metadata)
    queried.push("critic", weights(9), 9, metadata={"win_rate": 0.9, "kind": "main"})
    strong: list[dict[str, Any]] = [{"$match": {"metadata.win_rate": {"$gte": 0.5}}}, {"$sample": {"size": 1}}]
    if request.node.callspec.params["queried"] == "sqlite":
        with pytest.raises(ValueError, match="a list of stages is for metadata="):
            queried.get("policy", strong)
        return
    assert queried.get("critic", strong)["steps"] == 9
    assert {version_in(queried.get("policy", strong)) for _ in range(30)} <= {1, 2, 3}
    weakest: list[dict[str, Any]] = [
        {"$match": {"metadata.kind": "main"}},
        {"$sort": {"metadata.win_rate": 1}},
        {"$limit": 1},
    ]
    assert version_in(queried.get("policy", weakest)) == 0
    with pytest.raises(ValueError, match="leaves out the field version"):
        queried.get("policy", [{"$project": {"_id": 0, "name": 1}}])


def test_updates_of_metadata_set_add_and_average(queried: ParameterDBClient) -> None:
    queried.push("policy", weights(1), 1, tags="a", metadata={"kind": "main", "win_rate": 9.0})
    assert queried.update_metadata("policy", 1, {"kind": "old", "games": {"$inc": 2}}) == {
        "kind": "old", "win_rate": 9.0, "games": 2,
    }  # fmt: skip
    results = [1.0, 0.0, 0.0, 1.0, 1.0]
    for result in results:
        got = queried.update_metadata("policy", "a", {"win_rate": {"$mean": np.float32(result)}})
    assert got["win_rate"] == pytest.approx(0.6)
    assert got["win_rate_count"] == 5
    got = queried.update_metadata("policy", "latest", {"win_rate": {"$mean": 0.2, "$weight": 5}})
    assert got["win_rate"] == pytest.approx(0.4)
    assert queried.metadata_of("policy", {"win_rate": {"$lt": 0.5}}) == got
    assert len([*(queried.folder / "policy").glob("*.json")]) == 2
    for changes, words in (
        ({"kind": {"$inc": 1}}, "expected a number"),
        ({"a": {"$push": 1}}, r"the key '\$push'"),
        ({"a": {"$mean": 1, "$weight": 0}}, "expected a number above 0"),
        ({"a": float("inf")}, "expected a finite number"),
        ({"$a": 1}, "the key"),
        (3, "changes is 3, expected a dict"),
    ):
        with pytest.raises(ValueError, match=words):
            queried.update_metadata("policy", 1, changes)  # type: ignore[arg-type]
    assert queried.metadata_of("policy") == got


def test_no_update_of_several_processes_is_lost(queried: ParameterDBClient) -> None:
    queried.push("policy", weights(1), 1)

    def play() -> None:
        for game in range(15):
            queried.update_metadata("policy", 1, {"games": {"$inc": 1}, "win_rate": {"$mean": game % 2}})

    assert run(play, play, play) == [0, 0, 0]
    metadata = queried.metadata_of("policy")
    assert (metadata["games"], metadata["win_rate_count"]) == (45, 45)
    assert metadata["win_rate"] == pytest.approx(21 / 45)
    assert queried.version_of("policy", {"games": 45}) == 1


def test_forked_processes_and_threads_query_at_once(queried: ParameterDBClient) -> None:
    for version, metadata in enumerate(LEVELS):
        queried.push("policy", weights(version), version, metadata=metadata)
    found = []

    def query() -> None:
        for _ in range(5):
            found.append(queried.version_of("policy", {"kind": "main"}))
        assert {*found} == {1}

    threads = [threading.Thread(target=query) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert found == [1] * 15
    assert run(query, query) == [0, 0]
    query()


@pytest.mark.parametrize(
    "metadata", [{"a": [1]}, {"a": float("nan")}, {"a.b": 1}, {"$a": 1}, {1: 1}, {"a": 2**63}, {"a": object()}, [1]]
)
def test_metadata_that_cannot_be_queried_is_refused(files: ParameterDBClient, metadata: Any) -> None:
    with pytest.raises(ValueError, match="metadata"):
        files.push("policy", weights(1), 1, metadata=metadata)
    assert files.list_names() == []


# ---- names and parameters ----


@pytest.mark.parametrize(
    "name", ["", "..", ".", "a/b", "../a", "/etc", ".a", "a\n", "a\0", "a b", "ä", "a.tmp", "-a", "x" * 101, 3]
)
def test_names_that_could_leave_the_folder_are_refused(files: ParameterDBClient, tmp_path: Path, name: Any) -> None:
    for call in (
        lambda: files.push(name, weights(1), 1),
        lambda: files.get(name),
        lambda: files.clear(name),
        lambda: files.push("policy", weights(1), 1, tags=name if isinstance(name, str) else [name]),
        lambda: ParameterDBClient(name, "trial", tmp_path),
        lambda: ParameterDBClient("experiment", name, tmp_path),
    ):
        with pytest.raises(ValueError, match="expected 1 to 100 letters"):
            call()
    assert [*tmp_path.iterdir()] == []


def test_keys_of_parameters_may_contain_anything(files: ParameterDBClient) -> None:
    pushed = {"a.b": np.ones(1), "a": {"b": np.zeros(2), "": np.ones(3)}, "a/b": np.ones(4), "a~1b": np.ones(5), "é": 1}
    files.push("policy", pushed, 1)
    got = files.get("policy")
    assert [len(leaf) for leaf in (got["a.b"], got["a"]["b"], got["a"][""], got["a/b"], got["a~1b"])] == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="__metadata__"):
        files.push("policy", {"__metadata__": np.ones(1)}, 2)


def test_a_state_dict_is_a_plain_safetensors_file(files: ParameterDBClient) -> None:
    import safetensors.numpy

    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    files.push("policy", network.state_dict(), 1)
    arrays = safetensors.numpy.load_file(file_of(files, 1))
    assert arrays.keys() == network.state_dict().keys()
    assert safetensors.numpy.load(files.get("policy", mode="bytes")).keys() == arrays.keys()
    other = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    other.load_state_dict(files.get("policy", mode="torch"))
    for one, two in zip(network.state_dict().values(), other.state_dict().values(), strict=True):
        assert one.dtype == two.dtype
        assert torch.equal(one, two)
    with pytest.raises(ValueError, match="mode is 'pickle', expected one of numpy, torch, bytes"):
        files.get("policy", mode="pickle")


def test_arrays_of_every_kind_keep_their_values(files: ParameterDBClient) -> None:
    values = np.arange(12).reshape(3, 4)
    dtypes = ["bool", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", ">f4", ">i8"]
    pushed: dict[str, Any] = {dtype: values.astype(dtype) for dtype in dtypes}
    pushed |= {"columns": values.T, "strided": values[:, ::2], "scalar": np.float32(3), "none": np.zeros((0, 5))}
    files.push("policy", pushed, 1)
    got = files.get("policy")
    for name, array in pushed.items():
        np.testing.assert_array_equal(got[name], array)
        assert (got[name].shape, got[name].dtype) == (array.shape, array.dtype.newbyteorder("="))
        assert got[name].flags.writeable
    tensors = files.get("policy", mode="torch")
    assert tensors["f2"].dtype == torch.float16
    assert tensors["scalar"].shape == ()


def test_bfloat16_keeps_its_bits_and_is_float32_in_numpy(files: ParameterDBClient) -> None:
    tensors = {"w": torch.randn(5, 3).bfloat16().t(), "s": torch.tensor(1.5).bfloat16()}
    files.push("policy", tensors, 1)
    got = files.get("policy", mode="torch")
    arrays = files.get("policy")
    for name, tensor in tensors.items():
        assert got[name].dtype == torch.bfloat16
        assert torch.equal(got[name], tensor)
        np.testing.assert_array_equal(arrays[name], tensor.float().numpy(), strict=True)


@pytest.mark.parametrize(
    ("leaf", "words"),
    [
        ([1], r"parameters\['a'\]\['b'\] is a list, expected an array"),
        ((np.ones(1),), "is a tuple"),
        (object(), "is a object"),
        (np.array(["x"]), "is an array of <U1, expected numbers"),
        (np.array([None]), "is an array of object"),
        (np.ones(1, complex), "is an array of complex128"),
        (torch.ones(1, dtype=torch.complex64), "a tensor of torch.complex64"),
        ({1: np.ones(1)}, "has the key 1, expected strings"),
    ],
)
def test_what_is_no_data_is_refused(files: ParameterDBClient, leaf: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        files.push("policy", {"a": {"b": leaf}}, 1)
    with pytest.raises(TypeError, match="parameters is a "):
        files.push("policy", leaf if not isinstance(leaf, dict) else [leaf], 1)
    assert files.list_names() == []


def test_clients_are_pickled_closed_and_have_a_default_folder(tmp_path: Path) -> None:
    client = ParameterDBClient("experiment", "trial")
    assert client.folder == Path(os.environ["XDG_STATE_HOME"]) / "headrace/parameters/experiment/trial"
    client = ParameterDBClient("experiment", "trial", tmp_path, timeout=3.0)
    client.push("policy", weights(1), 1)
    with pickle.loads(pickle.dumps(client)) as other:
        assert version_in(other.get("policy")) == 1
    client.close()
    client.close()
    with pytest.raises(ParameterDBError, match="closed"):
        client.get("policy")
    with pytest.raises(ValueError, match='metadata is "redis://…", expected "mongodb://…"'):
        ParameterDBClient("experiment", "trial", tmp_path, metadata="redis://x")


def test_missing_packages_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymongo", None)
    with pytest.raises(ImportError, match=r'^metadata in MongoDB needs pymongo .*pip install "headrace\[mongo\]"$'):
        ParameterDBClient("experiment", "trial", tmp_path, metadata="mongodb://127.0.0.1")
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r'safetensors files .*pip install "headrace\[streams\]"$'):
        ParameterDBClient("experiment", "trial", tmp_path)


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
import numpy as np
from headrace.services import ParameterDBClient
with ParameterDBClient("experiment", "trial", sys.argv[1]) as db:
    db.push("policy", {"w": np.ones(3)}, 1, metadata={"a": 1})
    assert db.get("policy", {"a": 1})["w"].sum() == 3
"""


def test_an_interpreter_without_torch_pushes_and_gets(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path)],
        timeout=DEADLINE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


# ---- damaged files ----


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    caplog.clear()
    return found


def test_no_flipped_bit_and_no_cut_is_ever_silent(files: ParameterDBClient, caplog: pytest.LogCaptureFixture) -> None:
    """Every damage of the newest version gives the one before, with a warning; asked for by number, it is an error."""
    for version in (1, 2):
        files.push("policy", weights(version), version, tags="two", metadata={"a": version})
    path = file_of(files, 2)
    whole = path.read_bytes()
    draws = np.random.default_rng(0)
    bits = draws.choice(8 * len(whole), 300, replace=False)
    for damage in [*bits, *(-length for length in range(0, len(whole), len(whole) // 20))]:
        if damage > 0:
            flip(path, int(damage))
        else:
            path.write_bytes(whole[:-damage])
        assert version_in(files.get("policy")) == 1
        (said,) = warnings_of(caplog)
        assert str(path) in said
        assert said.endswith("is damaged: its checksum does not match; version 1 is used instead")
        for identifier in (2, "two"):
            with pytest.raises(ParameterDBError, match="its checksum does not match; push it again"):
                files.get("policy", identifier)
        path.write_bytes(whole)
    assert version_in(files.get("policy")) == 2


def test_a_damaged_version_is_passed_by_queries_and_can_be_pushed_again(
    db: ParameterDBClient, caplog: pytest.LogCaptureFixture
) -> None:
    for version in (1, 2):
        db.push("policy", weights(version), version, metadata={"a": version})
    db.update_metadata("policy", 2, {"b": 1})
    file_of(db, 2).write_bytes(b"")
    assert version_in(db.get("policy", {"a": {"$gt": 0}})) == 1
    assert any("version 1 is used instead" in said for said in warnings_of(caplog))
    db.push("policy", weights(2), 2, metadata={"a": 5})  # other contents than those that were lost
    assert any("it is written anew" in said for said in warnings_of(caplog))
    assert version_in(db.get("policy")) == 2
    assert len([*(db.folder / "policy").glob("*.safetensors")]) == 2


def test_damaged_versions_are_left_out_of_a_copy(files: ParameterDBClient, caplog: pytest.LogCaptureFixture) -> None:
    for version in (1, 2, 3):
        files.push("policy", weights(version), version, tags=f"t{version}")
    flip(file_of(files, 3), 900)
    assert files.clone("policy", "copy") == [1, 2]
    (said,) = warnings_of(caplog)
    assert said.endswith("its checksum does not match; version 3 of policy is left out of the copy")
    assert files.list_tags("copy") == {"t1": 1, "t2": 2, "latest": 2}


def test_no_query_finds_a_version_by_damaged_metadata(
    files: ParameterDBClient, caplog: pytest.LogCaptureFixture
) -> None:
    for version in (1, 2):
        files.push("policy", weights(version), version, metadata={"a": version})
    path = file_of(files, 2)
    path.write_bytes(path.read_bytes().replace(b'{\\"a\\":2}', b'{\\"a\\":7}'))
    with pytest.raises(ParameterDBError, match="has no version"):
        files.get("policy", {"a": 7})
    assert "the checksum of its header does not match; no query finds it" in "".join(warnings_of(caplog))
    assert files.version_of("policy", {"a": {"$gt": 0}}) == 1


def test_if_all_versions_are_damaged_get_gives_up(files: ParameterDBClient) -> None:
    for version in range(3):
        files.push("policy", weights(version), version)
        flip(file_of(files, version), 800)
    with pytest.raises(ParameterDBError, match=r"damaged.*damaged.*damaged.*push it again, or get another version"):
        files.get("policy", block=True, timeout=DEADLINE)


def test_damaged_tags_and_metadata_are_never_believed(
    files: ParameterDBClient, caplog: pytest.LogCaptureFixture
) -> None:
    files.push("policy", weights(1), 1, tags="best", metadata={"a": 0})
    files.push("policy", weights(2), 2)
    for value in (1, 2, 3):
        files.update_metadata("policy", 1, {"a": value})
    tag = files.folder / "policy" / "tag.best"
    newest = max((files.folder / "policy").glob("*.json"))
    for path in (tag, newest):
        whole = path.read_bytes()
        for bit in range(0, 8 * len(whole), 7):
            flip(path, bit)
            if path == tag:
                with pytest.raises(ParameterDBError, match=r"tag\.best is damaged"):
                    files.get("policy", "best")
            else:
                assert files.metadata_of("policy", 1) == {"a": 2}
                (said,) = warnings_of(caplog)
                assert "the metadata before this change is used instead" in said
            path.write_bytes(whole)
    flip(tag, 8)
    with pytest.raises(ParameterDBError, match="damaged"):  # it might be the tag of what would be removed
        files.gc("policy", 0)
    files.tag("policy", 1, "best")
    assert files.version_of("policy", "best") == 1


def forged(text: str) -> bytes:
    """Returns a safetensors file with a header that says anything, and right checksums."""
    import safetensors.numpy

    entry = digest(text.encode()).hex() + text
    content: bytes = safetensors.numpy.save({"w": np.ones(1)}, metadata={"headrace": entry})
    return content


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch evil",)


def header(parameters: Any, metadata: Any = None, number: int = 1) -> str:
    return json.dumps({"format": number, "parameters": parameters, "metadata": metadata or {}})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08",
        pickle.dumps(Evil()),
        (2**63).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
        "not JSON",
        header("array"),
        header({"w": "array", "v": "array"}),
        header({}),
        header({"w": "pickle"}),
        header({"w": "bfloat16"}),
        header({"w": ["array", 1]}),
        header({"w": "array"}, number=2),
        header({"w": "array"}, {"a": [1]}),
        header({"w": "array"}).replace('"array"', '{"a":' * 3000 + "1" + "}" * 3000),
        packed({"w": np.ones(1)}, {})[:-1] + b"xx",
    ],
    ids=range(17),
)
def test_forged_files_with_right_names_are_refused(
    files: ParameterDBClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | str
) -> None:
    monkeypatch.chdir(tmp_path)
    files.push("policy", weights(1), 1)
    if isinstance(content, str):
        content = forged(content)
    (files.folder / "policy" / f"v{2:012d}-{digest(content).hex()}.safetensors").write_bytes(content)
    with pytest.raises(ParameterDBError, match="is damaged: "):
        files.get("policy", 2)
    assert version_in(files.get("policy")) == 1
    assert not (tmp_path / "evil").exists()


def test_what_is_no_file_is_not_read(files: ParameterDBClient) -> None:
    files.push("policy", weights(1), 1)
    os.mkfifo(files.folder / "policy" / f"v{2:012d}-{'0' * 64}.safetensors")
    with pytest.raises(ParameterDBError, match="is not a file"):
        files.get("policy", 2)
    assert version_in(files.get("policy")) == 1
    with pytest.raises(ParameterDBError):
        files.get("policy", {"a": 1})


# ---- the index ----


def test_a_missing_or_damaged_index_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ParameterDBClient("experiment", "trial", tmp_path) as db:
        for version, metadata in enumerate(LEVELS):
            db.push("policy", weights(version), version, metadata=metadata)
        index = db.folder / ".index.sqlite"
        assert db.version_of("policy", {"kind": "main"}) == 1
        whole = index.read_bytes()
        index.unlink()
        assert db.version_of("policy", {"kind": "main"}) == 1
        assert warnings_of(caplog) == []
        for damage in (b"", b"no database", whole[: len(whole) // 2], whole[:100] + b"x" * (len(whole) - 100)):
            index.write_bytes(damage)
            assert db.version_of("policy", {"kind": "main"}) == 1
        assert any("is damaged" in said and "made anew" in said for said in warnings_of(caplog))
        place = whole.index(b'"win_rate": 0.5')
        index.write_bytes(whole[:place] + b'"win_rate": 0.1' + whole[place + 15 :])
        assert db.version_of("policy", {"win_rate": 0.5}) == 1
        assert "does not have its checksum" in "".join(warnings_of(caplog))


def test_an_index_in_use_for_too_long_is_an_error_and_files_can_still_be_read(tmp_path: Path) -> None:
    import sqlite3

    with ParameterDBClient("experiment", "trial", tmp_path, timeout=0.05) as db:
        db.push("policy", weights(1), 1, metadata={"a": 1})
        db.get("policy", {"a": 1})
        other = sqlite3.connect(db.folder / ".index.sqlite", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ParameterDBError, match=r"index\.sqlite cannot be used \(database is locked\)"):
            db.get("policy", {"a": 1})
        assert version_in(db.get("policy")) == 1
        other.close()
        assert version_in(db.get("policy", {"a": 1})) == 1


def test_without_its_server_only_queries_fail(tmp_path: Path) -> None:
    pytest.importorskip("pymongo")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"mongodb://user:secret@127.0.0.1:{nobody.getsockname()[1]}/other"
        with ParameterDBClient("experiment", "trial", tmp_path, metadata=url, timeout=0.2) as db:
            db.push("policy", weights(1), 1, tags="a", metadata={"a": 1})
            assert version_in(db.get("policy", "a")) == 1
            with pytest.raises(
                ParameterDBError, match=r"MongoDB at mongodb://127\.0\.0\.1:\d+/other did not answer"
            ) as caught:
                db.get("policy", {"a": 1})
            assert "secret" not in str(caught.value)


# ---- writers that die, race, or find no space ----

POINTS = ["contents are not on disk", "no name", "named", "no tag"]


@pytest.mark.parametrize("point", POINTS)
def test_a_writer_killed_in_the_middle_of_a_push_leaves_a_whole_version(files: ParameterDBClient, point: str) -> None:
    files.push("policy", weights(1), 1, tags="best")
    replace = os.replace
    n_named = 0

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def dying_replace(source: str, target: Path) -> None:
        nonlocal n_named
        n_named += 1
        if n_named == (2 if point == "no tag" else 1):
            if point == "named":
                replace(source, target)
            die()
        replace(source, target)

    def push() -> None:
        os.replace = dying_replace  # type: ignore[assignment]
        if point == "contents are not on disk":
            os.fsync = die  # type: ignore[assignment]
        files.push("policy", weights(2), 2, tags="best")

    assert run(push) == [-signal.SIGKILL]
    there = 2 if point in ("named", "no tag") else 1
    assert version_in(files.get("policy")) == there
    assert version_in(files.get("policy", "best")) == 1
    assert len([*(files.folder / "policy").glob("*.tmp")]) == (0 if point == "named" else 1)
    files.push("policy", weights(2), 2, tags="best")  # the lock and the version are free
    assert version_in(files.get("policy", "best")) == 2
    assert not [*(files.folder / "policy").glob("*.tmp")]


def reached(db: ParameterDBClient, version: int) -> Callable[[], bool]:
    return lambda: max(db.list_versions("policy"), default=0) >= version


@pytest.mark.parametrize("n", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_writers_killed_at_any_time_leave_only_whole_versions(files: ParameterDBClient, n: int) -> None:
    first = 1

    def push() -> None:
        for version in range(first, first + 10_000):
            files.push("policy", weights(version, 2000), version, metadata={"v": version})
            files.gc("policy", 3)

    for _ in range(n):
        process = FORK.Process(target=push)
        process.start()
        assert until(reached(files, first + 2))
        process.kill()
        process.join(DEADLINE)
        first = version_in(files.get("policy")) + 1
        assert files.version_of("policy", {"v": first - 1}) == first - 1
    files.push("policy", weights(first), first)
    assert not [*(files.folder / "policy").glob("*.tmp")]


def test_killed_updates_of_metadata_happened_or_did_not(files: ParameterDBClient) -> None:
    files.push("policy", weights(1), 1, metadata={"a": 0})
    for at, value in (("fsync", 0), ("replace", 0), ("unlink", 3)):
        files.clear("policy")
        files.push("policy", weights(1), 1, metadata={"a": 0})

        def update(at: str = at) -> None:
            if at == "unlink":
                for value in (1, 2):
                    files.update_metadata("policy", 1, {"a": value})
            unlink = os.unlink

            def die(path: object, *_: object) -> None:
                if at != "unlink" or str(path).endswith(".json"):
                    os.kill(os.getpid(), signal.SIGKILL)
                unlink(str(path))

            setattr(os, at, die)
            files.update_metadata("policy", 1, {"a": 3})

        assert run(update) == [-signal.SIGKILL]
        assert files.metadata_of("policy") == {"a": value}
        assert files.version_of("policy", {"a": value}) == 1
        assert files.update_metadata("policy", 1, {"b": 1}) == {"a": value, "b": 1}
        assert len([*(files.folder / "policy").glob("v*.json")]) <= 2


def test_a_full_disk_leaves_the_database_as_it_was(files: ParameterDBClient) -> None:
    files.push("policy", weights(1), 1, tags="best")
    before = {path.name: path.read_bytes() for path in (files.folder / "policy").iterdir()}
    needed = len(packed(weights(2, 5000), {}))
    for size in np.linspace(0, needed - 1, 12).astype(int):
        with files_of_at_most(int(size)), pytest.raises(OSError, match="was not written") as caught:
            files.push("policy", weights(2, 5000), 2, tags="best")
        assert f"it needs {needed:,} bytes" in str(caught.value)
        assert "are free there" in str(caught.value)
        assert {path.name: path.read_bytes() for path in (files.folder / "policy").iterdir()} == before
    with files_of_at_most(10):
        with pytest.raises(OSError, match="are free there"):
            files.update_metadata("policy", 1, {"a": 1})
        assert files.metadata_of("policy") == {}
    files.push("policy", weights(2, 5000), 2, tags="best")
    assert version_in(files.get("policy", "best")) == 2


@pytest.mark.parametrize("same", [True, False], ids=["same", "different"])
def test_of_several_writers_of_one_version_one_wins(files: ParameterDBClient, same: bool) -> None:
    def pusher(number: int) -> Callable[[], None]:
        def push() -> None:
            try:
                files.push("policy", weights(0 if same else number, 20_000), 1)
            except ParameterDBError as error:
                os._exit(7 if "exists with other parameters" in str(error) else 1)
            os._exit(0)

        return push

    codes = run(*(pusher(number) for number in range(4)))
    assert sorted(codes, key=str) == ([0, 0, 0, 0] if same else [0, 7, 7, 7])
    assert files.list_versions("policy") == [1]
    assert version_in(files.get("policy")) in range(4)


@pytest.mark.parametrize("n", quick_and_slow([(60,), (1000,)], quick=[(60,)]))
def test_readers_never_see_a_torn_version_or_an_earlier_latest(files: ParameterDBClient, n: int) -> None:
    """Two trainers push, one of them collects, while this process reads."""

    def trainer(first: int) -> Callable[[], None]:
        def train() -> None:
            for version in range(first, n + 1, 2):
                files.push("policy", weights(version, 5000), version, metadata={"odd": version % 2})
                if version % 10 == 1:
                    files.gc("policy", 2)

        return train

    processes = [FORK.Process(target=trainer(first)) for first in (1, 2)]
    for process in processes:
        process.start()
    seen = [version_in(files.get("policy", block=True, timeout=DEADLINE))]
    while any(process.is_alive() for process in processes):
        entry = files.entry("policy")
        assert version_in(entry.parameters) == entry.version
        assert entry.metadata == {"odd": entry.version % 2}
        seen.append(entry.version)
    assert seen == sorted(seen)
    for process in processes:
        process.join(DEADLINE)
    assert [process.exitcode for process in processes] == [0, 0]
    assert version_in(files.get("policy")) == n


def test_a_writer_that_hangs_is_an_error_for_the_next_one_and_none_for_readers(tmp_path: Path) -> None:
    with ParameterDBClient("experiment", "trial", tmp_path, timeout=0.03) as db:
        db.push("policy", weights(1), 1)
        with file_lock(db.folder / "policy" / "lock", 1.0, AssertionError):
            with pytest.raises(
                ParameterDBError, match=rf"process {os.getpid()} has been .* .*policy for 0\.03 seconds"
            ):
                db.push("policy", weights(2), 2)
            assert version_in(db.get("policy")) == 1
        db.push("policy", weights(2), 2)


def test_versions_that_are_removed_while_they_are_read_give_a_newer_one(
    files: ParameterDBClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.push("policy", weights(1), 1)
    read_bytes = Path.read_bytes

    def removed_first(path: Path) -> bytes:
        if path.name.startswith("v") and files.list_versions("policy") == [1]:
            files.push("policy", weights(2), 2)
            files.gc("policy", 0)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", removed_first)
    assert version_in(files.get("policy")) == 2
