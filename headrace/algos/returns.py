"""Returns and advantages, as pure functions over `[T, B]` tensors.

`next_values` defines V'_{t+1}, the value of what follows step t, for all functions of this module:

======================================  =============================================================
step t                                  V'_{t+1}
======================================  =============================================================
terminated (also truncated or not)      0: nothing follows
truncated only                          V(final observation of the episode), see `final_values`
neither, t < T − 1                      V_{t+1}
neither, t = T − 1                      `bootstrap_value`: V of the time step after the batch
======================================  =============================================================

After a truncation, the next time step of the batch is the first of *another* episode, so its value must not be used.
Padding (`valid=False`) is zero in every result, whatever its inputs are, NaN included.
"""

from __future__ import annotations

import torch

from headrace.agents.base import Agent
from headrace.buffers.samples import Final, Samples
from headrace.buffers.tree import tree_leaves, tree_map, tree_rows
from headrace.types import StepInputs, Tree

__all__ = [
    "bootstrap_values",
    "discounted_returns",
    "final_values",
    "first_state",
    "generalized_advantages",
    "next_values",
    "v_trace",
]


def next_values(
    value: torch.Tensor,
    terminated: torch.Tensor,
    truncated: torch.Tensor,
    bootstrap_value: torch.Tensor,
    final_value: torch.Tensor,
) -> torch.Tensor:
    """Returns V'_{t+1}, the value of what follows each step (see the table above), `[T, B]`.

    Args:
        value: V_t, float `[T, B]`.
        terminated: bool `[T, B]`.
        truncated: bool `[T, B]`.
        bootstrap_value: V of the time step after the batch, float `[1, B]`.
        final_value: V of the final observations, float `[T, B]`; used only where truncated.
    """
    following = torch.cat([value[1:], bootstrap_value])
    return torch.where(truncated, final_value, following).masked_fill(terminated, 0.0)


