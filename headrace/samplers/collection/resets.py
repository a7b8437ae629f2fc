"""When environments whose episodes ended are reset: one value for each way; nothing else depends on its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["RESET_MODES", "ResetMode"]


@dataclass(frozen=True)
class ResetMode:
    """When an environment whose episode ended is reset.

    Args:
        resets: how often each environment may be reset in the step that ends its episode, within one batch or one
            evaluation; then it waits, and its time steps are padding. None: without limit. A tuple has one number per
            environment; -1: it runs no episode at all.
        between_batches: whether environments that wait are reset before the next batch.
    """

    resets: int | tuple[int, ...] | None
    between_batches: bool

    @property
    def waits(self) -> bool:
        """Whether environments may wait: they must be able to stand still while others step."""
        return self.resets is not None

    @staticmethod
    def episodes(n: int | Sequence[int]) -> ResetMode:
        """Returns the mode in which each environment runs n episodes and then waits for the next restart.

        Args:
            n: number of episodes, or one number per environment.
        """
        resets = n - 1 if isinstance(n, int) else tuple(one - 1 for one in n)
        return ResetMode(resets=resets, between_batches=False)


#: The values of the option `reset_mode`.
RESET_MODES = {
    "mid_batch": ResetMode(resets=None, between_batches=False),
    "wait": ResetMode(resets=0, between_batches=True),
}
