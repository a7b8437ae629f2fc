"""An index of metadata in MongoDB, for queries by aggregation pipelines and for programs that read it there."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from headrace.errors import ParameterDBError, one_line
from headrace.services.parameters.index import Entry, Index, Query
from headrace.services.parameters.metadata import Pipeline

__all__ = ["MongoIndex", "require_pymongo"]


def require_pymongo() -> Any:
    """Returns pymongo.

    Raises:
        ImportError: if it is missing, with the extra that has it.
    """
    try:
        import pymongo
    except ImportError as error:
        raise ImportError(f'metadata in MongoDB needs pymongo ({error}); pip install "headrace[mongo]"') from error
    return pymongo


class MongoIndex(Index):
    """An index in the collection "parameters" of a MongoDB database.

    A document has the fields `database`, `name`, `version`, `state` and `metadata`.

    Args:
        url: "mongodb://host:port", with the name of a database if it is not "headrace".
        database: id of the folder, which keeps apart folders that share a server.
        timeout: seconds to wait for the server.
    """

    def __init__(self, url: str, database: str, timeout: float) -> None:
        self._url, self._database, self._timeout = url, database, timeout
        self._client: Any = None
        self._owner = 0

    def search(
        self, name: str, states: Mapping[int, str], metadata_of: Callable[[int], dict[str, Any] | None], query: Query
    ) -> list[int]:
        """See `Index`."""
        pymongo = require_pymongo()
        try:
            return super().search(name, states, metadata_of, query)
        except pymongo.errors.PyMongoError as error:
            server = self._url.rpartition("@")[2].removeprefix("mongodb://")  # without the password
            raise ParameterDBError(
                f"MongoDB at {server} did not answer a query for {name!r} ({one_line(error)}); start it, or get a "
                "version by its number or tag, which needs no server"
            ) from error

    def close(self) -> None:
        """See `Index`."""
        client, self._client = self._client, None
        if client is not None and self._owner == os.getpid():
            client.close()

    @property
    def _collection(self) -> Any:
        """The collection; a forked process connects by itself."""
        if self._client is None or self._owner != os.getpid():
            milliseconds = int(self._timeout * 1000)
            self._owner = os.getpid()
            self._client = require_pymongo().MongoClient(
                self._url,
                serverSelectionTimeoutMS=milliseconds,
                connectTimeoutMS=milliseconds,
                socketTimeoutMS=milliseconds,
            )
            collection = self._client.get_default_database("headrace")["parameters"]
            collection.create_index([("database", 1), ("name", 1), ("version", -1)])
        return self._client.get_default_database("headrace")["parameters"]

    def _of(self, name: str) -> dict[str, Any]:
        return {"database": self._database, "name": name}

    def _states(self, name: str) -> dict[int, str]:
        return {found["version"]: found["state"] for found in self._collection.find(self._of(name))}

    def _change(self, name: str, entries: Sequence[Entry], gone: Collection[int]) -> None:
        if gone:
            self._collection.delete_many({**self._of(name), "version": {"$in": [*gone]}})
        for version, state, metadata in entries:
            key = f"{self._database}/{name}/{version}"
            document = {**self._of(name), "version": version, "state": state, "metadata": metadata}
            self._collection.replace_one({"_id": key}, document, upsert=True)

    def _found(self, name: str, query: Query) -> list[int]:
        if isinstance(query, Pipeline):
            documents = [*self._collection.aggregate([{"$match": self._of(name)}, *query.stages])]
            if not all(isinstance(document.get("version"), int) for document in documents):
                raise ValueError("the last stage of a pipeline leaves out the field version, expected documents with it")
            return [int(document["version"]) for document in documents]
        wanted: dict[str, Any] = self._of(name)
        for condition in query:
            wanted.setdefault(f"metadata.{condition.field}", {})[condition.operator] = condition.operand
        return sorted((int(found["version"]) for found in self._collection.find(wanted)), reverse=True)
