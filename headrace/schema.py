"""What a value that comes out of a file must be. A file may be whole and come from anybody: its parts are looked at
before anything is done with them.

A `Kind` is a function of a value and its place; it raises ValueError, with the place in words, for a value that is not
of the kind. Kinds are made of others::

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

#: Counts beyond this are no counts: floats no longer tell one from the next.
_MOST = 2**53
#: Squares of numbers up to this are floats, so statistics of them are.
_GREATEST = 1e150


def anything(value: Any, where: str) -> None:
    """Takes every value: somebody else looks at it."""


def whole(least: int = 0, most: int = _MOST) -> Kind:
    """An int of this range."""

    def check(value: Any, where: str) -> None:
        if type(value) is not int or not least <= value <= most:
            raise _odd(value, where, f"a whole number from {least} to {most:.3g}")

    return check


def real(least: float = -math.inf, most: float = math.inf, *, nan: bool = False) -> Kind:
    """A float, or an int, of this range, ends included. nan: or NaN."""

    def check(value: Any, where: str) -> None:
        number = type(value) is float or (type(value) is int and abs(value) <= _MOST)
        if not number or not (least <= value <= most or (nan and math.isnan(value))):
            raise _odd(value, where, f"a number from {least:g} to {most:g}{' or NaN' * nan}")

    return check


def text(pattern: str = r"[\s\S]*") -> Kind:
    """A string that the pattern matches as a whole."""
    compiled = re.compile(pattern)

    def check(value: Any, where: str) -> None:
        if type(value) is not str or not compiled.fullmatch(value):
            raise _odd(value, where, "a string" if pattern == r"[\s\S]*" else f"a string {pattern}")

    return check


def optional(kind: Kind) -> Kind:
    """None, or of the kind."""

    def check(value: Any, where: str) -> None:
        if value is not None:
            kind(value, where)

    return check


def each(kind: Kind, n: int | None = None) -> Kind:
    """A list of values of the kind, n of them if that is said."""

    def check(value: Any, where: str) -> None:
        if type(value) is not list or (n is not None and len(value) != n):
            raise _odd(value, where, "a list" if n is None else f"a list of {n}")
        for number, item in enumerate(value):
            kind(item, f"{where}[{number}]")

    return check


def named(kind: Kind) -> Kind:
    """A dict of values of the kind, with names of any sort."""

    def check(value: Any, where: str) -> None:
        _require_dict(value, where)
        for name, item in value.items():
            text()(name, f"a name in {where}")
            kind(item, f"{where}.{name}")

    return check


def fields(required: Mapping[Any, Kind], others: Mapping[Any, Kind] | None = None, *, more: bool = False) -> Kind:
    """A dict that has the required entries and may have the others. more: and any besides."""
    known = {**required, **(others or {})}

    def check(value: Any, where: str) -> None:
        _require_dict(value, where)
        missing = [name for name in required if name not in value]
        unknown = [] if more else [name for name in value if name not in known]
        if missing or unknown:
            what = f"lacks {shown(missing[0])}" if missing else f"has {shown(unknown[0])}, which nobody wrote"
            raise ValueError(f"{where} {what}")
        for name, kind in known.items():
            if name in value:
                kind(value[name], f"{where}.{name}")

    return check


def alike(example: Mapping[str, Any]) -> Kind:
    """A dict of numbers and strings; one whose name is in the example is a number there and a string there."""

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
    """None, a truth value, a number or a string; or lists and dicts of them."""
    if isinstance(value, list):
        each(plain)(value, where)
    elif isinstance(value, dict):
        named(plain)(value, where)
    elif type(value) is int:
        whole(-(2**256), 2**256)(value, where)
    elif value is not None and type(value) not in (bool, float, str):
        raise _odd(value, where, "a plain value")


def tensor(shape: tuple[int, ...], dtype: Any, least: float = -math.inf) -> Kind:
    """A torch tensor of this shape and dtype, no number in it NaN or below `least`."""

    def check(value: Any, where: str) -> None:
        import torch  # here, because files without tensors are read where there is no torch

        if not isinstance(value, torch.Tensor) or value.shape != shape or value.dtype != dtype:
            raise _odd(value, where, f"a tensor {dtype} {list(shape)}")
        if not bool((value >= least).all()):
            raise ValueError(f"{where} has numbers that are NaN or less than {least:g}")

    return check


def shown(value: Any) -> str:
    """A value in a few words, whatever it is: on one line, and never long."""
    if type(value) is int and abs(value) > 2**64:
        return f"a number of {value.bit_length()} bits"
    if type(value).__module__.startswith("torch"):
        return f"a {type(value).__name__} {getattr(value, 'dtype', '')} {list(getattr(value, 'shape', ()))}"
    try:
        return " ".join(reprlib.repr(value).split())
    except ValueError:  # a huge number inside: Python does not write it
        return f"a {type(value).__name__}"


def number(value: Any, where: str) -> None:
    """A number, or NaN, that statistics can be made of."""
    if type(value) is not bool:
        real(-_GREATEST, _GREATEST, nan=True)(value, where)


def _require_dict(value: Any, where: str) -> None:
    if not isinstance(value, dict):
        raise _odd(value, where, "a dict")


def _odd(value: Any, where: str, expected: str) -> ValueError:
    return ValueError(f"{where} is {shown(value)}, expected {expected}")
