"""The environments of an actor: slices that are stepped in turn, so that none of them waits for another's actions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from headrace.buffers.samples import build_slot
from headrace.buffers.tree import tree_copy_into, tree_leaves, tree_map, tree_rows
from headrace.envs.factory import EnvFactory
from headrace.processes.status import Status
from headrace.rng import Stream, env_keys, uniforms
from headrace.samplers.collection.loop import null_rows, private_array
from headrace.samplers.collection.make_envs import SliceConfig
from headrace.samplers.collection.resets import RESET_MODES
from headrace.samplers.collection.slice import SliceReport, TrainSlice
from headrace.samplers.collection.slot_view import SlotView
from headrace.samplers.traj_info import TrajInfo
from headrace.system.acting import Acting, Answer, request_of
from headrace.system.chunks import RunningReturns, chunk_of
from headrace.types import Tree

__all__ = ["RemoteSlice", "slice_config"]


def slice_config(
    factory: EnvFactory,
    env_ids: Sequence[int],
    *,
    seed: int,
    discount: float,
    env_info_keys: Any,
    max_decorrelation_steps: int,
) -> SliceConfig:
    """Returns the configuration of a slice of training environments.

    Args:
        factory: makes the environments.
        env_ids: their global numbers.
        seed: of all randomness.
        discount: for the statistics of episodes.
        env_info_keys: see `SamplerOptions`.
        max_decorrelation_steps: see `SamplerOptions`.
    """
    return SliceConfig(
        factory=factory,
        env_ids=tuple(env_ids),
        seed=seed,
        traj_info=(TrajInfo, {"discount": discount}),
        reset_mode=RESET_MODES["mid_batch"],
        max_decorrelation_steps=max_decorrelation_steps,
        env_info_keys=env_info_keys,
        deterministic=False,
        eval_factory=factory,
        eval_env_ids=(),
        eval_episodes=1,
        eval_max_T=1,
    )


class RemoteSlice:
    """A slice of environments whose actions come from a policy elsewhere.

    The caller sends what `request` returns, and gives what comes back to `answer`. While it waits, it steps others.

    Args:
        config: the environments.
        acting: how the policy acts.
        status: where this process records what it is doing.
    """

    def __init__(self, config: SliceConfig, acting: Acting, status: Status) -> None:
        self._acting, spec = acting, acting.spec
        self._T, n = spec.batch.T, spec.batch.B
        self._envs = TrainSlice(config, status)
        try:
            self._slot = build_slot(spec, private_array)
            self._envs.setup(spec, [SlotView(self._slot, 0)])
        except BaseException:
            self._envs.close()
            raise
        self._keys = env_keys(config.seed, Stream.ACTION, config.env_ids)
        # Row T is never drawn: it asks for values, and any number strictly between 0 and 1 will do.
        self._noise = np.full((self._T + 1, n, acting.noise_size), 0.5, np.float32)
        self._n_uniforms = acting.noise_size - acting.noise_has_env_id
        if acting.noise_has_env_id:
            self._noise[..., -1] = config.env_ids
        self._state: Tree = null_rows(spec.state, n) if tree_leaves(spec.state) else None
        self._index = -1
        self._rows: Iterator[int] | None = None
        self._returns = RunningReturns(n, config.traj_info[1]["discount"])
        self._final_states: list[Tree] = []
        self._report: SliceReport | None = None  # of a chunk that lacks nothing but the values of row T
        self._t = 0

    @property
    def spaces(self) -> Any:
        """The spaces of one environment."""
        return self._envs.spaces

    @property
    def collecting(self) -> bool:
        """Whether a chunk has begun and not ended."""
        return self._rows is not None or self._report is not None

    def begin(self) -> None:
        """Begins the next chunk, in the memory of the last one."""
        self._index += 1
        if self._n_uniforms:
            drawn = uniforms(self._keys, self._index * self._T, self._T, self._n_uniforms)
            self._noise[: self._T, :, : self._n_uniforms] = drawn
        self._final_states = []
        self._rows = self._envs.batch(self._index, reads_previous=True)
        self._enter(next(self._rows))

    def request(self) -> dict[str, Any]:
        """Returns the request for the actions of the present row, or after the last one, for the values of row T."""
        return request_of(self._slot, self._t, self._noise[self._t], self._state, self._report is not None)

    def answer(self, answer: Answer) -> tuple[dict[str, Any], SliceReport] | None:
        """Takes what was requested, and steps the environments if it was actions.

        Returns:
            The chunk, if it is complete now, and the report of its slice; the chunk is valid until `begin`.
        """
        slot, t = self._slot, self._t
        if self._report is not None:
            report, self._report = self._report, None
            assert slot.bootstrap_value is not None
            assert answer.value is not None
            slot.bootstrap_value[0] = answer.value
            return self._finished(report), report
        tree_copy_into(tree_rows(slot.action, t), answer.action)
        tree_copy_into(tree_rows(slot.agent_info, t), answer.agent_info)
        slot.version[t] = answer.version
        if self._state is not None:
            tree_copy_into(self._state, answer.state)
        assert self._rows is not None
        following = next(self._rows, None)
        if following is not None:
            self._enter(following)
            return None
        self._rows = None
        self._enter(self._T)
        report = self._envs.report()
        if slot.bootstrap_value is not None:
            self._report = report
            return None
        return self._finished(report), report

    def close(self) -> None:
        """Closes the environments."""
        self._envs.close()

    def _enter(self, t: int) -> None:
        """Keeps the states of episodes that ended in step t − 1; zeros the state where row t `is_first`."""
        self._t = t
        if self._state is None:
            return
        slot = self._slot
        if t == self._T:
            tree_copy_into(tree_rows(slot.last_state, 0), self._state)
        if t:
            ended = np.flatnonzero(slot.terminated[t - 1] | slot.truncated[t - 1])
            if len(ended):
                self._final_states.append(tree_map(np.copy, tree_rows(self._state, ended)))
        for leaf in tree_leaves(self._state):
            leaf[slot.is_first[t]] = 0
        if t == 0:
            tree_copy_into(tree_rows(slot.first_state, 0), self._state)

    def _finished(self, report: SliceReport) -> dict[str, Any]:
        (region,) = self._slot.final
        returns = self._returns.advance(self._slot)
        if self._state is None or not self._final_states:
            return chunk_of(self._slot, report, returns)
        states = tree_map(lambda *leaves: np.concatenate(leaves), *self._final_states)
        n, fits = report.n_final, len(region.time)
        tree_copy_into(tree_rows(region.state, slice(0, min(n, fits))), tree_rows(states, slice(0, fits)))
        return chunk_of(self._slot, report, returns, tree_rows(states, slice(fits, None)) if n > fits else None)
