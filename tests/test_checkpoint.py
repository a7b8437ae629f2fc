"""Checkpoint files: damage, other files, malicious files, full disks, crashes, and two writers at once."""

import builtins
import errno
import fcntl
import functools
import importlib
import io
import logging
import multiprocessing
import operator
import os
import pickle
import pwd
import random
import resource
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from headrace.agents.pg import CategoricalPgAgent
from headrace.algos.pg import A2C
from headrace.checkpoints import signing
from headrace.checkpoints.file import FORMAT, unsealed
from headrace.checkpoints.lock import locked
from headrace.checkpoints.store import CheckpointStore
from headrace.errors import CheckpointError
from headrace.runners import Callback, MinibatchRl, RunFolder, RunnerConfig, load_checkpoint, save_checkpoint
from headrace.runners.logging import Logger
from headrace.samplers import SerialSampler
from headrace.samplers.collection.snapshot import SamplerState
from headrace.storage import write_whole
from tests.leftovers import DEADLINE, until
from tests.walk import Walk

pytestmark = pytest.mark.usefixtures("copies_tried_here")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a checkpoint written by a runner."""
    return trained(tmp_path_factory.mktemp("real")).read_bytes()


def trained(log_dir: Path, callbacks: Any = (), n_itr: int = 3, resume_from: Path | None = None) -> Path:
    MinibatchRl(
        A2C(),
        CategoricalPgAgent(model_kwargs={"hidden_sizes": (16, 16)}),
        SerialSampler(Walk, batch_T=8, batch_B=2),
        RunnerConfig(n_steps=16 * n_itr, seed=0, log_interval_steps=16),
        log_dir=log_dir,
        logger=Logger(),
        callbacks=callbacks,
        resume_from=resume_from,
    ).train()
    return log_dir / "checkpoint.pt"


def sealed(payload: bytes, number: int = FORMAT) -> bytes:
    """Returns a checkpoint file with any payload, in the present format."""
    header = b"headrace checkpoint %d\n" % number
    return header + sha256(header + payload).digest() + payload


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path)
    assert str(path) in str(error.value)
    return str(error.value)


def test_no_flipped_bit_is_accepted(real: bytes, tmp_path: Path) -> None:
    chance = random.Random(0)
    places = [*range(60), *(chance.randrange(len(real)) for _ in range(240))]  # the header and the digest, all of them
    for place in places:
        content = bytearray(real)
        content[place] ^= 1 << chance.randrange(8)
        refused(tmp_path / "c.pt", bytes(content))


def test_no_truncated_file_is_accepted(real: bytes, tmp_path: Path) -> None:
    chance = random.Random(0)
    for length in [*range(60), *(chance.randrange(len(real)) for _ in range(139)), len(real) - 1]:
        refused(tmp_path / "c.pt", real[:length])


def strangers() -> Iterator[bytes]:
    """Yields fifty files of other formats."""
    buffers = [io.BytesIO() for _ in range(5)]
    torch.save({"itr": 3}, buffers[0])
    torch.save({"itr": 3}, buffers[1], _use_new_zipfile_serialization=False)
    np.savez(buffers[2], weights=np.zeros(3))
    np.save(buffers[3], np.zeros(3))
    with zipfile.ZipFile(buffers[4], "w") as archive:
        archive.writestr("data.pkl", b"x")
    yield from (buffer.getvalue() for buffer in buffers)
    yield from (pickle.dumps({"agent": 1}, protocol) for protocol in range(6))
    yield from (b"", b"\n", b"{}", b"\x89PNG\r\n\x1a\n", b"%PDF-1.7", b"\x7fELF", b"SQLite format 3\x00")
    yield from (b"headrace", b"headrace checkpoint", b"headrace checkpoint \n", b"headrace checkpoint -1\n")
    yield from (b"headrace checkpoint 02\n", b"headrace checkpoint 2 \n", b" headrace checkpoint 2\n", b"\xffheadrace")
    chance = random.Random(0)
    yield from (chance.randbytes(1 << size) for size in range(16))
    yield from (sealed(chance.randbytes(1 << size)) for size in range(6))
    for value in ([1], 3):
        buffer = io.BytesIO()
        torch.save(value, buffer)
        yield sealed(buffer.getvalue())


def test_files_of_other_formats_are_refused(tmp_path: Path) -> None:
    files = list(strangers())
    assert len(files) == 50
    for content in files:
        refused(tmp_path / "c.pt", content)


def test_checkpoint_formats_are_distinguished(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"itr": 3}, buffer)
    path = tmp_path / "c.pt"
    path.write_bytes(sealed(buffer.getvalue()))
    assert load_checkpoint(path) == {"itr": 3}
    assert "upgrade headrace" in refused(path, sealed(buffer.getvalue(), 3))
    assert "upgrade headrace" in refused(path, sealed(b"whatever follows", 17))
    assert "format 1" in refused(path, sealed(buffer.getvalue(), 1))
    for number in (b"1", b"3", b"17"):  # a number that nobody wrote is damage, whichever it is
        content = sealed(buffer.getvalue()).replace(b"checkpoint 2", b"checkpoint " + number)
        assert "damaged: its checksum does not match" in refused(path, content)


class Does:
    """Unpickling it calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


