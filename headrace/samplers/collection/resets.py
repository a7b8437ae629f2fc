"""When environments whose episodes ended are reset: one value for each way; nothing else depends on its name."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RESET_MODES", "ResetMode"]


@dataclass(frozen=True)
class ResetMode:
    """When an environment whose episode ended is reset.

    Args:
        resets: how often each environment may be reset in the step that ends its episode, within one batch or one
            evaluation; then it waits, and its time steps are padding. None: without limit.
        between_batches: whether environments that wait are reset before the next batch.
    """

    resets: int | None
    between_batches: bool

    @property
    def waits(self) -> bool:
        """Whether environments may wait: they must be able to stand still while others step."""
        return self.resets is not None

    @staticmethod
    def evaluation(episodes: int) -> ResetMode:
        """Returns the mode in which each environment runs so many episodes and then waits for the next evaluation."""
        return ResetMode(resets=episodes - 1, between_batches=False)


#: The values of the option `reset_mode`.
RESET_MODES = {
    "mid_batch": ResetMode(resets=None, between_batches=False),
    "wait": ResetMode(resets=0, between_batches=True),
}
