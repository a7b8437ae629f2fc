"""Seeds torch's global generators while an algorithm learns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from headrace.rng import Stream

__all__ = ["torch_seeded"]


@contextmanager
def torch_seeded(seed: int | None, itr: int, device: torch.device, rank: int = 0) -> Iterator[None]:
    """Seeds torch's global generators by (seed, itr, rank) inside the context, and restores them afterwards.

    This makes models that draw from them (dropout) reproducible.

    Args:
        seed: seed of the run.
        itr: number of the batch.
        device: device of the agent.
        rank: number of the learner, each of which draws its own numbers.
    """
    assert seed is not None
    # `torch.manual_seed` would seed every kind of device, which takes 0.2 ms.
    generators = [torch.default_generator]
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    before = [generator.get_state() for generator in generators]
    address = (int(Stream.LEARNING), itr, rank)[: 3 if rank else 2]
    drawn = np.random.SeedSequence(seed, spawn_key=address).generate_state(1)
    try:
        for generator in generators:
            generator.manual_seed(int(drawn[0]))
        yield
    finally:
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)
