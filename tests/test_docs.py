"""Names, links, options and code in the documentation exist and run."""

import ast
import importlib
import re
import runpy
import subprocess
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from headrace.agents.dqn import DqnAgent
from headrace.agents.dqn.exploration import EpsilonSchedule
from headrace.algos.dqn import DQNConfig
from headrace.cli.build import defaults_for
from headrace.cli.main import main
from headrace.types import EnvSpaces

ROOT = Path(__file__).parent.parent
SITE = sorted(path for path in ROOT.glob("docs/**/*.md") if "_build" not in path.parts)
PAGES = [*sorted(ROOT.glob("*.md")), *SITE]
#: Packages of pages about working with them.
NO_DEPENDENCIES = ("minari", "onnxruntime", "onnxscript", "optuna", "ray")
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
#: What describes a module, or one thing, on a page of the reference.
DESCRIBES = re.compile(r"^\.\. (reference|auto\w+):: (headrace[\w.]*)$", re.MULTILINE)
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs/names.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| theirs")
]


def test_every_name_in_the_table_of_names_can_be_imported() -> None:
    found = 0
    for _, _, here in ROWS:
        for path in re.findall(r"`(headrace[\w.]*)`", here):
            module, name = path.rsplit(".", 1)
            getattr(importlib.import_module(module), name)
            found += 1
    assert found >= 12


def test_members_in_the_table_of_names_exist() -> None:
    """Members that the table names in parentheses after their classes."""
    members = {
        "samplers.AsyncSamplerMixin": "async_initialize",
        "samplers.AsyncGpuSamplerBase": "action_server_process",
        "samplers.EpisodeSampler": "obtain_samples obtain_exact_episodes obtain_exact_trajectories shutdown_worker",
        "samplers.Worker": "start_episode step_episode collect_episode rollout start_rollout step_rollout "
        "collect_rollout",
        "runners.LocalRunner": "setup train step_epochs obtain_episodes obtain_trajectories obtain_samples save "
        "restore resume get_env_copy",
    }
    for path, names in members.items():
        package, cls = path.split(".")
        for name in names.split():
            assert callable(getattr(getattr(importlib.import_module(f"headrace.{package}"), cls), name))


