"""What messages may contain: one definition for samples, inference and admission."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LIMITS", "Limits"]


@dataclass(frozen=True)
class Limits:
    """What a message may contain; a receiver rejects anything above before it allocates memory.

    Args:
        header_bytes: size of the header.
        payload_bytes: size of all arrays together, uncompressed.
        leaves: arrays and values in the tree.
        depth: levels of nesting.
        text: characters of a string, a name or a key.
    """

    header_bytes: int = 2**16
    payload_bytes: int = 2**30
    leaves: int = 1024
    depth: int = 16
    text: int = 1024


#: What is accepted where nobody says anything else.
LIMITS = Limits()
