"""PPO, proximal policy optimization with a clipped probability ratio."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from headrace.algos.checks import require
from headrace.algos.pg.base import Losses, PgBatch, PgConfig, PolicyGradientAlgo
from headrace.algos.pg.surrogate import ppo_losses
from headrace.algos.ranks import least_of
from headrace.buffers.tree import tree_leaves, tree_rows
from headrace.config import checked_names, settings_in

__all__ = ["PPO", "PPOConfig"]

#: Batches of up to so many bytes are shuffled as a whole, once per epoch, which saves calls for each minibatch.
_COPIED_BYTES = 1 << 24


@checked_names
@dataclass(frozen=True, kw_only=True)
class PPOConfig(PgConfig):
    """The settings of `PPO`."""

    epochs: int = 10
    """Passes over each batch."""
    minibatches: int = 4
    """Parts into which each pass splits the batch; each part is one update."""
    ratio_clip: float = 0.2
    """ε: how far the ratio π(a|s) / π_old(a|s) may be from 1 before it is clipped."""
    linear_clip_schedule: bool = False
    """Let `ratio_clip` fall linearly to 0 at the end of training."""
    value_clip: float | None = None
    """How far the value may be from the recorded one before it is clipped; None: values are not clipped."""
    recompute_advantages: bool = False
    """Compute advantages and targets of the values again before each pass but the first, from the values of the
    parameters of that moment (Andrychowicz et al., "What matters in on-policy reinforcement learning?", 2021). False:
    all passes learn from those of the values recorded in the batch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("epochs", 1), ("minibatches", 1), ("ratio_clip", 0.0)):
            require(name, getattr(self, name), least, math.inf)
        if self.value_clip is not None:
            require("value_clip", self.value_clip, 0.0, math.inf)


@settings_in(PPOConfig)
class PPO(PolicyGradientAlgo):
    """Takes several epochs of minibatch steps on each batch, with the clipped surrogate objective.

    Schulman et al., "Proximal policy optimization algorithms", 2017, equations 7 and 9. The behaviour policy's
    log-probabilities come from the distributions recorded in the batch.

    Args:
        config: the settings; None: the defaults.
    """

    config: PPOConfig

    def __init__(self, config: PPOConfig | None = None) -> None:
        super().__init__(PPOConfig() if config is None else config)

    def parts(self, itr: int, batch: PgBatch, recomputed: Callable[[], PgBatch]) -> Iterator[PgBatch]:
        """Yields random minibatches of steps or, for recurrent agents, of whole columns; each step once per epoch."""
        recurrent = batch.state is not None
        n = batch.returns.shape[1 if recurrent else 0]
        (n_parts,) = least_of(self.ranks, min(self.config.minibatches, n))
        copies = not recurrent and sum(leaf.nbytes for leaf in tree_leaves(batch)) <= _COPIED_BYTES
        for epoch in range(self.config.epochs):
            if epoch and self.config.recompute_advantages:
                batch = recomputed()
            order = self.permutation(itr, epoch, n)
            shuffled, stop = tree_rows(batch, order) if copies else batch, 0
            for chosen in order.tensor_split(n_parts):
                start, stop = stop, stop + len(chosen)
                if recurrent:
                    part = tree_rows(replace(batch, state=None), (slice(None), chosen))
                    yield replace(part, state=tree_rows(batch.state, chosen))
                else:
                    yield tree_rows(shuffled, slice(start, stop) if copies else chosen)

    def losses(self, itr: int, part: PgBatch) -> Losses:
        """Returns the clipped surrogate, half the squared value error (clipped with `value_clip`), and the entropy."""
        clip = self.config.ratio_clip * ((1.0 - self._progress(itr)) if self.config.linear_clip_schedule else 1.0)
        dist, value = self.forward(part)
        new = dist.log_prob(part.action), dist.entropy(), value
        old = part.log_prob, part.advantage, part.returns, part.value
        if part.valid is not None:
            new, old = tree_rows((new, old), part.valid)
        losses = ppo_losses(new, old, clip, self.config.value_clip)
        policy, value_loss, entropy, divergence, clipped = losses.unbind()
        info = {"approxKl": divergence.detach(), "clipFraction": clipped.detach()}
        return Losses(policy, value_loss, entropy, info)
