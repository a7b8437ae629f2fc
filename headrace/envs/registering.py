"""Finds the installed package that would register an unregistered id, judging by its files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path

__all__ = ["NotRegistered", "unregistered", "where_registered"]

#: Words in the names of packages that say nothing about their environments.
_COMMON = {"gym", "gymnasium", "env", "envs", "rl"}


class NotRegistered(LookupError):
    """No package has registered an id; the message says what to write instead."""


def unregistered(name: str, registered: Iterable[str], error: Exception, prefix: str = "") -> Exception:
    """Returns the error for an unregistered id: NotRegistered, or `error` if the id is misspelled or names its module.

    Args:
        name: the id.
        registered: the registered ids.
        error: the error of the registry.
        prefix: "gym:" for ids of old gym.
    """
    what_to_write = "" if ":" in name else where_registered(name, registered, prefix)
    return NotRegistered(what_to_write) if what_to_write else error


def where_registered(env_id: str, registered: Iterable[str], prefix: str = "") -> str:
    """Returns what to write for an id, with the module that registers it if known; empty if the id is misspelled.

    Args:
        env_id: the id.
        registered: the registered ids.
        prefix: "gym:" for ids of old gym.
    """
    name = _name(env_id)
    if get_close_matches(name.lower(), [_name(one).lower() for one in registered], n=1, cutoff=0.8):
        return ""
    found = sorted({module for distribution in metadata.distributions() for module in _modules(distribution, name)})
    if len(found) == 1:
        return f"the package {found[0].rpartition(':')[2]} registers it when it is imported: {found[0]}:{env_id}"
    likely = f" ({', '.join(found)} may register it)" if found else ""
    return (
        f"if a package registers it, put its module before the id to import it first: {prefix}module:{env_id}{likely}"
    )


def _name(env_id: str) -> str:
    """Returns an id without namespace and version."""
    return re.sub(r"-v\d+$", "", env_id.rpartition("/")[2])


_NEEDS_GYM = re.compile(r"(gym|gymnasium|nes[-_]py)\b(?!.*\bextra\b)", re.IGNORECASE)


def _modules(distribution: metadata.Distribution, name: str) -> Iterator[str]:
    """Yields the modules of a distribution that may register the id.

    A module qualifies if the id begins with the distribution's name, or if one of its files that register ids contains
    it.
    """
    words = [word for word in re.split(r"[_\W]+", distribution.name.lower()) if word not in _COMMON]
    stem = "".join(words)
    called_alike = len(stem) > 2 and re.sub(r"[_\W]+", "", name.lower()).startswith(stem)
    plugs_in = any(entry.group.startswith("gymnasium.envs") for entry in distribution.entry_points)
    made_for_gym = plugs_in or any(map(_NEEDS_GYM.match, distribution.requires or ()))
    if not (called_alike or made_for_gym) or stem == "headrace":
        return
    texts: dict[str, list[str]] = {}
    for file in distribution.files or ():
        path = Path(str(file.locate()))
        if path.suffix == ".py" and len(file.parts) > 1 and path.exists():
            texts.setdefault(file.parts[0], []).append(path.read_text(errors="ignore"))
    for module, own in texts.items():
        registering = [text for text in own if "register" in text and "gym" in text]
        if registering and (called_alike or any(_has(text, name) for text in registering)):
            yield module if any("gymnasium" in text for text in own) else f"gym:{module}"


def _has(text: str, name: str) -> bool:
    """Returns whether a string in a source file is the name, or whether an f-string begins like it."""
    begins = re.findall(r"[\"'/]([\w.-]{4,}){", text)
    return bool(re.search(rf"[\"'/]{re.escape(name)}\b", text)) or any(map(name.startswith, begins))
