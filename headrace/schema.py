"""Schemas of values that are read from files: an intact file may come from anyone, so values are checked before use.

A `Kind` is a function of a value and a description of its place; it raises ValueError, with the place, for a value that
does not match. Kinds are composed::

    episode = fields({"length": whole(), "return": real(), "name": optional(text())})
    episode(value, "runner.episode")
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

__all__ = [
    "Kind",
    "alike",
    "anything",
    "each",
    "fields",
    "named",
    "number",
    "optional",
    "plain",
    "real",
    "shown",
    "tensor",
    "text",
    "whole",
]

Kind = Callable[[Any, str], None]

#: Maximum of counts: above this, floats cannot distinguish one integer from the next.
_MAX_COUNT = 2**53
#: Maximum magnitude for statistics: the square of such a number is a finite float.
_MAX_MAGNITUDE = 1e150


def anything(value: Any, where: str) -> None:
    """Accepts any value, which is checked elsewhere."""


def whole(least: int = 0, most: int = _MAX_COUNT) -> Kind:
    """Returns the kind of integers in this range, both ends included."""

    def check(value: Any, where: str) -> None:
        if type(value) is not int or not least <= value <= most:
            raise _mismatch(value, where, f"a whole number from {least} to {most:.3g}")

    return check


def real(least: float = -math.inf, most: float = math.inf, *, nan: bool = False) -> Kind:
    """Returns the kind of floats and integers in this range, both ends included, and of NaN if `nan`."""

    def check(value: Any, where: str) -> None:
        number = type(value) is float or (type(value) is int and abs(value) <= _MAX_COUNT)
        if not number or not (least <= value <= most or (nan and math.isnan(value))):
            raise _mismatch(value, where, f"a number from {least:g} to {most:g}{' or NaN' * nan}")

    return check


def text(pattern: str = r"[\s\S]*") -> Kind:
    """Returns the kind of strings that fully match a regular expression."""
    compiled = re.compile(pattern)

    def check(value: Any, where: str) -> None:
        if type(value) is not str or not compiled.fullmatch(value):
            raise _mismatch(value, where, "a string" if pattern == r"[\s\S]*" else f"a string {pattern}")

    return check


def optional(kind: Kind) -> Kind:
    """Returns the kind of None and of values of `kind`."""

    def check(value: Any, where: str) -> None:
        if value is not None:
            kind(value, where)

    return check


def each(kind: Kind, n: int | None = None) -> Kind:
    """Returns the kind of lists of values of `kind`, of length `n` if given."""

    def check(value: Any, where: str) -> None:
        if type(value) is not list or (n is not None and len(value) != n):
            raise _mismatch(value, where, "a list" if n is None else f"a list of {n}")
        for number, item in enumerate(value):
            kind(item, f"{where}[{number}]")

    return check


def named(kind: Kind) -> Kind:
    """Returns the kind of dicts with arbitrary string keys and values of `kind`."""

    def check(value: Any, where: str) -> None:
        _require_dict(value, where)
        for name, item in value.items():
            text()(name, f"a name in {where}")
            kind(item, f"{where}.{name}")

    return check


def fields(required: Mapping[Any, Kind], others: Mapping[Any, Kind] | None = None, *, more: bool = False) -> Kind:
    """Returns the kind of dicts with the required entries, possibly `others`, and, if `more`, any further entries."""
    known = {**required, **(others or {})}

    def check(value: Any, where: str) -> None:
        _require_dict(value, where)
        missing = [name for name in required if name not in value]
        unknown = [] if more else [name for name in value if name not in known]
        if missing or unknown:
            what = f"lacks the entry {shown(missing[0])}" if missing else f"has the unknown entry {shown(unknown[0])}"
            raise ValueError(f"{where} {what}")
        for name, kind in known.items():
            if name in value:
                kind(value[name], f"{where}.{name}")

    return check


def alike(example: Mapping[str, Any]) -> Kind:
    """Returns the kind of dicts of numbers and strings; entries that `example` has must have the same type as there."""

    def check(value: Any, where: str) -> None:
        _require_dict(value, where)
        for name, item in value.items():
            text()(name, f"a name in {where}")
            before = example.get(name)
            if isinstance(before, bool | int | float) or not isinstance(item, str):
                number(item, f"{where}.{name}")
            elif before is not None:
                text()(item, f"{where}.{name}")

    return check


def plain(value: Any, where: str) -> None:
    """Accepts None, booleans, numbers and strings, and lists and dicts of them."""
    if isinstance(value, list):
        each(plain)(value, where)
    elif isinstance(value, dict):
        named(plain)(value, where)
    elif type(value) is int:
        whole(-(2**256), 2**256)(value, where)
    elif value is not None and type(value) not in (bool, float, str):
        raise _mismatch(value, where, "a plain value")


def tensor(shape: tuple[int, ...], dtype: Any, least: float = -math.inf) -> Kind:
    """Returns the kind of torch tensors of this shape and dtype without NaN and without values below `least`."""

    def check(value: Any, where: str) -> None:
        import torch  # imported here, because files without tensors are read in processes without torch

        if not isinstance(value, torch.Tensor) or value.shape != shape or value.dtype != dtype:
            raise _mismatch(value, where, f"a tensor {dtype} {list(shape)}")
        if not bool((value >= least).all()):
            raise ValueError(f"{where} has numbers that are NaN or less than {least:g}")

    return check


def shown(value: Any) -> str:
    """Describes any value in a few words on one short line."""
    if type(value) is int and abs(value) > 2**64:
        return f"a number of {value.bit_length()} bits"
    if type(value).__module__.startswith("torch"):
        return f"a {type(value).__name__} {getattr(value, 'dtype', '')} {list(getattr(value, 'shape', ()))}"
    try:
        return " ".join(reprlib.repr(value).split())
    except ValueError:  # it contains a huge integer, which Python refuses to format
        return f"a {type(value).__name__}"


def number(value: Any, where: str) -> None:
    """Accepts NaN and numbers whose statistics can be computed."""
    if type(value) is not bool:
        real(-_MAX_MAGNITUDE, _MAX_MAGNITUDE, nan=True)(value, where)


def _require_dict(value: Any, where: str) -> None:
    if not isinstance(value, dict):
        raise _mismatch(value, where, "a dict")


def _mismatch(value: Any, where: str, expected: str) -> ValueError:
    return ValueError(f"{where} is {shown(value)}, expected {expected}")
