"""`FreshInterpreter`: what it inherits, what it may do, and that it always ends."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from headrace.processes.fresh import FreshInterpreter

DEADLINE = 60.0


def call(function: str, argument: bytes = b"", seconds: float = DEADLINE) -> FreshInterpreter:
    return FreshInterpreter(f"tests.fresh_functions:{function}", argument, seconds)


def answer(function: str, argument: bytes = b"") -> str | None:
    interpreter = call(function, argument)
    assert interpreter.ended(DEADLINE, lambda: None)
    return interpreter.answer


def gone(pid: int) -> bool:
    deadline = time.monotonic() + DEADLINE
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_fresh_interpreter_inherits_no_descriptors(tmp_path: Path) -> None:
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        found = answer("descriptors")
    assert found is not None
    assert len(found.split()) <= 6  # the null device three times and once more, standard input's copy, its socket


def test_fresh_interpreter_takes_large_arguments_and_ignores_printed_output() -> None:
    assert answer("sizes", bytes(100 << 20) + b"\7") == f"{(100 << 20) + 1} 7"
    assert answer("prints") == "an answer in two lines"


def test_fresh_interpreter_loads_neither_torch_nor_modules_of_the_program() -> None:
    found = (answer("modules") or "").split()
    assert "headrace.processes.fresh" in found
    assert not {"torch", "numpy", "gymnasium", "pytest"} & set(found)


def test_file_named_like_a_standard_module_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pickle.py").write_text("raise SystemExit('this is no pickle')")
    assert answer("sizes", b"\1") == "1 1"


def test_fresh_interpreter_ends_by_itself_by_close_and_by_garbage_collection() -> None:
    interpreter = call("sleeps", seconds=0.1)
    assert interpreter.ended(DEADLINE, lambda: None)
    assert (interpreter.answer, interpreter.exitcode) == (None, -signal.SIGALRM)
    interpreter.close()
    ticks: list[int] = []
    interpreter = call("sleeps")
    assert not interpreter.ended(0.2, lambda: ticks.append(1))
    assert len(ticks) > 1
    pid = interpreter._process.pid
    interpreter.close()
    assert gone(pid)
    interpreter = call("sleeps")
    pid = interpreter._process.pid
    del interpreter
    gc.collect()
    assert gone(pid)


@pytest.mark.programs
def test_fresh_interpreter_ends_with_a_killed_parent() -> None:
    program = (
        "from tests.fresh_functions import time; from headrace.processes.fresh import FreshInterpreter\n"
        "it = FreshInterpreter('tests.fresh_functions:sleeps', b'', 1000)\n"
        "print(it._process.pid, flush=True); time.sleep(1000)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.5)
        parent.kill()
        parent.wait(DEADLINE)
        assert gone(pid)


@pytest.mark.parametrize("kept", [False, True], ids=["refused", "allowed"])
def test_fresh_interpreter_may_read_but_not_change_anything_outside(kept: bool, tmp_path: Path) -> None:
    file = tmp_path / "there"
    file.write_text("as it was")
    refused = [
        f"open({str(file)!r}, 'w')",
        f"open({str(file)!r}, 'r+')",
        f"import os; os.open({str(file)!r}, os.O_RDWR)",
        f"import os; os.remove({str(file)!r})",
        f"import os; os.rename({str(file)!r}, 'elsewhere')",
        f"import shutil; shutil.rmtree({str(tmp_path)!r})",
        f"import sqlite3; sqlite3.connect({str(file)!r})",
        "import os; os.kill(os.getppid(), 0)",
        "import os; os.system('true')",
        "import subprocess; subprocess.run(['true'])",
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'1', ('127.0.0.1', 9))",
        "from multiprocessing.shared_memory import SharedMemory; SharedMemory('name')",
    ]
    allowed = [
        f"assert open({str(file)!r}).read() == 'as it was'",
        "import sqlite3; sqlite3.connect(':memory:').execute('create table x (y)')",
        "open('/dev/null', 'w').write('1')",
        "import threading; thread = threading.Thread(target=print); thread.start(); thread.join(10)",
    ]
    programs = allowed if kept else refused
    answers = (answer("do", json.dumps(programs).encode()) or "").split("|")
    for program, came in zip(programs, answers, strict=True):
        assert came == "" if kept else "must not affect other processes or files" in came, program
    assert file.read_text() == "as it was"
