"""Records on a Redis or Valkey server."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from headrace.errors import NameEntryError, one_line
from headrace.extras import extra
from headrace.services.addresses import require_scheme, shows_hosts, without_secrets
from headrace.services.names.records import TOKEN_SIZE, Record, new_token

__all__ = ["SCHEMES", "RedisRecords"]

#: Beginnings of addresses of Redis servers.
SCHEMES = ("redis", "rediss", "unix")

_SCAN_COUNT = 1000  # keys that the server looks at in one step of a scan, which blocks others meanwhile
#: A record's value begins with its token. A record is looked at and changed in one step, which only a script can do.
_IF_SAME = f"if redis.call('GETRANGE', KEYS[1], 0, {TOKEN_SIZE - 1}) == ARGV[1] then return %s end return 0"
_RENEW = _IF_SAME % "redis.call('PEXPIRE', KEYS[1], ARGV[2])"
_REMOVE = _IF_SAME % "redis.call('DEL', KEYS[1])"


class RedisRecords:
    """Records on a Redis server, whose clock lets them expire; see `Records`.

    Args:
        url: "redis://host:port/db"; "rediss://…" for TLS, "unix://path" for a socket.
        prefix: beginning of all keys.
        timeout: seconds to wait for the server.

    Raises:
        ImportError: if redis-py is not installed.
        ValueError: if the URL is not valid.
    """

    def __init__(self, url: str, prefix: str, timeout: float) -> None:
        require_scheme(url, SCHEMES, "the address of a Redis server")
        redis = _loaded_redis()
        self._error: type[Exception] = redis.RedisError
        self._prefix = f"{prefix}:"
        self._instance_key = f"{prefix}#instance"
        self._channel = f"{prefix}#added"
        self.address = without_secrets(url)
        self._redis = _client(redis, url, timeout)
        if self._redis is None or not shows_hosts(url):
            raise ValueError(
                f'{self.address} is no address of a Redis server, expected "redis://user:password@host:port/db" with '
                "special characters of the password percent-encoded (urllib.parse.quote), and options that redis-py has"
            )

    def put(self, record: Record, replace: bool) -> bool:
        """See `Records`."""
        key, content = self._prefix + record.name, record.token + record.value
        px = None if record.ttl is None else round(record.ttl * 1000)
        with self._reached(), self._redis.pipeline(transaction=False) as pipeline:
            pipeline.set(key, content, px=px, nx=not replace)
            pipeline.publish(self._channel, record.name)
            stored, _ = pipeline.execute()
            # A call that was repeated, because its reply was lost, finds what it has stored itself.
            return bool(stored) or self._redis.get(key) == content

    def get(self, name: str) -> str | None:
        """See `Records`."""
        with self._reached():
            content: str | None = self._redis.get(self._prefix + name)
        return None if content is None else content[TOKEN_SIZE:]

    def subtree(self, root: str) -> dict[str, str]:
        """See `Records`."""
        with self._reached():
            keys = self._keys(root)
            contents: list[str | None] = self._redis.mget(keys)
        return {
            key.removeprefix(self._prefix): content[TOKEN_SIZE:]
            for key, content in zip(keys, contents, strict=True)
            if content is not None  # it did not exist, or expired after the scan
        }

    def renew(self, record: Record) -> bool:
        """See `Records`."""
        ttl = round((record.ttl or 0.0) * 1000)
        with self._reached():
            return bool(self._redis.eval(_RENEW, 1, self._prefix + record.name, record.token, ttl))

    def remove(self, name: str, token: str | None = None) -> bool:
        """See `Records`."""
        key = self._prefix + name
        with self._reached():
            return bool(self._redis.delete(key) if token is None else self._redis.eval(_REMOVE, 1, key, token))

    def clear(self, root: str) -> None:
        """See `Records`."""
        with self._reached():
            self._redis.delete(*self._keys(root))

    def instance(self) -> str:
        """See `Records`. The server's own id changes with a restart, the key's value when the data is emptied."""
        with self._reached(), self._redis.pipeline(transaction=False) as pipeline:
            pipeline.set(self._instance_key, new_token(), nx=True)
            pipeline.get(self._instance_key)
            pipeline.info("server")
            _, key, info = pipeline.execute()
            return f"{info['run_id']} {key}"

    @contextmanager
    def changes(self) -> Iterator[Callable[[float], None]]:
        """See `Records`. Every repository publishes the names that it adds."""
        pubsub = self._redis.pubsub()

        def until_change(seconds: float) -> None:
            begin = time.monotonic()
            try:
                if not pubsub.subscribed:
                    pubsub.subscribe(self._channel)
                # The first message confirms the subscription; what was added before has to be looked for after it.
                pubsub.get_message(timeout=seconds)
            except self._error:
                pubsub.close()  # subscribe again
                time.sleep(max(0.0, begin + seconds - time.monotonic()))

        try:
            yield until_change
        finally:
            pubsub.close()

    def close(self) -> None:
        """See `Records`."""
        self._redis.close()

    def _keys(self, root: str) -> list[str]:
        """Returns the key of `root`, existing or not, and those of all names below it.

        A scan, unlike KEYS, blocks the server only for a moment at a time. It may return a key twice.
        """
        key = self._prefix + root
        pattern = "".join(f"\\{letter}" if letter in "*?[]\\" else letter for letter in key)
        return [key, *sorted({*self._redis.scan_iter(match=f"{pattern}/*", count=_SCAN_COUNT)})]

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            raise NameEntryError(
                f"Redis at {self.address} failed ({one_line(error)}); check that the server runs at this address"
            ) from error


def _client(redis: Any, url: str, timeout: float) -> Any:
    """Returns a client, which has no connection yet; None if the URL is not valid.

    What redis-py raises for a wrong URL may contain a part of the password, so it is raised no further.
    """
    try:
        client = redis.Redis.from_url(
            url,
            protocol=2,  # replies have the same types in all versions of redis-py
            decode_responses=True,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            # The second try is for connections that were made before a restart of the server.
            retry=redis.retry.Retry(redis.backoff.NoBackoff(), 1),
        )
        client.connection_pool.make_connection()  # which notices options that do not exist
    except (ValueError, TypeError):
        return None
    return client


def _loaded_redis() -> Any:
    with extra("redis", "names on Redis need redis-py"):
        for module in ("redis.backoff", "redis.retry"):
            importlib.import_module(module)
        return importlib.import_module("redis")
