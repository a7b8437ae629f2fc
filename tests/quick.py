"""Marks the cases of a test that are slow."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest

__all__ = ["quick_and_slow"]


def quick_and_slow(cases: Iterable[tuple[Any, ...]], quick: Collection[tuple[Any, ...]]) -> list[Any]:
    """Returns the parameters of a test; cases that are not in `quick` are marked slow."""
    found = list(cases)
    missing = [case for case in quick if case not in found]
    assert not missing, f"no cases: {missing}"
    return [pytest.param(*case, marks=[] if case in quick else [pytest.mark.slow]) for case in found]
