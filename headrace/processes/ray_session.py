"""The connection to Ray, which is one per process, and what a cluster and its actors are asked for.

Ray is imported when a session is opened, so that this module can be imported without it.
"""

from __future__ import annotations

import importlib
import os
import re
import socket
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from headrace.errors import SamplerError, headline
from headrace.extras import extra
from headrace.processes.affinity import usable_cores

__all__ = ["RayActors", "RayCluster", "RaySession", "loaded_ray", "require_ray_options"]

_OLDEST = (2, 60)
_CONNECT_SECONDS = 5.0
_MIB = 2**20


@dataclass(frozen=True)
class RayCluster:
    """The Ray cluster to use, if the program has not called `ray.init()` itself.

    Args:
        address: "host:port" of a running cluster, or "auto" for the one of this machine. Default: the environment
            variable RAY_ADDRESS; without it, a new Ray on this machine, which ends with the last of its users.
        num_cpus: CPUs of a new Ray. Default: the usable cores.
        object_store_memory: bytes of a new Ray's object store. Default: chosen by Ray.
    """

    address: str | None = None
    num_cpus: int | None = None
    object_store_memory: int | None = None

    def __post_init__(self) -> None:
        address = self.address
        if address is not None and (not isinstance(address, str) or not address):
            raise TypeError(f'address must be "host:port", "auto" or None, got {address!r}')
        if address is not None and address.startswith("ray://"):
            raise ValueError(
                f"address={address!r} is of a Ray client, which has no actors of its own; run the program on a "
                'machine of the cluster and use "host:port" or "auto"'
            )
        if address is not None and address not in ("auto", "local") and not re.fullmatch(r".+:\d{1,5}", address):
            raise ValueError(f'address must be "host:port" or "auto", got {address!r}')
        for name, least in (("num_cpus", 1), ("object_store_memory", 75 * _MIB)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise TypeError(f"{name} must be a whole number, got {type(value).__name__} {value!r}")
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value!r}")
            if value is not None and address not in (None, "local"):
                raise ValueError(f"{name} is of a new Ray, but address={address!r} names one that runs; leave one out")


@dataclass(frozen=True)
class RayActors:
    """What each actor asks of the cluster.

    Args:
        num_cpus: CPUs that Ray reserves for it; they limit how many actors a machine gets, not the CPU time they use.
        num_gpus: GPUs that Ray reserves for it, and that its environments may use.
        resources: amounts of the cluster's own resources, by name.
        placement: "DEFAULT": Ray fills machines one after another; "SPREAD": it distributes the actors over them.
        max_restarts: how many times an actor that died is started again, on a machine that has the resources.
    """

    num_cpus: float = 1
    num_gpus: float = 0
    resources: Mapping[str, float] = field(default_factory=dict)
    placement: str = "DEFAULT"
    max_restarts: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.resources, Mapping) or not all(isinstance(name, str) for name in self.resources):
            raise TypeError(f"resources must be a dict of amounts by name, got {self.resources!r}")
        amounts = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}
        amounts |= {f"resources[{name!r}]": amount for name, amount in self.resources.items()}
        for name, amount in amounts.items():
            if isinstance(amount, bool) or not isinstance(amount, int | float):
                raise TypeError(f"{name} must be a number, got {type(amount).__name__} {amount!r}")
            if not 0 <= amount < float("inf") or (amount > 1 and amount != int(amount)):
                raise ValueError(f"{name} must be a fraction of one or a whole number, got {amount!r}")
        if reserved := {"CPU", "GPU", "memory", "object_store_memory"} & {*self.resources}:
            raise ValueError(f"resources must not have {sorted(reserved)}; use num_cpus and num_gpus")
        if self.placement not in ("DEFAULT", "SPREAD"):
            raise ValueError(f"placement must be 'DEFAULT' or 'SPREAD', got {self.placement!r}")
        if isinstance(self.max_restarts, bool) or not isinstance(self.max_restarts, int):
            raise TypeError(f"max_restarts must be a whole number, got {self.max_restarts!r}")
        if self.max_restarts < 0:
            raise ValueError(f"max_restarts must be at least 0, got {self.max_restarts!r}")

    @property
    def wanted(self) -> dict[str, float]:
        """The resources under Ray's names."""
        amounts = {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.resources}
        return {name: amount for name, amount in amounts.items() if amount}


def require_ray_options(cluster: RayCluster, actors: RayActors) -> None:
    """Raises TypeError if the options `cluster` and `actors` of a sampler have wrong types."""
    for name, value, kind in (("cluster", cluster, RayCluster), ("actors", actors, RayActors)):
        if not isinstance(value, kind):
            raise TypeError(f"{name} must be a {kind.__name__}, got {type(value).__name__} {value!r}")


