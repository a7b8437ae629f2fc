"""Algorithms: they improve an agent from batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.lazy import lazy_exports

if TYPE_CHECKING:
    from headrace.algos.base import Algo as Algo, OptInfo as OptInfo

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Algo": "headrace.algos.base",
        "OptInfo": "headrace.algos.base",
    },
)
