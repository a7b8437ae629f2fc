"""Lets processes of one user on one machine find shared memory by name, and receive its descriptors."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from headrace.errors import FrameRejected
from headrace.streams.connections import Connection, Ended, Listener, check_name, connected
from headrace.streams.sample import remaining

__all__ = ["Host", "Inquiry", "Watch"]

_RETRY_SECONDS = 0.02  # between looks for a name that nobody has: its appearance is no event

#: Returns what a request is answered with, bytes and descriptors; None: not yet.
Answer = Callable[[bytes], "tuple[bytes, Sequence[int]] | None"]


class Host:
    """Answers requests under a name; while another process has the name, waits for its end and takes over.

    Args:
        name: the name.
        answer: called in a thread with a request. A request that gets None is asked again after the next request.
    """

    def __init__(self, name: str, answer: Answer) -> None:
        self._answer = answer
        self._unanswered: dict[Connection, bytes] = {}
        self._listener = Listener(name, self._asked, self._gone, waits=True)

    @property
    def hosting(self) -> bool:
        """Whether the name is this object's."""
        return self._listener.hosting

    def close(self) -> None:
        """Gives the name back. Safe to call twice."""
        self._listener.close()

    def _asked(self, connection: Connection) -> None:
        parts, fds = connection.receive()
        for fd in fds:
            os.close(fd)
        self._unanswered[connection] = b"".join(parts)
        for each, request in [*self._unanswered.items()][::-1]:  # the new one first: others may wait for what it brings
            found = self._answer(request)
            if found is not None:
                del self._unanswered[each]
                with suppress(Ended, OSError):  # it has gone, or does not read
                    each.send([found[0]], found[1])

    def _gone(self, connection: Connection) -> None:
        self._unanswered.pop(connection, None)


class Inquiry:
    """Asks whoever has a name, now or later.

    Args:
        name: the name.
        request: what to ask.
    """

    def __init__(self, name: str, request: bytes) -> None:
        check_name(name)
        self._name = name
        self._request = request
        self._connection: Connection | None = None

    def answer(self, deadline: float) -> tuple[bytes, list[int]] | None:
        """Returns the answer, bytes and descriptors; None if there is none until the deadline, so ask again.

        Raises:
            StreamError: if a process of another user has the name.
        """
        while True:
            found = self._received(deadline)
            left = remaining(deadline)
            if found is not None or not left:
                return found
            time.sleep(min(_RETRY_SECONDS, left))

    def _received(self, deadline: float) -> tuple[bytes, list[int]] | None:
        """Returns the answer; None at the deadline, or if there is nobody to ask."""
        try:
            if self._connection is None:
                self._connection = connected(self._name)
                self._connection.send([self._request])
            self._connection.wait_at_most(remaining(deadline))
            parts, fds = self._connection.receive()
        except (TimeoutError, BlockingIOError):  # the question stays asked
            return None
        except (OSError, Ended, FrameRejected):
            self.close()
            return None
        self.close()
        return b"".join(parts), fds

    def close(self) -> None:
        """Stops asking. Safe to call twice."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class Watch:
    """Tells when the process that has a name ends, or gives it back.

    Args:
        name: the name.
    """

    def __init__(self, name: str) -> None:
        self._connection: Connection | None = None
        self._poll = select.poll()
        with suppress(OSError):
            self._connection = connected(name)
            self._poll.register(self._connection, select.POLLIN)

    def ended(self) -> bool:
        """Returns whether it has, without waiting."""
        return self._connection is None or bool(self._poll.poll(0))

    def close(self) -> None:
        """Stops watching. Safe to call twice."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
