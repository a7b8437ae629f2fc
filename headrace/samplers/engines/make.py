"""Makes the engine of a layout."""

from __future__ import annotations

from headrace.processes.status import Status
from headrace.samplers.config import SamplerConfig
from headrace.samplers.engine import Engine
from headrace.samplers.layout import Layout

__all__ = ["make_engine"]


def make_engine(name: str, layout: Layout, config: SamplerConfig, status: Status) -> Engine:
    """Returns the engine of a layout; see `Engine` for the arguments."""
    if layout.asynchronous:
        from headrace.samplers.engines.asynchronous import AsynchronousEngine

        return AsynchronousEngine(name, layout, config, status)
    if layout.served:
        from headrace.samplers.engines.served import ServedEngine

        return ServedEngine(name, layout, config, status)
    if layout.processes:
        from headrace.samplers.engines.parallel import CpuEngine

        return CpuEngine(name, layout, config, status)
    from headrace.samplers.engines.serial import SerialEngine

    return SerialEngine(name, layout, config, status)
