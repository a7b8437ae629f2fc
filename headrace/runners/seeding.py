"""What torch draws while an algorithm learns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from headrace.rng import Stream

__all__ = ["torch_seeded"]


@contextmanager
def torch_seeded(seed: int | None, itr: int, device: torch.device) -> Iterator[None]:
    """Inside, torch's global generators are a function of (seed, itr), for models that draw from them (dropout);
    outside they are as they were. device: the agent's.
    """
    assert seed is not None
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence(seed, spawn_key=(int(Stream.LEARNING), itr)).generate_state(1)[0]))
        yield
