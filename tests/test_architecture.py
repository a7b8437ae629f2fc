"""Rules of the repository, checked from the source: which packages may import which, and what may not be written."""

import ast
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "headrace"

BASE = {"config", "errors", "extras", "lazy", "types", "rng", "memory", "schema"}
#: Room → rooms it may import. A file directly in the package is a room of its own name.
ALLOWED = {
    "_native": set(),
    "compiled": {"numpy_acting"},
    "config": set(),
    "errors": set(),
    "extras": set(),
    "lazy": set(),
    "rng": {"compiled"},
    "schema": set(),
    "memory": {"errors"},
    "types": {"errors"},
    "numpy_acting": set(),
    "native_gradients": {"compiled"},
    "numpy_inference": {"numpy_acting"},
    "storage": set(),
    "text": set(),
    "plotting": {"errors", "extras", "storage", "text"},
    "buffers": BASE,
    "processes": BASE | {"compiled"},
    "envs": BASE | {"buffers", "compiled", "processes"},
    "distributions": BASE | {"compiled", "native_gradients", "numpy_acting", "numpy_inference"},
    "models": BASE | {"compiled", "native_gradients", "numpy_acting", "numpy_inference"},
    # of checkpoints: the file format, since an agent saves itself; of envs: spaces as plain data
    "agents": BASE | {"buffers", "checkpoints", "compiled", "distributions", "envs", "models", "numpy_inference"},
    "samplers": BASE | {"agents", "buffers", "compiled", "envs", "processes"},
    "replays": BASE | {"buffers", "storage"},
    # of envs: what of a space lies in a batch
    "algos": BASE | {"agents", "buffers", "compiled", "distributions", "envs", "models", "native_gradients", "replays"},
    "checkpoints": BASE | {"agents", "compiled", "envs", "samplers", "storage"},
    "runners": BASE
    | {"agents", "algos", "buffers", "checkpoints", "envs", "plotting", "processes", "samplers", "storage", "text"},
    "streams": BASE | {"buffers", "compiled", "processes", "services"},
    "services": BASE | {"buffers", "processes", "storage"},
    # of checkpoints: the file of the algorithm's state; of runners: what makes an update reproducible
    "system": BASE
    | {
        "agents",
        "algos",
        "buffers",
        "checkpoints",
        "envs",
        "processes",
        "runners",
        "samplers",
        "services",
        "storage",
        "streams",
    },
    "insight": BASE | {"samplers"},
    "policy": BASE | {"agents", "buffers", "checkpoints", "envs"},
    "__init__": {"lazy"},
}
ALLOWED["cli"] = {*ALLOWED} - {"__init__"}
#: Rooms that work without torch (a module of them that needs it imports it inside a function).
WITHOUT_TORCH = [
    "_native",
    "compiled",
    "config",
    "errors",
    "extras",
    "types",
    "rng",
    "memory",
    "numpy_acting",
    "lazy",
    "schema",
    "storage",
    "envs",
    "buffers",
    "processes",
    "services",
    "streams",
]


class Source:
    """A source file of the package. name: its path within the package; nodes: all nodes of its syntax tree."""

    def __init__(self, path: Path) -> None:
        text = path.read_text()
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        self.name, self.room = str(path.relative_to(PACKAGE)), parts[0]
        self.is_package = parts[-1] == "__init__"
        self.module = ".".join(["headrace", *parts]).removesuffix(".__init__")
        self.n_lines = len(text.splitlines())
        self.nodes = list(ast.walk(ast.parse(text)))
        self.calls = [(node, ast.unparse(node.func)) for node in self.nodes if isinstance(node, ast.Call)]


@cache
def sources() -> list[Source]:
    """Parses each file of the package once."""
    return [Source(path) for path in sorted(PACKAGE.rglob("*.py"))]


def wrong(find: Callable[[Source], Iterator[str]]) -> list[str]:
    """Returns findings in all files, with file names."""
    return [f"{source.name}: {what}" for source in sources() for what in find(source)]


def imports(source: Source) -> list[tuple[str, int]]:
    """Yields every import from this package with its line, including type-checking and local ones."""
    found = []
    for node in source.nodes:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("headrace"):
            modules = [node.module] if node.module != "headrace" else [f"headrace.{alias.name}" for alias in node.names]
            found += [(module, node.lineno) for module in modules]
        elif isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names if alias.name.startswith("headrace")]
    return found


