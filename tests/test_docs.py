"""The documentation speaks of things that exist."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
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


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_python_in_the_pages_compiles_and_imports(page: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        compile(block, str(page), "exec")
        for line in re.findall(r"^from (headrace[\w.]*) import ([\w, ]+)$", block, re.MULTILINE):
            for name in line[1].split(","):
                getattr(importlib.import_module(line[0]), name.strip())
