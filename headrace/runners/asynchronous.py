"""`AsyncRl` and `AsyncRlEval`: a sampler that collects beside the learner, and fills its replay."""

from __future__ import annotations

from headrace.algos.base import Algo
from headrace.runners.minibatch import MinibatchRl, MinibatchRlEval
from headrace.samplers.asynchronous import AsyncSamplerBase
from headrace.samplers.base import BaseSampler

__all__ = ["AsyncRl", "AsyncRlEval"]


class AsyncRl(MinibatchRl):
    """`MinibatchRl` with an asynchronous sampler: each batch is collected while the algorithm learns from those before.

    An algorithm with a replay has it filled in the sampler process. Both sides keep its `replay_ratio`: the learner
    does the updates that a batch asks for and then waits for the next, and the sampler, `n_slots` − 1 batches ahead,
    waits for the learner. A run takes the longer of sampling and learning, not their sum. Arguments as of `Runner`.
    """

    def _before_start(self) -> None:
        feed(self.sampler, self.algo)


class AsyncRlEval(MinibatchRlEval):
    """`MinibatchRlEval` in the same way; evaluations take place between two batches."""

    def _before_start(self) -> None:
        feed(self.sampler, self.algo)


def feed(sampler: BaseSampler, algo: Algo) -> None:
    """Has the sampler process fill the algorithm's replay, if it has one.

    Raises TypeError for a sampler that does not collect in a process of its own.
    """
    if not isinstance(sampler, AsyncSamplerBase):
        raise TypeError(
            f"asynchronous runners take an asynchronous sampler, got a {type(sampler).__name__}; use "
            f"Async{type(sampler).__name__}, or MinibatchRl, which takes any"
        )
    sink = algo.sink()
    if sink is not None:
        sampler.feed(sink)