def malice(mark: Path) -> list[Any]:
    """Returns pickles that make the directory `mark` when they are loaded."""
    code, shell = f"import os; os.mkdir({str(mark)!r})", f"mkdir {mark}"
    one_line = f"__import__('os').mkdir({str(mark)!r})"
    return [
        Does(os.mkdir, str(mark)),
        Does(os.makedirs, str(mark)),
        Does(os.system, shell),
        Does(os.popen, shell),
        Does(builtins.exec, code),
        Does(builtins.eval, one_line),
        Does(subprocess.call, ["mkdir", str(mark)]),
        Does(subprocess.check_output, ["mkdir", str(mark)]),
        Does(Path.mkdir, mark),
        Does(shutil.copytree, "/proc/self/task", str(mark)),
        Does(functools.partial(os.mkdir, str(mark))),
        Does(operator.methodcaller("mkdir"), mark),
        Does(map, os.mkdir, [str(mark)]),
        Does(torch.load, str(mark)),
        Does(torch.save, 1, str(mark)),
        Does(np.save, str(mark), 1),
        Does(importlib.import_module, "antigravity"),
        Does(shutil.rmtree, str(mark.parent)),
        Does(pickle.loads, pickle.dumps(Does(os.mkdir, str(mark)))),
        Does(builtins.open, str(mark), "w"),
    ]


def test_loading_a_checkpoint_runs_no_code(tmp_path: Path, real: bytes) -> None:
    (tmp_path / "c.pt").write_bytes(real)
    state = load_checkpoint(tmp_path / "c.pt")
    evils = malice(tmp_path / "mark")
    assert len(evils) == 20
    for evil in evils:
        for content in (evil, {**state, "agent": evil}, {"itr": [evil]}):
            for zipped in (True, False):
                buffer = io.BytesIO()
                torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
                message = refused(tmp_path / "evil.pt", sealed(buffer.getvalue()))
                assert "it was not loaded" in message
                assert "\n" not in message
                assert "weights_only" not in message, "torch's advice is to run it"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.pt", "evil.pt"]
    assert "antigravity" not in sys.modules


# ---- disks ----


