"""Records in a Ray actor, which any process of the cluster finds by its name."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from headrace.errors import NameEntryError, SamplerError, one_line
from headrace.processes.ray_session import RayCluster, RaySession
from headrace.services.names.records import MemoryRecords, Record

__all__ = ["RayRecords"]

_NAMESPACE = "headrace"


class RayRecords:
    """Records in the memory of an actor, whose clock lets them expire; see `Records`.

    The actor ends with the process that made it, the first that used the name. The next process that uses it makes
    another, without records, and the repositories add theirs again.

    Args:
        name: name of the actor.
        cluster: the cluster, if this process has no Ray session yet.
        timeout: seconds to wait for the actor.

    Raises:
        ImportError: if Ray is not installed or too old.
        NameEntryError: if the cluster cannot be reached.
    """

    def __init__(self, name: str, cluster: RayCluster, timeout: float) -> None:
        self._name = name
        self._timeout = timeout
        self._actor: Any = None
        try:
            self._session = RaySession(cluster)
        except SamplerError as error:
            raise NameEntryError(error.message) from error

    def put(self, record: Record, replace: bool) -> bool:
        """See `Records`."""
        return bool(self._call("put", record, replace))

    def get(self, name: str) -> str | None:
        """See `Records`."""
        value: str | None = self._call("get", name)
        return value

    def subtree(self, root: str) -> dict[str, str]:
        """See `Records`."""
        return dict(self._call("subtree", root))

    def renew(self, record: Record) -> bool:
        """See `Records`."""
        return bool(self._call("renew", record))

    def remove(self, name: str, token: str | None = None) -> bool:
        """See `Records`."""
        return bool(self._call("remove", name, token))

    def clear(self, root: str) -> None:
        """See `Records`."""
        self._call("clear", root)

    def instance(self) -> str:
        """See `Records`."""
        return str(self._call("instance"))

    def changes(self) -> AbstractContextManager[Callable[[float], None]]:
        """See `Records`. A call that waits would occupy the actor, so this waits the whole time, here."""
        return nullcontext(time.sleep)

    def close(self) -> None:
        """See `Records`."""
        self._actor = None
        self._session.close()

    def _call(self, method: str, *arguments: Any) -> Any:
        if not self._session.is_open:  # a call would start another Ray
            raise NameEntryError("the Ray session has ended, and names with it; make a new repository")
        ray = self._session.ray
        died: type[Exception] = ray.exceptions.RayActorError
        for last in (False, True):
            try:
                if self._actor is None:
                    self._actor = self._found_or_made()
                return ray.get(getattr(self._actor, method).remote(*arguments), timeout=self._timeout)
            except (ray.exceptions.RayError, ValueError) as error:
                if isinstance(error, died):
                    self._actor = None
                if last or not isinstance(error, died):  # with an actor its records died, so a call may be repeated
                    raise NameEntryError(f"the Ray actor {self._name!r} of names failed ({one_line(error)})") from error

    def _found_or_made(self) -> Any:
        actor = self._session.ray.remote(MemoryRecords)
        return actor.options(name=self._name, namespace=_NAMESPACE, get_if_exists=True, num_cpus=0).remote()