def discounted_returns(
    reward: torch.Tensor,
    terminated: torch.Tensor,
    truncated: torch.Tensor,
    bootstrap_value: torch.Tensor,
    final_value: torch.Tensor,
    discount: float,
    valid: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns discounted returns with bootstrapping, `[T, B]`::

        R_t = r_t + γ · (R_{t+1} if the episode continues, else V'_{t+1}),    R_T = bootstrap_value

    Args:
        reward: float `[T, B]`.
        terminated: bool `[T, B]`.
        truncated: bool `[T, B]`.
        bootstrap_value: float `[1, B]`, see `next_values`.
        final_value: float `[T, B]`, see `next_values`.
        discount: γ.
        valid: bool `[T, B]`; None: all steps are valid.
    """
    ended = terminated | truncated
    rest = torch.where(truncated, final_value, 0.0).masked_fill(terminated, 0.0)
    returns = reward + discount * rest
    returns[-1] += discount * bootstrap_value[0].masked_fill(ended[-1], 0.0)
    return _accumulated(returns, discount, ended, valid)


def generalized_advantages(
    reward: torch.Tensor,
    value: torch.Tensor,
    terminated: torch.Tensor,
    truncated: torch.Tensor,
    bootstrap_value: torch.Tensor,
    final_value: torch.Tensor,
    discount: float,
    gae_lambda: float,
    valid: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns generalized advantage estimates and the returns they imply, both `[T, B]`::

        δ_t = r_t + γ V'_{t+1} − V_t
        A_t = δ_t + γλ A_{t+1}     (A_{t+1} = 0 where the episode ended at t, and for t = T − 1)
        R_t = A_t + V_t            (the λ-return; the discounted return for λ = 1)

    Schulman et al., "High-dimensional continuous control using generalized advantage estimation", 2016, equations 11
    to 16.

    Args:
        reward: float `[T, B]`.
        value: V_t, float `[T, B]`.
        terminated: bool `[T, B]`.
        truncated: bool `[T, B]`.
        bootstrap_value: float `[1, B]`, see `next_values`.
        final_value: float `[T, B]`, see `next_values`.
        discount: γ.
        gae_lambda: λ.
        valid: bool `[T, B]`; None: all steps are valid.
    """
    following = next_values(value, terminated, truncated, bootstrap_value, final_value)
    delta = reward + discount * following - value
    advantage = _accumulated(delta, discount * gae_lambda, terminated | truncated, valid)
    returns = advantage + value
    return advantage, returns if valid is None else returns.masked_fill(~valid, 0.0)


def v_trace(
    reward: torch.Tensor,
    value: torch.Tensor,
    log_ratio: torch.Tensor,
    terminated: torch.Tensor,
    truncated: torch.Tensor,
    bootstrap_value: torch.Tensor,
    final_value: torch.Tensor,
    discount: float,
    v_lambda: float = 1.0,
    rho_clip: float = 1.0,
    c_clip: float = 1.0,
    valid: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns V-trace advantages and value targets v_t, both `[T, B]`, for actions of another policy::

        ρ_t = min(ρ̄, π(a_t|x_t) / μ(a_t|x_t)),    c_t = λ · min(c̄, π(a_t|x_t) / μ(a_t|x_t))
        δ_t = ρ_t (r_t + γ V'_{t+1} − V_t)
        v_t = V_t + δ_t + γ c_t (v_{t+1} − V_{t+1})    (the last term 0 where the episode ended at t, and for t = T − 1)
        A_t = ρ_t (r_t + γ v'_{t+1} − V_t)             (v' is v where V' is V, and V' elsewhere)

    Espeholt et al., "IMPALA: scalable distributed deep-RL with importance weighted actor-learner architectures", 2018:
    equation 1 with remarks 1 and 2, and the policy gradient of section 4.2.

    Args:
        reward: float `[T, B]`.
        value: V_t of the learned policy π, float `[T, B]`.
        log_ratio: log π(a|x) − log μ(a|x), float `[T, B]`, where μ is the behaviour policy.
        terminated: bool `[T, B]`.
        truncated: bool `[T, B]`.
        bootstrap_value: float `[1, B]`, see `next_values`.
        final_value: float `[T, B]`, see `next_values`.
        discount: γ.
        v_lambda: λ.
        rho_clip: ρ̄, which determines the policy whose values are learned.
        c_clip: c̄, which limits how far corrections propagate back in time.
        valid: bool `[T, B]`; None: all steps are valid.
    """
    if valid is not None:
        log_ratio = log_ratio.masked_fill(~valid, 0.0)
    ratio = log_ratio.exp()
    rho = ratio.clamp(max=rho_clip)
    ended = terminated | truncated
    following = next_values(value, terminated, truncated, bootstrap_value, final_value)
    delta = rho * (reward + discount * following - value)
    target = value + _accumulated(delta, discount * v_lambda * ratio.clamp(max=c_clip), ended, valid)
    following = next_values(target, terminated, truncated, bootstrap_value, final_value)
    advantage = rho * (reward + discount * following - value)
    if valid is None:
        return advantage, target
    return advantage.masked_fill(~valid, 0.0), target.masked_fill(~valid, 0.0)


def bootstrap_values(agent: Agent, samples: Samples) -> torch.Tensor:
    """Returns V of the time step after the batch, float `[1, B]`, computed with the agent's current parameters.

    It has a meaning only where the episode continues; where a new one begins, no return depends on it.

    Args:
        agent: the agent, on the device of the samples.
        samples: a batch.
    """
    env, acted = samples.env, samples.agent
    goes_on = torch.zeros_like(env.is_first[:1])
    inputs = StepInputs(env.last_observation, tree_rows(acted.action, slice(-1, None)), env.reward[-1:], goes_on)
    state = None if acted.last_state is None else tree_rows(acted.last_state, 0)
    return agent.value(tree_rows(inputs, 0), state)[None]


def final_values(agent: Agent, samples: Samples) -> torch.Tensor:
    """Returns V(final observation) at the (time, column) of each truncation, 0 elsewhere: float `[T, B]`, no gradient.

    Calls `agent.value` once for all truncations, with the recurrent state after the last step, on the samples' device.
    If a recurrent agent's states were not recorded, the agent runs through the columns again, one row further; then
    each column must be one whole episode.

    Args:
        agent: the agent, on the device of the samples.
        samples: a batch.
    """
    reward, final = samples.env.reward, samples.final
    values = torch.zeros_like(reward)
    cut = samples.env.truncated[final.time, final.column] & ~samples.env.terminated[final.time, final.column]
    if cut.any():
        kept = tree_rows(final, cut)
        with torch.no_grad():
            if kept.state is None and agent.initial_state(1) is not None:
                found = _values_after_columns(agent, samples, kept)
            else:
                found = agent.value(kept.inputs(), kept.state)
        values[kept.time, kept.column] = found.to(values.dtype)
    return values


def first_state(agent: Agent, samples: Samples) -> Tree:
    """Returns the recurrent state before time step 0, tree of `[B, ...]`; None if feed-forward.

    It is that of the start of an episode if the batch has none, as whole episodes do not.
    """
    recorded = samples.agent.first_state
    return agent.initial_state(samples.batch_spec.B) if recorded is None else tree_rows(recorded, 0)


def _values_after_columns(agent: Agent, samples: Samples, final: Final) -> torch.Tensor:
    """Returns V of final observations, `[n]`, as values of the row after each episode, which is padding or row T."""
    env, acted = samples.env, samples.agent
    inputs = StepInputs(env.observation, acted.prev_action, env.prev_reward, env.is_first)
    longer = tree_map(lambda leaf: torch.cat([leaf, torch.zeros_like(leaf[:1])]), inputs)
    row = final.time + 1, final.column
    for leaf, value in zip(tree_leaves(longer), tree_leaves(final.inputs()), strict=True):
        leaf[row] = value
    values: torch.Tensor = agent(longer, first_state(agent, samples)).value[row]
    return values


def _accumulated(
    terms: torch.Tensor, decay: float | torch.Tensor, ended: torch.Tensor, valid: torch.Tensor | None
) -> torch.Tensor:
    """Computes y_t = x_t + decay_t · y_{t+1}, where sums stop at ends of episodes, and overwrites x `[T, B]` with y.

    Padding is zeroed before the sum, because NaN · 0 is NaN and would reach the time step before it.
    """
    if valid is not None:
        terms.masked_fill_(~valid, 0.0)
        ended = ended | ~valid  # padding in the middle of a column stays zero
    rows, factors = terms.unbind(), (decay * (~ended).to(terms.dtype)).unbind()
    for t in range(len(rows) - 2, -1, -1):
        rows[t].addcmul_(factors[t], rows[t + 1])
    return terms