@contextmanager
def files_of_at_most(n_bytes: int) -> Iterator[None]:
    """Limits the size of files, which fails like a full disk, but with EFBIG instead of ENOSPC."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def store_of(folder: Path, itr: int, weights: int = 4000) -> CheckpointStore:
    """A store with a checkpoint of `itr`, saved by itself."""
    store = CheckpointStore(folder)
    with store.opened():
        save(store, itr, weights)
    return store


def save(store: CheckpointStore, itr: int, weights: int = 4000) -> None:
    environments = {0: b"environment %d" % itr}
    store.save(
        {"itr": itr, "weights": torch.full((weights,), float(itr))}, SamplerState(itr, 0, itr, 0, train=environments)
    )


def test_full_disk_at_any_size_keeps_the_earlier_files(tmp_path: Path) -> None:
    store = store_of(tmp_path, 1)
    save(store, 2)
    whole = store.newest.stat().st_size
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for size in np.linspace(1000, whole - 1, 20).astype(int):
        with files_of_at_most(int(size)), pytest.raises(OSError, match="was not written") as error:
            save(store, 3)
        text = str(error.value)
        assert str(store.newest) in text
        assert f"it needs {whole:,} bytes" in text
        assert "are free there; the earlier file is unchanged" in text
        now = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        assert {name: now[name] for name in before} == before
        assert now.keys() - before.keys() <= {"environments-3.pkl"}
    save(store, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-previous.pt",
        "checkpoint.pt",
        "environments-2.pkl",
        "environments-4.pkl",
    ]


def test_unwritable_folder_is_a_one_sentence_error(tmp_path: Path) -> None:
    for folder in (tmp_path / "vanished", Path("/proc/self"), Path("/dev/null")):
        with pytest.raises(OSError, match=r"c\.pt was not written \(.*\): it needs 3 bytes, .*unchanged$"):
            write_whole(folder / "c.pt", [b"abc"])


def test_file_permissions_follow_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    before = os.umask(0o027)
    try:
        write_whole(path, [b"abc"])
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


class FillsTheDisk(Callback):
    """From one batch to another, files cannot grow."""

    def __init__(self, first: int, last: int) -> None:
        self._first, self._last, self._limit = first, last, resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_optimize(self, runner: Any, itr: int, opt_info: Any) -> None:
        if itr == self._first:
            resource.setrlimit(resource.RLIMIT_FSIZE, (8000, self._limit[1]))
        if itr == self._last:
            resource.setrlimit(resource.RLIMIT_FSIZE, self._limit)

    def on_end(self, runner: Any, error: BaseException | None) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limit)


def test_training_continues_after_a_temporarily_full_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        path = trained(tmp_path, [FillsTheDisk(1, 3)], n_itr=6)
    warnings = [record.getMessage() for record in caplog.records if "continues without it" in record.getMessage()]
    assert len(warnings) == 2
    assert str(path) in warnings[0]
    assert load_checkpoint(path)["itr"] == 6


def test_failure_to_write_the_last_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="was not written"):
        trained(tmp_path, [FillsTheDisk(4, 9)], n_itr=6)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["itr"] == 4
    assert not list(tmp_path.glob("*.tmp"))
    assert not (tmp_path / "lock").exists()


# ---- crashes ----


def crashes(folder: Path, itr: int, operation: int) -> None:
    """Saves, and leaves the program, as kill −9 would, before the given operation on files; exit status 7 if so."""
    store = CheckpointStore(folder)
    count = 0

    def before(event: str, *_: Any) -> None:
        nonlocal count
        if event in ("open", "os.link", "os.rename", "os.remove", "os.mkdir", "os.truncate", "sync"):
            count += 1
            if count == operation:
                os._exit(7)

    fsync = os.fsync
    with store.opened():
        if store.newest.exists():
            store.sampler_state(*store.found()[1:])
        sys.addaudithook(before)
        os.fsync = lambda descriptor: (before("sync"), fsync(descriptor))[1]  # type: ignore[assignment,func-returns-value]
        save(store, itr)
    os._exit(0)


@pytest.mark.parametrize(
    "saves",
    [
        pytest.param(1, id="second"),
        pytest.param(0, id="first", marks=pytest.mark.slow),
        pytest.param(3, id="later", marks=pytest.mark.slow),
    ],
)
def test_crash_during_a_save_leaves_the_old_or_the_new_checkpoint(saves: int, tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    for itr in range(1, saves + 1):
        store_of(tmp_path / "start", itr)
    (tmp_path / "start").mkdir(exist_ok=True)
    seen = set()
    for operation in range(1, 100):
        folder = tmp_path / f"{operation}"
        shutil.copytree(tmp_path / "start", folder)
        process = fork.Process(target=crashes, args=(folder, 9, operation))
        process.start()
        process.join(DEADLINE)
        status = process.exitcode
        process.close()
        assert status in (0, 7)
        store = CheckpointStore(folder)
        with store.opened():
            assert not list(folder.glob("*.tmp"))
            if saves == 0 and not (folder / "checkpoint.pt").exists():
                seen.add(0)
            else:
                path, state = store.load()
                assert path == store.newest, "it always has its name"
                assert torch.equal(state["weights"], torch.full((4000,), float(state["itr"])))
                assert store.sampler_state(state, store.found()[2]).train == {0: b"environment %d" % state["itr"]}
                seen.add(state["itr"])
        if status == 0:
            break
    assert operation > 10
    assert seen == {saves, 9}


# ---- two writers ----


def holds(folder: Path, holding: Any, done: Any) -> None:
    with locked(folder):
        holding.set()
        done.wait(DEADLINE)


def test_second_writer_of_a_folder_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    holding, done = fork.Event(), fork.Event()
    process = fork.Process(target=holds, args=(tmp_path, holding, done))
    process.start()
    assert holding.wait(DEADLINE)
    with pytest.raises(CheckpointError, match=rf"written by another run \(process {process.pid}\)"):
        trained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    done.set()
    process.join(DEADLINE)
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path):
        with pytest.raises(CheckpointError, match=rf"\(process {os.getpid()}\)"), locked(tmp_path):
            pass
        assert (tmp_path / "lock").exists()


def holds_before_it_says_so(folder: Path, holding: Any, done: Any) -> None:
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.lockf(descriptor, fcntl.LOCK_EX)
    holding.set()
    done.wait(DEADLINE)


def test_two_runs_that_start_at_once_cannot_both_use_a_folder(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    holding, done = fork.Event(), fork.Event()
    process = fork.Process(target=holds_before_it_says_so, args=(tmp_path, holding, done))
    process.start()
    assert holding.wait(DEADLINE)
    with pytest.raises(CheckpointError, match=r"another run \(process just started\)"), locked(tmp_path):
        pass
    done.set()
    process.join(DEADLINE)
    with locked(tmp_path):
        pass


def test_lock_of_a_killed_run_is_taken_over(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    holding, done = fork.Event(), fork.Event()
    process = fork.Process(target=holds, args=(tmp_path, holding, done))
    process.start()
    assert holding.wait(DEADLINE)
    process.kill()
    assert until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE), "nobody has waited for it yet"
    with locked(tmp_path):
        pass
    process.join(DEADLINE)
    (tmp_path / "lock").write_text(f"{process.pid} 1.0")
    trained(tmp_path)
    assert not (tmp_path / "lock").exists()
    (tmp_path / "lock").write_text(f"{os.getpid()} 1.0")  # a pid that came round again
    with locked(tmp_path):
        pass


# ---- signatures ----


def test_key_is_created_once_and_readable_by_its_owner_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    signed = signing.signature(b"content")
    key = tmp_path / "headrace" / "key"
    assert [path.name for path in key.parent.iterdir()] == ["key"]
    assert (key.stat().st_mode & 0o777, key.stat().st_size) == (0o600, 32)
    assert signing.signature(b"content") == signed != signing.signature(b"other")
    key.chmod(0o640)
    with pytest.raises(PermissionError, match="could be read by other users; remove it"):
        signing.signature(b"content")
    key.unlink()
    assert signing.signature(b"content") != signed
    key.write_bytes(b"short")
    with pytest.raises(PermissionError, match="not a key of 32 bytes"):
        signing.signature(b"content")


def test_environments_are_not_saved_without_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/self")
    path = trained(tmp_path)
    assert "they cannot be signed" in load_checkpoint(path)["environments"]["why_not"]
    assert not list(tmp_path.glob("environments-*"))


def test_a_user_without_a_home_trains_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And without an entry in the list of users, as in containers."""

    def unknown(uid: int) -> Any:
        raise KeyError(uid)

    for name in ("HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    why = load_checkpoint(trained(tmp_path))["environments"]["why_not"]
    assert "this user has no home folder for the key; set HOME or XDG_STATE_HOME" in why
    trained(tmp_path, n_itr=5, resume_from=tmp_path)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["itr"] == 5
    folder = RunFolder.create(tmp_path / "run", {"env": "module:make"}, [])
    assert not folder.is_own()


def test_environments_are_loaded_only_with_the_checkpoint_they_were_signed_for(tmp_path: Path) -> None:
    """They are refused with another batch of the run, another run, or the same checkpoint with an entry changed."""
    one, two = store_of(tmp_path / "one", 1), store_of(tmp_path / "two", 1)
    save(one, 2)
    _, state, seal = one.found()
    assert one.sampler_state(state, seal).train == {0: b"environment 2"}
    older = tmp_path / "one" / "environments-1.pkl"
    content = older.read_bytes()
    for store, found in ((one, state), (two, two.found()[1])):
        moved = store.folder / "environments-3.pkl"
        moved.write_bytes(content)
        named = {"file": moved.name, "sha256": sha256(content[24 + 32 :]).hexdigest()}
        save_checkpoint(store.newest, {**found, "environments": named})
        answer = store.sampler_state(*store.found()[1:])
        assert not answer.train
        assert "was not signed by this user on this machine for this checkpoint" in answer.why_not


def test_missing_file_raises_file_not_found_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "nothing.pt")


