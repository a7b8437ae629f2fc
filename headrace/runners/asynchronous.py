"""`AsyncRl` and `AsyncRlEval`: the sampler collects in parallel with the learner, and fills its replay."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from time import perf_counter

from headrace.algos.base import Algo
from headrace.runners.minibatch import MinibatchRl, MinibatchRlEval
from headrace.runners.row import Row
from headrace.samplers.base import BaseSampler
from headrace.samplers.presets import AsyncSamplerBase

__all__ = ["AsyncRl", "AsyncRlEval"]


class AsyncRl(MinibatchRl):
    """`MinibatchRl` with an asynchronous sampler: batches are collected while the algorithm learns from earlier ones.

    If the algorithm has a replay, the sampler process fills it. Both processes maintain the `replay_ratio`: the learner
    does the updates for a batch and then waits for the next one, and the sampler, `n_slots` − 1 batches ahead, waits
    for the learner. A run takes as long as the slower of sampling and learning, not their sum. For the arguments, see
    `Runner`.
    """

    def _before_start(self) -> None:
        feed(self.sampler, self.algo)


class AsyncRlEval(MinibatchRlEval):
    """`MinibatchRlEval` with an asynchronous sampler. Evaluations take place between two batches.

    If the sampler has `eval_process=True`, the agent is evaluated in parallel with training, and the log row, which is
    about the `Iteration` it names, is written when the evaluation ends. The next log row and the next checkpoint wait
    for it. If training fails meanwhile, that row is missing.
    """

    _waiting: Row | None = None  # the log row whose evaluation is running

    def _before_start(self) -> None:
        self._async = feed(self.sampler, self.algo)

    def _log(self) -> None:
        if not self._async.evaluates_beside:
            super()._log()
            return
        self._settle()
        begin = perf_counter()
        with self._at_work():
            self._async.begin_evaluation(self.counters.itr)
            row = Row.of(self.counters, self._opt_infos)
            if self._store is not None:  # the agent may have changed by the time its return is known
                row = replace(row, agent=(deepcopy(self._state()), self._async.state(environments=False)))
            self._waiting = row
        self._eval_seconds += perf_counter() - begin

    def _iterate(self) -> None:
        super()._iterate()
        self._look(wait=False)

    def _settle(self) -> None:
        self._look(wait=True)

    def _look(self, wait: bool) -> None:
        """Writes the waiting row if its evaluation has ended, or after waiting for it if `wait`."""
        if self._waiting is None:
            return
        begin = perf_counter()
        with self._at_work():
            infos = self._async.evaluation(wait)
        self._eval_seconds += perf_counter() - begin
        if infos is not None:
            row, self._waiting = self._waiting, None
            self._write(row, infos, self._evaluated(infos))


def feed(sampler: BaseSampler, algo: Algo) -> AsyncSamplerBase:
    """Makes the sampler process fill the algorithm's replay, if it has one.

    Args:
        sampler: an asynchronous sampler, not initialized.
        algo: the algorithm.

    Returns:
        The sampler.

    Raises:
        TypeError: if the sampler does not collect in its own process.
    """
    if not isinstance(sampler, AsyncSamplerBase):
        raise TypeError(
            f"asynchronous runners need an asynchronous sampler, got a {type(sampler).__name__}; use "
            f"Async{type(sampler).__name__}, or MinibatchRl, which accepts any sampler"
        )
    sink = algo.sink()
    if sink is not None:
        sampler.feed(sink)
    return sampler
