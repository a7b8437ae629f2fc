"""Lazy re-exports for package `__init__` files: importing a package loads none of its modules, and so no torch."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["lazy_exports"]


def lazy_exports(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Returns what a package needs to load its public names when they are first used.

    The names are listed only in the stub `__init__.pyi` beside the package's `__init__.py`, where editors and type
    checkers find them too: `from module import Name as Name`.

    Args:
        package: `__name__` of the package.
        file: `__file__` of the package.

    Returns:
        `__getattr__`, `__dir__` and `__all__` of the package.
    """
    stub = ast.parse(Path(file).with_suffix(".pyi").read_text(encoding="utf-8"))
    module_of = {
        alias.name: node.module
        for node in stub.body
        if isinstance(node, ast.ImportFrom) and node.module is not None
        for alias in node.names
    }
    names = sorted(module_of)

    def __getattr__(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}{_elsewhere(package, file, name)}")
        module = module_of[name]
        if module == package:  # a subpackage
            return importlib.import_module(f"{package}.{name}")
        return getattr(importlib.import_module(module), name)

    def __dir__() -> list[str]:
        return names

    return __getattr__, __dir__, names


def _elsewhere(package: str, file: str, name: str) -> str:
    """Returns a hint at the subpackage that has a public name, in upper or lower case; empty if there is none."""
    for stub in sorted(Path(file).parent.rglob("*/__init__.pyi")):
        for node in ast.parse(stub.read_text(encoding="utf-8")).body:
            for alias in node.names if isinstance(node, ast.ImportFrom) else ():
                if alias.name.lower() == name.lower():
                    place = ".".join(stub.parent.relative_to(Path(file).parent).parts)
                    return f"; did you mean {package}.{place}.{alias.name}?"
    return ""
