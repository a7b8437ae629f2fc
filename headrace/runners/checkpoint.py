"""Public import path of the functions that read and write checkpoints as data."""

from __future__ import annotations

from headrace.checkpoints.file import load_checkpoint, save_checkpoint

__all__ = ["load_checkpoint", "save_checkpoint"]
