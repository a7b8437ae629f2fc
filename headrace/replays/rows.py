"""The flags of a step in a ring, under an earlier name of the module `headrace.replays.ring`."""

from headrace.replays.ring import FIRST, FOLLOWS, PADDED, TERMINATED, TRUNCATED, VALID, ZEROS

__all__ = ["FIRST", "FOLLOWS", "PADDED", "TERMINATED", "TRUNCATED", "VALID", "ZEROS"]
