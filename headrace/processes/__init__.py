"""Worker processes: starting, watching and ending them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.lazy import lazy_exports

if TYPE_CHECKING:
    from headrace.processes.affinity import Affinity as Affinity, usable_cores as usable_cores
    from headrace.processes.group import WorkerGroup as WorkerGroup

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Affinity": "headrace.processes.affinity",
        "WorkerGroup": "headrace.processes.group",
        "usable_cores": "headrace.processes.affinity",
    },
)