def test_table_of_names_gives_a_place_for_every_name() -> None:
    assert len(ROWS) >= 20
    for theirs, _, here in ROWS:
        assert "`headrace" in here, theirs


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_between_pages_have_targets(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_in_the_pages_compiles_and_imports(page: Path) -> None:
    for block in PYTHON.findall(page.read_text()):
        compile(block, str(page), "exec")
        for line in re.findall(r"^from (headrace[\w.]*) import ([\w, ]+)$", block, re.MULTILINE):
            for name in line[1].split(","):
                getattr(importlib.import_module(line[0]), name.strip())


@pytest.mark.programs
@pytest.mark.usefixtures("copies_tried_here")
@pytest.mark.parametrize("page", [page for page in SITE if PYTHON.search(page.read_text())], ids=name_of)
def test_python_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = page.read_text()
    # What is not Python is left blank, so that a traceback shows the line of the page.
    parts, end = [], 0
    for block in PYTHON.finditer(text):
        parts += ["\n" * text.count("\n", end, block.start(1)), block[1]]
        end = block.end(1)
    script = tmp_path / f"{page.stem}.py"
    script.write_text("".join(parts))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    others = [name for name in NO_DEPENDENCIES if re.search(rf"^import {name}\b", script.read_text(), re.MULTILINE)]
    for name in others:
        pytest.importorskip(name, reason=f"the page needs {name}, which is no dependency of headrace")
    with warnings.catch_warnings():
        if others:
            warnings.simplefilter(
                "default"
            )  # theirs are not ours to mend, nor is a thread that their progress bars leave
            monkeypatch.setattr(pytest.importorskip("tqdm").tqdm, "monitor_interval", 0)
        runpy.run_path(str(script), run_name="__main__")
    # A comment beside a print() shows what it prints.
    printed = capsys.readouterr().out.splitlines()
    lines = iter(printed)
    for shown in re.findall(r"^ *print\(.*\)  # (.+)$", script.read_text(), re.MULTILINE):
        assert any(line == shown for line in lines), f"{shown!r} is not, or not in this order, in {printed}"


def test_options_in_the_pages_exist(capsys: pytest.CaptureFixture[str]) -> None:
    helped: dict[str, str] = {}
    n_options = 0
    for page in [*PAGES, *ROOT.glob("examples/*.py")]:
        for command, words in re.findall(r"headrace (train|eval|bench|plot|check-env)\b([^`\n#|]*)", page.read_text()):
            if command not in helped:
                with pytest.raises(SystemExit):
                    main([command, "--help"])
                helped[command] = capsys.readouterr().out
            for option in re.findall(r"--[\w.-]+", words):
                assert re.search(rf"{option}\b", helped[command]), f"{page}: headrace {command} has no {option}"
                n_options += 1
    assert n_options >= 10


def public(module_name: str) -> dict[str, object]:
    """Returns the names in `__all__` of a module, except packages."""
    module = importlib.import_module(module_name)
    things = {name: getattr(module, name) for name in vars(module).get("__all__", ())}
    return {f"{module_name}.{name}": one for name, one in things.items() if not isinstance(one, ModuleType)}


def test_every_public_name_is_on_one_page_of_the_reference() -> None:
    """A name that two packages export is described once."""
    pages_of: dict[int, set[str]] = {}
    for page in ROOT.glob("docs/reference/*.md"):
        for directive, name in DESCRIBES.findall(page.read_text()):
            things = public(name) if directive == "reference" else {name: public(name.rpartition(".")[0])[name]}
            for thing in things.values():
                pages_of.setdefault(id(thing), set()).add(page.name)
    packages = [".".join(path.relative_to(ROOT).parts[:-1]) for path in ROOT.glob("headrace/**/__init__.py")]
    names = {name: pages_of.get(id(thing), set()) for package in packages for name, thing in public(package).items()}
    assert len(names) >= 100
    assert {name: pages for name, pages in names.items() if len(pages) != 1} == {}


@pytest.mark.timeout(1000)
@pytest.mark.programs
def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(ROOT / "docs"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    assert built.stderr == ""
    assert "--batch-T" in (tmp_path / "reference/command_line.html").read_text()
    for page in tmp_path.rglob("*.html"):  # a table outside of its frame is cut off where it is wider than the page
        html = page.read_text()
        assert html.count("<table") == html.count('<div class="table-wrapper') or page.name == "genindex.html", page
    assert "overflow-x: auto" in (tmp_path / "_static/tables.css").read_text()
    samplers = (tmp_path / "reference/samplers.html").read_text()
    for name in ("obtain_samples", "AsyncNoOverlapAlternatingSampler", "max_decorrelation_steps"):
        assert name in samplers


def test_defaults_of_dqn_in_the_pages_are_those_of_the_classes() -> None:
    """The table beside rlpyt's: our own column, and that of `headrace train` on images."""
    page = (ROOT / "docs/howto/dqn.md").read_text().partition("## Defaults beside")[2].partition("\n## ")[0]
    here = {**asdict(DQNConfig()), **asdict(EpsilonSchedule()), "eps_eval": DqnAgent().eps_eval}
    spaces = EnvSpaces(Box(0, 255, (4, 84, 84), np.uint8), Discrete(4))
    options = defaults_for("dqn", "module:images", spaces, None)
    images = {**asdict(options.dqn), **asdict(options.acting)}
    n_values = 0
    for line in page.splitlines():
        names, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        for position, name in enumerate(name for name in re.findall(r"`(\w+)`", names) if name in here):
            for defaults, cell in ((here, cells[0]), (images, cells[2])):
                value = re.split(r", (?!\d{3})", cell)[position].replace(",", "")
                assert ast.literal_eval(value) == defaults[name], name
                n_values += 1
    assert n_values >= 40
