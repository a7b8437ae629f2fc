"""Where programs import these from: a checkpoint of a runner as data."""

from __future__ import annotations

from headrace.checkpoints.file import load_checkpoint, save_checkpoint

__all__ = ["load_checkpoint", "save_checkpoint"]
