"""Signatures of files that run code when they are read: only files written by this user are read again."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from headrace.storage import state_folder

__all__ = ["Sign", "signature", "signer"]

#: Returns the signature, 32 bytes, of some content.
Sign = Callable[[bytes], bytes]

_KEY_BYTES = 32


def signature(content: bytes) -> bytes:
    """Returns the HMAC-SHA256 of `content` with the user's own key, 32 bytes.

    Raises:
        OSError: as `signer`.
    """
    return signer()(content)


def signer() -> Sign:
    """Returns a function that signs with the user's key.

    The key is stored in `$XDG_STATE_HOME/headrace/key` (`~/.local/state/headrace/key`), readable by its owner only, and
    is created when it is first needed.

    Raises:
        OSError: if the key cannot be stored.
        PermissionError: if others could have read the key, or changed its folder.
    """
    key = _key()
    return lambda content: hmac.digest(key, content, hashlib.sha256)


def _key() -> bytes:
    path = state_folder("the key") / "key"
    if not path.exists():
        _make(path)
    with path.open("rb") as file:
        about = os.fstat(file.fileno())
        if about.st_uid != os.geteuid() or stat.S_IMODE(about.st_mode) & 0o077:
            raise PermissionError(f"{path} could be read by other users; remove it, and a new key will be made")
        key = file.read()
    if len(key) != _KEY_BYTES:
        raise PermissionError(f"{path} is not a key of {_KEY_BYTES} bytes; remove it, and a new key will be made")
    return key


def _make(path: Path) -> None:
    """Creates the key. If two processes do so at once, the first to link its file wins; no partial key is ever read."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        os.unlink(temporary)