def test_imports_follow_the_table() -> None:
    def against(source: Source) -> Iterator[str]:
        for module, line in imports(source):
            target = module.split(".")[1]
            if target != source.room and target not in ALLOWED[source.room]:
                yield f"line {line}: {module}; {source.room} may import {sorted(ALLOWED[source.room])}"

    assert {source.room for source in sources()} == ALLOWED.keys()
    assert wrong(against) == []


#: Imports one module after the other, and says which others were loaded by each for the first time.
IMPORTER = """
import importlib, json, sys
first = {}
for module in json.loads(sys.argv[1]):
    before = set(sys.modules)
    importlib.import_module(module)
    for name in set(sys.modules) - before:
        first[name] = module
print(json.dumps(first))
"""


@pytest.fixture(scope="module")
def loaded_by() -> dict[str, str]:
    """For each module that a new interpreter loads, the one of ours whose import loaded it: first all packages, then
    every module that has to work without torch.
    """
    packages = [source.module for source in sources() if source.is_package]
    light = [source.module for source in sources() if source.room in WITHOUT_TORCH]
    assert {module.split(".")[1] for module in light} == set(WITHOUT_TORCH)
    order = [*packages, *light, "headrace.replays.writer", "headrace.replays.storage"]  # a process that only writes
    done = subprocess.run(
        [sys.executable, "-c", IMPORTER, json.dumps(order)], check=False, timeout=180, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_packages_without_torch_do_not_load_it(loaded_by: dict[str, str]) -> None:
    assert "torch" not in loaded_by, f"{loaded_by['torch']} loads torch"
    assert "numpy" in loaded_by


def test_importing_a_package_loads_no_heavy_modules(loaded_by: dict[str, str]) -> None:
    packages = {source.module for source in sources() if source.is_package}
    heavy = {"torch", "numpy", "gymnasium", "matplotlib", "tyro", "tqdm"} & loaded_by.keys()
    assert {name: loaded_by[name] for name in heavy if loaded_by[name] in packages} == {}


def test_every_public_name_of_a_package_can_be_imported() -> None:
    import importlib

    count = 0
    for source in sources():
        if source.is_package:
            package = importlib.import_module(source.module)
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
    ("streams/local.py", "recv"),  # as in processes/group.py
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


def test_every_wait_has_a_deadline() -> None:
    def endless(source: Source) -> Iterator[str]:
        for call, text in source.calls:
            method = text.rpartition(".")[2]
            waits = isinstance(call.func, ast.Attribute) and method in WAITS and text != "select.poll"
            if waits and not (call.args or call.keywords) and (source.name, method) not in ALLOWED_WAITS:
                yield f"line {call.lineno}: {text}()"

    assert wrong(endless) == []


def test_no_forbidden_function_is_called() -> None:
    def forbidden(source: Source) -> Iterator[str]:
        for call, text in source.calls:
            place = f"line {call.lineno}: {text}"
            printing = text == "print" and source.room in ("cli", "runners")
            if (text in FORBIDDEN_CALLS and not printing) or text in FORBIDDEN_NAMES or text == "hasattr":
                yield place
            if text in STARTS_A_PROCESS and source.room != "processes":
                yield place
            if text == "torch.load" and "weights_only=True" not in ast.unparse(call):
                yield f"{place} without weights_only=True"
            if text in ("np.load", "numpy.load") and "allow_pickle=True" in ast.unparse(call):
                yield f"{place} with allow_pickle"
            drawing = text.startswith(("np.random.", "numpy.random.")) and not text.startswith(OWN_GENERATORS)
            if drawing and source.name != OF_GLOBAL_GENERATORS:
                yield place

    assert wrong(forbidden) == []


OF_ANOTHER_SIGNATURE = ("checked_arguments", "command", "constructed", "entered", "taking")


def test_no_keyword_arguments_are_passed_through() -> None:
    """`def f(**kwargs)` hides what a function takes. Exceptions: `validate.checked_arguments` checks names; functions
    with the signature of another, which type checkers see through: `exclusive`, `checked_names`, `takes_options`,
    commands to workers.
    """

    def hiding(source: Source) -> Iterator[str]:
        functions = [node for node in source.nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        for function in functions:
            if function.args.kwarg is not None and function.name not in OF_ANOTHER_SIGNATURE:
                yield f"line {function.lineno}: {function.name}"

    assert wrong(hiding) == []


def test_files_have_at_most_400_lines() -> None:
    assert {source.name: source.n_lines for source in sources() if source.n_lines > 400} == {}


def test_star_import_gives_the_public_names() -> None:
    names: dict[str, object] = {}
    exec("from headrace.samplers import *", names)
    assert {"BaseSampler", "CpuSampler", "SerialSampler", "TrajInfo"} <= names.keys()
