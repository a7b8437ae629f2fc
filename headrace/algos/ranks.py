"""What several learners, the ranks of one training, exchange while they learn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from headrace.models.norm import RunningNorm

__all__ = ["ALONE", "Ranks", "least_of", "moments", "same_buffers"]


class Ranks:
    """The learners of a training, seen by one of them; this base class is a training with a single one.

    Every rank must make the same calls in the same order.
    """

    #: Number of this learner, 0 to world_size − 1.
    rank: int = 0
    #: Number of learners.
    world_size: int = 1

    def mean_(self, tensor: torch.Tensor) -> None:
        """Replaces a tensor, in place, by its mean over ranks; it has the same shape and dtype in all of them."""

    def broadcast_(self, tensor: torch.Tensor) -> None:
        """Replaces a tensor, in place, by that of rank 0."""

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns the tensors of all ranks, `[world_size, ...]`: small ones, of the same shape and dtype."""
        return tensor[None]


#: The only learner of a training.
ALONE = Ranks()


def least_of(ranks: Ranks, *numbers: int) -> list[int]:
    """Returns the least value of each number over ranks, so that all ranks decide alike."""
    if ranks.world_size == 1:
        return list(numbers)
    own = torch.tensor(numbers, dtype=torch.int64)
    return [int(number) for number in ranks.gather(own).amin(dim=0)]


def moments(ranks: Ranks, values: torch.Tensor) -> tuple[int, torch.Tensor, torch.Tensor]:
    """Returns number, mean and variance of the values of all ranks.

    Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.

    Args:
        ranks: the ranks.
        values: those of this rank, float `[...]`; on other ranks there may be another number.

    Returns:
        The number, and two scalars in the dtype of the values; they mean nothing if the number is 0.
    """
    n = values.numel()
    mean, var = (values.mean(), values.var(correction=0)) if n else values.new_zeros(2).unbind()
    if ranks.world_size == 1:
        return n, mean, var
    own = torch.stack([torch.full_like(mean, n), mean, var]).double()
    counts, means, variances = ranks.gather(own).unbind(dim=1)
    total = counts.sum()
    mean_of_all = (counts * means).sum() / total
    var_of_all = (counts * (variances + (means - mean_of_all).square())).sum() / total
    return int(total), mean_of_all.to(mean.dtype), var_of_all.to(var.dtype)


@contextmanager
def same_buffers(model: torch.nn.Module, ranks: Ranks) -> Iterator[None]:
    """Makes the buffers of a model the same on all ranks after the block, in which each rank learned from its batch.

    Statistics of observations (`RunningNorm`) then include the observations of all ranks. Other buffers, such as those
    of batch normalization, become those of rank 0.
    """
    if ranks.world_size == 1:
        yield
        return
    norms = [module for module in model.modules() if isinstance(module, RunningNorm)]
    before = [norm.statistics() for norm in norms]
    yield
    of_norms = {id(buffer) for norm in norms for buffer in norm.buffers()}
    for norm, then in zip(norms, before, strict=True):
        norm.load_statistics(_merged(then, ranks.gather(norm.statistics())))
    for buffer in model.buffers():
        if id(buffer) not in of_norms:
            ranks.broadcast_(buffer)


def _merged(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Returns statistics that contain what each rank added to those that all had before.

    Args:
        before: count, mean and variance, float64 `[3, size]`.
        after: the same of each rank, float64 `[world_size, 3, size]`.
    """
    # Sums about the mean before, which are additive and, unlike sums about zero, lose no digits to a large mean.
    count, centre, var = before
    counts, shifts, variances = after[:, 0], after[:, 1] - centre, after[:, 2]
    others = len(after) - 1  # the ranks that contain what was there before once too often
    total = counts.sum(dim=0) - others * count
    shift = (counts * shifts).sum(dim=0) / total.clamp(min=1.0)
    squares = (counts * (variances + shifts.square())).sum(dim=0) - others * count * var
    merged = torch.stack([total, centre + shift, squares / total.clamp(min=1.0) - shift.square()])
    return torch.where(total > 0, merged, before)
