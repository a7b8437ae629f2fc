"""Metadata of versions: plain values, changes to them, and queries, which have the meaning that they have in MongoDB.

A query is a dict from fields to values or operators, all of which must hold::

    {"kind": "main", "win_rate": {"$gt": 0.4, "$lte": 0.6}, "env.level": {"$in": [1, 2]}}

A dot leads into a nested dict. Numbers, booleans and strings never equal each other (1 is not True), comparisons hold
only between two numbers or two strings, and a missing field equals None.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headrace.schema import shown

__all__ = ["Condition", "Pipeline", "changed", "conditions", "matches", "plain_metadata"]

_KEY = re.compile(r"[^.$\0][^.\0]*")
_DEEPEST = 16
_MISSING = object()
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}
_OPERATORS = ("$eq", "$ne", *_COMPARISONS, "$in", "$nin", "$exists")


@dataclass(frozen=True)
class Condition:
    """A condition on one field.

    Args:
        field: names of nested dicts and the field, with dots between them.
        operator: one of MongoDB's: "$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$exists".
        operand: what the field is compared with.
    """

    field: str
    operator: str
    operand: Any


@dataclass(frozen=True)
class Pipeline:
    """An aggregation pipeline of MongoDB over documents with `version` and `metadata`.

    Args:
        stages: its stages.
    """

    stages: Sequence[Mapping[str, Any]]


def plain_metadata(value: Any, where: str, depth: int = 0) -> dict[str, Any]:
    """Returns a copy of metadata, with Python's numbers in the places of NumPy's.

    Raises:
        ValueError: if it is something other than a dict of None, booleans, numbers, strings and such dicts.
    """
    if not isinstance(value, Mapping) or depth == _DEEPEST:
        raise ValueError(f"{where} is {shown(value)}, expected a dict, nested at most {_DEEPEST} times")
    for key in value:
        if type(key) is not str or not _KEY.fullmatch(key):
            raise ValueError(f"{where} has the key {shown(key)}, expected a string without dots that begins without $")
    return {
        key: plain_metadata(item, f"{where}[{key!r}]", depth + 1)
        if isinstance(item, Mapping)
        else _plain(item, f"{where}[{key!r}]")
        for key, item in value.items()
    }


def _plain(value: Any, where: str) -> Any:
    """Returns None, a boolean, a number or a string."""
    if isinstance(value, np.generic):
        value = value.item()
    finite = (type(value) is float and math.isfinite(value)) or (type(value) is int and -(2**63) <= value < 2**63)
    if not finite and value is not None and type(value) not in (bool, str):
        raise ValueError(f"{where} is {shown(value)}, expected a finite number, a boolean, a string or None")
    return value


def changed(metadata: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns metadata after changes.

    Args:
        metadata: the metadata before.
        changes: new values of fields; or `{"$inc": n}`, which adds to a number; or `{"$mean": x}`, which updates a
            running mean, with `"$weight": n` if `x` is itself a mean of n. The number of values of the mean of a field
            is in the field with "_count" added to its name. If there is none, the mean begins with x.

    Raises:
        ValueError: for changes of another form, or of a field that is no number.
    """
    if not isinstance(changes, Mapping):
        raise ValueError(f"changes is {shown(changes)}, expected a dict of fields")
    result = dict(metadata)
    for key, change in changes.items():
        operators = {*change} if isinstance(change, Mapping) else set()
        if operators == {"$inc"}:
            result[key] = _number(result.get(key, 0), key) + _number(change["$inc"], "$inc")
        elif operators in ({"$mean"}, {"$mean", "$weight"}):
            weight = _number(change.get("$weight", 1), "$weight")
            if weight <= 0:
                raise ValueError(f"$weight is {weight}, expected a number above 0")
            before = _number(result.get(f"{key}_count", 0), f"{key}_count")
            mean = _number(result[key], key) if before else 0.0
            result[f"{key}_count"] = before + weight
            result[key] = mean + (_number(change["$mean"], "$mean") - mean) * (weight / (before + weight))
        else:
            result[key] = change
    return plain_metadata(result, "metadata")


def _number(value: Any, where: str) -> Any:
    value = _plain(value, where)
    if type(value) not in (int, float):
        raise ValueError(f"{where} is {shown(value)}, expected a number")
    return value


def conditions(query: Mapping[str, Any]) -> list[Condition]:
    """Returns the conditions of a query.

    Raises:
        ValueError: if it is no query that all kinds of metadata answer alike.
    """
    found = []
    for field, wanted in query.items():
        if type(field) is not str or not all(_KEY.fullmatch(part) for part in field.split(".")):
            raise ValueError(f"a query has the key {shown(field)}, expected the name of a field")
        for name, operand in wanted.items() if isinstance(wanted, Mapping) else [("$eq", wanted)]:
            found.append(Condition(field, name, _operand(name, operand, f"{field} of a query")))
        if wanted == {}:
            raise ValueError(f"{field} of a query is an empty dict, expected a value or operators")
    return found


def _operand(name: Any, operand: Any, where: str) -> Any:
    if name not in _OPERATORS:
        raise ValueError(f"{where} has the operator {shown(name)}, expected one of {', '.join(_OPERATORS)}")
    where += f", {name},"
    if name in ("$in", "$nin"):
        if not isinstance(operand, list | tuple):
            raise ValueError(f"{where} is {shown(operand)}, expected a list")
        return [_plain(item, where) for item in operand]
    operand = _plain(operand, where)
    if name in _COMPARISONS and type(operand) not in (int, float, str):
        raise ValueError(f"{where} is {shown(operand)}, expected a number or a string")
    if name == "$exists" and type(operand) is not bool:
        raise ValueError(f"{where} is {shown(operand)}, expected True or False")
    return operand


def matches(wanted: Sequence[Condition], metadata: Mapping[str, Any]) -> bool:
    """Returns whether metadata meets all conditions."""
    return all(_holds(condition, _field(metadata, condition.field)) for condition in wanted)


def _field(metadata: Any, field: str) -> Any:
    for part in field.split("."):
        if not isinstance(metadata, Mapping) or part not in metadata:
            return _MISSING
        metadata = metadata[part]
    return metadata


def _holds(condition: Condition, value: Any) -> bool:
    name, operand = condition.operator, condition.operand
    if name in _COMPARISONS:
        kinds = (str,) if type(operand) is str else (int, float)
        return type(value) in kinds and _COMPARISONS[name](value, operand)
    if name == "$exists":
        return (value is not _MISSING) is operand
    among = any(_equal(value, item) for item in (operand if name in ("$in", "$nin") else [operand]))
    return among == (name in ("$eq", "$in"))


def _equal(value: Any, operand: Any) -> bool:
    if operand is None:
        return value is None or value is _MISSING
    return (type(value) is bool) == (type(operand) is bool) and bool(value == operand)
