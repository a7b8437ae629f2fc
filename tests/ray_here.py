"""A Ray of the tests' own, as small as it can be."""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from headrace.processes.ray_session import RayCluster

__all__ = ["NEEDS_RAY", "SMALL", "require_no_growth", "small_ray"]

#: Skips tests where Ray is not installed; importing it to find out would take a second.
NEEDS_RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason='needs Ray: pip install "headrace[ray]"')
SMALL = RayCluster(num_cpus=2, object_store_memory=80 * 2**20)


@contextmanager
def small_ray() -> Iterator[Any]:
    """Starts Ray in this process as a program would that uses it for other things, too; yields the module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own code
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # no token in the user's home
        ray: Any = importlib.import_module("ray")
        ray.init(
            address="local",
            num_cpus=SMALL.num_cpus,
            object_store_memory=SMALL.object_store_memory,
            include_dashboard=False,
            logging_level="ERROR",
            log_to_driver=False,
        )
    try:
        yield ray
    finally:
        ray.shutdown()


def require_no_growth(ray: Any, collect: Callable[[int], object], workers: Sequence[psutil.Process]) -> None:
    """Makes 500 calls, and fails if they take more and more memory: of Ray's object store, where what nobody refers to
    is freed, or of this process and `workers`.

    collect: takes the number of the call, and collects 1 MiB of observations.
    """
    free, sizes = [], []
    for itr in range(500):
        collect(itr)
        if itr % 50 == 49:
            free.append(ray.available_resources()["object_store_memory"])
            sizes.append(sum(process.memory_info().rss for process in (psutil.Process(), *workers)))
    assert max(free[2:]) - min(free[2:]) < 4 * 2**20  # less than ten calls
    assert max(sizes[4:]) - sizes[3] < 16 * 2**20