def test_checkpoint_exists_at_every_moment_of_a_save(tmp_path: Path) -> None:
    store, found = store_of(tmp_path, 0), set()
    saved = threading.Event()

    def saves() -> None:
        for itr in range(1, 60):
            save(store, itr)
        saved.set()

    saver = threading.Thread(target=saves)
    saver.start()
    while not saved.is_set():
        found.add(load_checkpoint(store.newest)["itr"])
        if not saver.is_alive():
            break
    saver.join(DEADLINE)
    assert saved.is_set()
    assert len(found) > 5


def test_previous_checkpoint_is_kept_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuses)
    store = store_of(tmp_path, 1)
    save(store, 2)
    save(store, 3)
    assert [load_checkpoint(path)["itr"] for path in (store.newest, store.previous)] == [3, 2]


def test_save_after_one_killed_between_renames_leaves_no_temporary_files(tmp_path: Path) -> None:
    store = store_of(tmp_path, 1)
    save(store, 2)
    store.previous.unlink()
    os.link(store.newest, store.previous)  # as the kill leaves them: two names of one file
    save(store, 3)
    assert [load_checkpoint(path)["itr"] for path in (store.newest, store.previous)] == [3, 2]
    assert not list(tmp_path.glob("*.tmp"))


def test_changed_format_number_is_reported_as_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An intact file of a newer headrace is not skipped as damaged."""
    store = store_of(tmp_path, 1)
    save(store, 2)
    content = store.newest.read_bytes()
    store.newest.write_bytes(content.replace(b"checkpoint 2", b"checkpoint 3"))
    with caplog.at_level(logging.WARNING, "headrace"):
        assert store.load()[1]["itr"] == 1
    assert f"{store.newest} is damaged: its checksum does not match" in caplog.text
    store.newest.write_bytes(sealed(b"what a newer one writes", 3))
    with pytest.raises(CheckpointError, match="upgrade headrace"):
        store.load()
    store.newest.unlink()
    caplog.clear()
    with caplog.at_level(logging.WARNING, "headrace"):
        assert store.load()[1]["itr"] == 1
    assert f"{store.newest} does not exist; {store.previous} is used instead" in caplog.text


def test_damaged_checkpoint_never_replaces_an_intact_one(tmp_path: Path) -> None:
    store = store_of(tmp_path, 1)
    save(store, 2)
    store.newest.write_bytes(store.newest.read_bytes()[:-1])
    again = CheckpointStore(tmp_path)
    assert again.load()[1]["itr"] == 1
    save(again, 3)
    assert [load_checkpoint(path)["itr"] for path in (again.newest, again.previous)] == [3, 1]
    save(again, 4)
    assert [load_checkpoint(path)["itr"] for path in (again.newest, again.previous)] == [4, 3]


def test_checkpoint_that_a_run_resumed_from_keeps_its_environments(tmp_path: Path) -> None:
    store_of(tmp_path, 1)
    again = CheckpointStore(tmp_path)
    again.sampler_state(*again.found()[1:])
    save(again, 2)
    assert again.sampler_state(*unsealed(again.previous)).train == {0: b"environment 1"}