def loaded_ray() -> Any:
    """Returns the module `ray`.

    Raises:
        ImportError: if Ray is not installed or too old.
    """
    with extra("ray", "Ray is not installed"):
        ray: Any = importlib.import_module("ray")
    numbers = tuple(int(number) for number in re.findall(r"\d+", ray.__version__)[:2])
    if numbers < _OLDEST:
        least = ".".join(map(str, _OLDEST))
        raise ImportError(
            f'Ray {ray.__version__} is too old: {least} or later is needed; pip install -U "headrace[ray]"'
        )
    return ray


class _Own:
    """The session that this library started. Ray has one session per process, so its users are counted per process."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # reentrant: a garbage collection within `open` may close another session
        self.users = 0
        self.job = ""


_OWN = _Own()


class RaySession:
    """A user of the process's Ray session.

    A session that existed before is borrowed: it is never shut down here. Otherwise one is started, and its last user
    shuts it down: by `close`, when it is garbage collected, or at exit.

    Args:
        cluster: where to connect to if there is no session yet.

    Raises:
        ImportError: if Ray is not installed or too old.
        SamplerError: if the cluster cannot be reached, or Ray does not start.
    """

    def __init__(self, cluster: RayCluster) -> None:
        self.ray = ray = loaded_ray()
        with _OWN.lock:
            existing = ray.is_initialized()
            if not existing:
                _connect(ray, cluster)
                _OWN.users, _OWN.job = 0, _job(ray)
            self._job = _job(ray)
            self.borrowed = existing and not (_OWN.users and self._job == _OWN.job)
            if not self.borrowed:
                _OWN.users += 1
        self._end = weakref.finalize(self, _leave, ray, self._job, self.borrowed, os.getpid())

    @property
    def is_open(self) -> bool:
        """Whether the session still exists: the program may have called `ray.shutdown()`."""
        return bool(self._end.alive and self.ray.is_initialized() and _job(self.ray) == self._job)

    def require_open(self) -> None:
        """Raises SamplerError if the session has ended; Ray would start a new one at its next call."""
        if not self.is_open:
            raise SamplerError(
                "the Ray session has ended: the program called ray.shutdown(), and its actors are gone; make a new "
                "sampler"
            )

    def cpus(self) -> float:
        """Returns the number of CPUs of the cluster."""
        return float(self.ray.cluster_resources().get("CPU", 0.0))

    def resources(self) -> tuple[dict[str, float], dict[str, float]]:
        """Returns what the cluster has, and what of it is free, without Ray's internal resources."""
        own = {"memory", "object_store_memory"}
        total, free = self.ray.cluster_resources(), self.ray.available_resources()
        names = [name for name in total if name not in own and not name.startswith(("node:", "accelerator_type:"))]
        return {name: total[name] for name in names}, {name: round(free.get(name, 0.0), 4) for name in names}

    def close(self) -> None:
        """Ends the session if it was started here and this is its last user. Safe to call twice."""
        self._end()


def _leave(ray: Any, job: str, borrowed: bool, pid: int) -> None:
    if borrowed or os.getpid() != pid:
        return
    with _OWN.lock:
        if job != _OWN.job:
            return
        _OWN.users -= 1
        if _OWN.users == 0 and ray.is_initialized() and _job(ray) == job:
            ray.shutdown()


def _job(ray: Any) -> str:
    """Returns what identifies the process's session."""
    context = ray.get_runtime_context()
    return f"{context.gcs_address} {context.get_job_id()}"


def _connect(ray: Any, cluster: RayCluster) -> None:
    """Starts or joins Ray; raises SamplerError in one sentence."""
    address = cluster.address or os.environ.get("RAY_ADDRESS") or "local"
    try:
        if address == "local":
            ray.init(
                address="local",
                num_cpus=cluster.num_cpus or usable_cores(),
                object_store_memory=cluster.object_store_memory,
                include_dashboard=False,
                logging_level="WARNING",
            )
            return
        if address != "auto":
            _require_reachable(address)
        ray.init(address=address, logging_level="WARNING")
    except SamplerError:
        raise
    except Exception as error:
        if ray.is_initialized():
            ray.shutdown()
        if address == "local":
            raise SamplerError(f"Ray could not be started: {headline(error)}") from None
        raise SamplerError(
            f"the Ray cluster {address} could not be joined: {headline(error)}; `ray status` shows whether it runs, "
            "and one that asks for a token needs the environment variable RAY_AUTH_MODE=token here, too"
        ) from None


def _require_reachable(address: str) -> None:
    """Raises SamplerError if nothing listens at the address, which takes Ray minutes to find out."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise SamplerError(
            f"the Ray cluster {address} cannot be reached ({headline(error)}); `ray start --head` prints the address "
            "of a cluster, and `ray status` shows whether it runs"
        ) from None
