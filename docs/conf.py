"""Configuration of the documentation; `make docs` builds it and treats warnings as errors."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import os
import types
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring
from sphinx.util.docutils import SphinxDirective

from headrace.cli.main import main

os.environ |= {"COLUMNS": "110", "NO_COLOR": "1"}  # for the help texts

project = "headrace"
author = "The headrace developers"
project_copyright = author

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "headrace"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["tables.css"]

myst_heading_anchors = 3

default_role = "code"  # docstrings write `code` in the same way as the pages
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
autosummary_generate = False
python_use_unqualified_type_names = True
suppress_warnings = ["ref.python"]  # some names are re-exported by two packages

NAPOLEON = Config(napoleon_use_param=False)  # so that "batch_T, batch_B: ..." is one entry


class ProgramHelp(SphinxDirective):
    """`{program-help} headrace train` shows what that command prints with `--help`."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Returns the text as a literal block."""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main([*self.arguments[0].split()[1:], "--help"])
        text = "\n".join(line.rstrip() for line in printed.getvalue().splitlines())
        return [nodes.literal_block(text, text, language="none")]


class Reference(SphinxDirective):
    """`{reference} headrace.samplers` documents every public name of a module, from its `__all__`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Returns a table of the names, followed by the documentation of each."""
        name = self.arguments[0]
        module = importlib.import_module(name)
        lines = [f".. currentmodule:: {name}", "", ".. autosummary::", "   :nosignatures:", ""]
        apart = (types.ModuleType, types.GenericAlias)
        shown = [one for one in module.__all__ if not isinstance(getattr(module, one), apart)]
        lines += [f"   {one}" for one in shown]
        for one in shown:
            thing = getattr(module, one)
            kind = "class" if isinstance(thing, type) else "function" if callable(thing) else "data"
            lines += ["", f".. auto{kind}:: {name}.{one}"]
            if isinstance(thing, type):
                if issubclass(thing, BaseException):
                    lines.append("   :no-members:")
                elif dataclasses.is_dataclass(thing):
                    lines.append("   :inherited-members:")
        for one in module.__all__:
            if isinstance(alias := getattr(module, one), types.GenericAlias):
                lines += ["", f".. data:: {name}.{one}", "", f"   Stands for `{alias}`."]
        return self.parse_text_to_nodes("\n".join(lines))


def google_sections(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Formats Google-style sections; not for attributes, where napoleon would read text before a colon as a type."""
    if what in ("class", "function", "method"):
        lines[:] = GoogleDocstring(lines, NAPOLEON, app, what, name, obj, options).lines()


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the directives; Sphinx calls it."""
    app.add_directive("program-help", ProgramHelp)
    app.add_directive("reference", Reference)
    app.connect("autodoc-process-docstring", google_sections)
    return {"parallel_read_safe": True}
