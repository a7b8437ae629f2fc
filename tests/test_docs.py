"""The documentation speaks of things that exist."""

import importlib
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.cli.main import main

ROOT = Path(__file__).parent.parent
SITE = sorted(path for path in ROOT.glob("docs/**/*.md") if "_build" not in path.parts)
PAGES = [*sorted(ROOT.glob("*.md")), *SITE]
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PACKAGES = [
    "headrace",
    *(f"headrace.{name}" for name in ("agents", "agents.dqn", "agents.pg", "algos", "algos.dqn", "algos.pg")),
    *(f"headrace.{name}" for name in ("buffers", "distributions", "envs", "models", "processes", "replays")),
    *(f"headrace.{name}" for name in ("runners", "runners.logging", "samplers")),
]
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


def test_names_have_a_place_or_are_said_to_come_later() -> None:
    assert len(ROWS) >= 20
    for theirs, _, here in ROWS:
        assert here == "later" or "`headrace" in here, theirs


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
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
@pytest.mark.parametrize("page", [page for page in SITE if PYTHON.search(page.read_text())], ids=name_of)
def test_python_of_a_page_runs_from_top_to_bottom(
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
    runpy.run_path(str(script), run_name="__main__")
    # A comment beside a print() shows what it prints.
    printed = capsys.readouterr().out.splitlines()
    lines = iter(printed)
    for shown in re.findall(r"^ *print\(.*\)  # (.+)$", script.read_text(), re.MULTILINE):
        assert any(line == shown for line in lines), f"{shown!r} is not, or not in this order, in {printed}"


def test_options_in_the_pages_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    helped: dict[str, str] = {}
    n_options = 0
    for page in [*PAGES, *ROOT.glob("examples/*.py")]:
        for command, words in re.findall(r"headrace (train|eval|plot|check-env)\b([^`\n#|]*)", page.read_text()):
            if command not in helped:
                with pytest.raises(SystemExit):
                    main([command, "--help"])
                helped[command] = capsys.readouterr().out
            for option in re.findall(r"--[\w.-]+", words):
                assert re.search(rf"{option}\b", helped[command]), f"{page}: headrace {command} has no {option}"
                n_options += 1
    assert n_options >= 10


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_in_the_reference(package: str) -> None:
    reference = "".join(page.read_text() for page in ROOT.glob("docs/reference/*.md"))
    names = importlib.import_module(package).__all__
    assert names or package == "headrace"
    for name in names:
        assert re.search(rf"(auto\w+|data):: headrace[\w.]*\.{name}$", reference, re.MULTILINE), f"{package}.{name}"


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
    assert "obtain_samples" in (tmp_path / "reference/samplers.html").read_text()
