"""Addresses of servers: the kinds of them, and what of one may be shown, because it may contain a password."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["require_scheme", "scheme_of", "shows_hosts", "without_secrets"]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_HOST = r"(?:\[[0-9A-Fa-f:.]+\]|[\w.-]*)(?::\d+)?"
_HOSTS = re.compile(rf"(?:[^@/?#]*@)?({_HOST}(?:,{_HOST})*)")


def scheme_of(address: str) -> str:
    """Returns "redis" for "redis://host:port"; an empty string for a text that is no address of a server."""
    found = _SCHEME.fullmatch(address)
    return "" if found is None else found[1].lower()


def require_scheme(address: str, schemes: Sequence[str], what: str, others: str = "") -> None:
    """Raises ValueError, which shows no secret, for an address that begins with none of the schemes.

    Args:
        address: the address.
        schemes: the known ones.
        what: what the address is of, for the error.
        others: what else there may be in its place, for the error.
    """
    scheme = scheme_of(address)
    if scheme not in schemes:
        known = ", ".join(f'"{one}://…"' for one in schemes)
        came = f'"{scheme}://…"' if scheme else "a text without one of these"
        raise ValueError(f"{what} is {came}, expected {known}{others}")


def shows_hosts(address: str) -> bool:
    """Returns whether an address has its parts where they belong, so that a password cannot be taken for a host."""
    return not without_secrets(address).endswith("…")


def without_secrets(address: str) -> str:
    """Returns an address for messages: its scheme, hosts and path.

    User, password and options are left out. If the address has an "@" or a port that is none where they do not
    belong, as with a password that is not percent-encoded, only the scheme is left.
    """
    found = _SCHEME.fullmatch(address)
    if found is None:
        return "…"
    rest = re.split("[?#]", found[2])[0]
    hosts = _HOSTS.match(rest)
    path = "" if hosts is None else rest[hosts.end() :]
    if hosts is None or found[2].rfind("@") > hosts.start(1) or (path and not path.startswith("/")):
        return f"{found[1]}://…"
    return f"{found[1]}://{hosts[1]}{path}"
