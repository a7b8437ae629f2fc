"""An index of metadata in MongoDB, for queries by aggregation pipelines and for programs that read it there."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

from headrace.errors import ParameterDBError, one_line
from headrace.extras import extra
from headrace.services.addresses import require_scheme, shows_hosts, without_secrets
from headrace.services.parameters.index import Entry, Index, Query
from headrace.services.parameters.metadata import Pipeline

__all__ = ["SCHEMES", "MongoIndex", "require_mongo"]

#: Beginnings of addresses of MongoDB.
SCHEMES = ("mongodb", "mongodb+srv")


def require_mongo(url: str) -> None:
    """Checks that queries can be asked of MongoDB at an address.

    Raises:
        ValueError: if it is no address of MongoDB.
        ImportError: if pymongo is missing, with the extra that has it.
    """
    require_scheme(url, SCHEMES, "metadata", ', "sqlite" or None')
    pymongo = _pymongo()
    valid = False
    with suppress(pymongo.errors.PyMongoError, ValueError):  # whose text may contain a part of the password
        # Addresses of the other scheme have the same parts, but parsing them asks the network for the hosts.
        valid = bool(pymongo.uri_parser.parse_uri(f"mongodb://{url.partition('://')[2]}"))
    if not valid or not shows_hosts(url):
        raise ValueError(
            f"metadata is {without_secrets(url)}, which is no address of MongoDB, expected "
            '"mongodb://user:password@host:port/database" with special characters of the password percent-encoded '
            "(urllib.parse.quote)"
        )


def _pymongo() -> Any:
    """Returns pymongo.

    Raises:
        ImportError: if it is missing, with the extra that has it.
    """
    with extra("mongo", "metadata in MongoDB needs pymongo"):
        import pymongo.uri_parser
    return pymongo


class MongoIndex(Index):
    """An index in the collection "parameters" of a MongoDB database.

    A document has the fields `database`, `name`, `version`, `state` and `metadata`.

    Args:
        url: "mongodb://host:port", with the name of a database if it is not "headrace".
        database: returns the id of the folder, which keeps apart folders that share a server.
        timeout: seconds to wait for the server.
    """

    def __init__(self, url: str, database: Callable[[], str], timeout: float) -> None:
        self._url, self._timeout = url, timeout
        self._new_database, self._database = database, ""
        self._clients: dict[int, Any] = {}  # by process id
        self._lock = threading.Lock()

    def search(
        self, name: str, states: Mapping[int, str], metadata_of: Callable[[int], dict[str, Any] | None], query: Query
    ) -> list[int]:
        """See `Index`."""
        pymongo = _pymongo()
        try:
            self._connect(pymongo)
            return super().search(name, states, metadata_of, query)
        except pymongo.errors.PyMongoError as error:
            raise ParameterDBError(
                f"MongoDB at {without_secrets(self._url)} did not answer a query for {name!r} ({one_line(error)}); "
                "start it, or get a version by its number or tag, which needs no server"
            ) from error

    def close(self) -> None:
        """See `Index`."""
        client = self._clients.pop(os.getpid(), None)
        if client is not None:
            client.close()

    def _connect(self, pymongo: Any) -> None:
        """Connects at the first query of each process; threads share a client, and forked processes must not."""
        with self._lock:
            if os.getpid() in self._clients:
                return
            self._database = self._new_database()
            milliseconds = int(self._timeout * 1000)
            client = pymongo.MongoClient(
                self._url,
                serverSelectionTimeoutMS=milliseconds,
                connectTimeoutMS=milliseconds,
                socketTimeoutMS=milliseconds,
            )
            try:
                _collection(client).create_index([("database", 1), ("name", 1), ("version", -1)])
            except BaseException:
                client.close()
                raise
            self._clients[os.getpid()] = client

    @property
    def _collection(self) -> Any:
        return _collection(self._clients[os.getpid()])

    def _of(self, name: str) -> dict[str, Any]:
        return {"database": self._database, "name": name}

    def _states(self, name: str) -> dict[int, str]:
        found = self._collection.find(self._of(name), {"version": 1, "state": 1})
        return {document["version"]: document["state"] for document in found}

    def _change(self, name: str, entries: Sequence[Entry], gone: Collection[int]) -> None:
        if gone:
            self._collection.delete_many({**self._of(name), "version": {"$in": [*gone]}})
        for version, state, metadata in entries:
            key = f"{self._database}/{name}/{version}"
            document = {"_id": key, **self._of(name), "version": version, "state": state, "metadata": metadata}
            self._collection.replace_one({"_id": key}, document, upsert=True)

    def _found(self, name: str, query: Query) -> list[int]:
        if isinstance(query, Pipeline):
            documents = [*self._collection.aggregate([{"$match": self._of(name)}, *query.stages])]
            if not all(isinstance(document.get("version"), int) for document in documents):
                raise ValueError(
                    "the last stage of a pipeline leaves out the field version, expected documents with it"
                )
            return [int(document["version"]) for document in documents]
        wanted: dict[str, Any] = self._of(name)
        for condition in query:
            wanted.setdefault(f"metadata.{condition.field}", {})[condition.operator] = condition.operand
        return sorted((int(found["version"]) for found in self._collection.find(wanted, {"version": 1})), reverse=True)


def _collection(client: Any) -> Any:
    return client.get_default_database("headrace")["parameters"]
