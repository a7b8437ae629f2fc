"""The rules of the house, checked from the source: who may import whom, what may not be written anywhere."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "headrace"
FILES = sorted(PACKAGE.rglob("*.py"))

BASE = {"config", "errors", "lazy", "types", "rng", "memory", "schema"}
#: Room → rooms it may import. A file directly in the package is a room of its own name.
ALLOWED = {
    "config": set(),
    "errors": set(),
    "lazy": set(),
    "rng": set(),
    "schema": set(),
    "memory": {"errors"},
    "types": {"errors"},
    "in_numpy": set(),
    "storage": set(),
    "checkpoint": {"errors", "storage"},
    "buffers": BASE,
    "processes": BASE,
    "envs": BASE | {"buffers", "processes"},
    "distributions": BASE | {"in_numpy"},
    "models": BASE | {"in_numpy"},
    "agents": BASE | {"buffers", "checkpoint", "distributions", "envs", "models"},  # of envs: spaces as plain data
    "samplers": BASE | {"agents", "buffers", "envs", "processes"},
    "replays": BASE | {"buffers", "storage"},
    "algos": BASE | {"agents", "buffers", "envs", "models", "replays"},  # of envs: what of a space lies in a batch
    "runners": BASE | {"agents", "algos", "buffers", "checkpoint", "envs", "processes", "samplers", "storage"},
    "policy": BASE | {"agents", "buffers", "checkpoint", "envs", "runners"},
    "cli": BASE
    | {"agents", "algos", "buffers", "envs", "models", "policy", "processes", "runners", "samplers", "storage"},
    "__init__": {"lazy", "errors", "types", "policy", "processes"},
}
#: Rooms that work without torch (a module of them that needs it imports it inside a function).
WITHOUT_TORCH = [
    "config",
    "errors",
    "types",
    "rng",
    "memory",
    "lazy",
    "schema",
    "storage",
    "envs",
    "buffers",
    "processes",
]


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports(tree: ast.AST) -> list[tuple[str, int]]:
    """Every import of ours with its line, type-checking ones and local ones too."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("headrace"):
            modules = [node.module] if node.module != "headrace" else [f"headrace.{alias.name}" for alias in node.names]
            found += [(module, node.lineno) for module in modules]
        elif isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names if alias.name.startswith("headrace")]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_arrows(path: Path) -> None:
    here = room(path)
    wrong = [
        f"line {line}: {module}"
        for module, line in imports(ast.parse(path.read_text()))
        if (target := module.split(".")[1]) != here and target not in ALLOWED[here]
    ]
    assert not wrong, f"{here} may import {sorted(ALLOWED[here])}"


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_these_rooms_load_without_torch(name: str) -> None:
    modules = [
        "headrace." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in FILES if room(path) == name
    ]
    assert modules
    loads = "; ".join(f"import {module.removesuffix('.__init__')}" for module in modules)
    code = f"import sys; {loads}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_the_writing_side_of_a_replay_loads_without_torch() -> None:
    """So that a sampler's process, or who saves, needs none."""
    code = "import sys, headrace.replays.ring, headrace.replays.file; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_importing_headrace_loads_nothing_heavy() -> None:
    code = (
        "import sys, headrace, headrace.samplers, headrace.agents, headrace.envs, headrace.runners, headrace.algos\n"
        "import headrace.replays\n"
        "heavy = {'torch', 'numpy', 'gymnasium', 'matplotlib', 'tyro', 'tqdm'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_public_name_of_a_package_can_be_imported() -> None:
    import importlib

    count = 0
    for path in FILES:
        if path.name == "__init__.py":
            package = importlib.import_module(".".join(("headrace", *path.relative_to(PACKAGE).parent.parts)))
            for name in dir(package):
                getattr(package, name)
                count += 1
    assert count >= 20


# ---- what may not be written ----

#: Waits that never end unless somebody comes. Each is a decision, with its reason beside it in the source.
WAITS = {"acquire", "join", "recv", "wait", "poll", "recv_bytes"}
ALLOWED_WAITS = {
    ("processes/child.py", "recv"),  # an idle worker; its watch thread ends it with its parent
    ("processes/group.py", "recv"),  # the pipe has a deadline of its own (SO_RCVTIMEO)
    ("processes/fresh.py", "poll"),  # that of `Popen`, which does not wait
}
FORBIDDEN_CALLS = {"eval", "exec", "print"}
#: Generators of one's own, and looking at the global one without touching it.
OWN_GENERATORS = (
    "np.random.get_state",
    "np.random.SeedSequence",
    "np.random.default_rng",
    "np.random.Generator",
    "np.random.PCG64",
)
#: Where the global generators are seeded for a worker process, and exchanged around an environment.
OF_GLOBAL_GENERATORS = "envs/global_rng.py"
STARTS_A_PROCESS = {"multiprocessing.Process", "context.Process", "os.fork", "subprocess.Popen"}
FORBIDDEN_NAMES = {"numpy.random.seed", "np.random.seed", "random.random", "time.time"}


def calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_wait_without_a_deadline(path: Path) -> None:
    name = str(path.relative_to(PACKAGE))
    endless = [
        f"line {call.lineno}: {call.func.attr}()"
        for call in calls(ast.parse(path.read_text()))
        if isinstance(call.func, ast.Attribute)
        and call.func.attr in WAITS
        and not call.args
        and not call.keywords
        and (name, call.func.attr) not in ALLOWED_WAITS
        and ast.unparse(call) != "select.poll()"
    ]
    assert not endless


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_forbidden_is_called(path: Path) -> None:
    wrong = []
    for call in calls(ast.parse(path.read_text())):
        text = ast.unparse(call.func)
        printing = text == "print" and room(path) in ("cli", "runners")
        if (text in FORBIDDEN_CALLS and not printing) or text in FORBIDDEN_NAMES or text == "hasattr":
            wrong.append(f"line {call.lineno}: {text}")
        if text in STARTS_A_PROCESS and room(path) != "processes":
            wrong.append(f"line {call.lineno}: {text}")
        if text == "torch.load" and "weights_only=True" not in ast.unparse(call):
            wrong.append(f"line {call.lineno}: torch.load without weights_only=True")
        if text in ("np.load", "numpy.load") and "allow_pickle=True" in ast.unparse(call):
            wrong.append(f"line {call.lineno}: {text} with allow_pickle")
        of_global = str(path.relative_to(PACKAGE)) == OF_GLOBAL_GENERATORS
        if text.startswith(("np.random.", "numpy.random.")) and not text.startswith(OWN_GENERATORS) and not of_global:
            wrong.append(f"line {call.lineno}: {text}")
    assert not wrong


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_keyword_arguments_are_passed_through(path: Path) -> None:
    """`def f(**kwargs)` hides what a function takes; `validate.checked_arguments` checks names and is the exception, as
    is what `exclusive.exclusive` and `config.checked_names` put in place of a method: it keeps its signature.
    """
    wrong = [
        f"line {node.lineno}: {node.name}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.args.kwarg is not None
        and node.name not in ("checked_arguments", "entered", "constructed")
    ]
    assert not wrong


def test_files_are_of_a_size_to_be_read() -> None:
    sizes = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in FILES}
    assert max(sizes.values()) <= 400, {name: size for name, size in sizes.items() if size > 400}


def test_a_star_import_brings_the_public_names() -> None:
    names: dict[str, object] = {}
    exec("from headrace.samplers import *", names)
    assert {"BaseSampler", "CpuSampler", "SerialSampler", "TrajInfo"} <= names.keys()
