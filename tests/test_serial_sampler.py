"""The reference sampler: every field of a batch against a plain step-by-step loop over one environment at a time."""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from headrace.agents.base import Agent
from headrace.agents.pg import CategoricalPgAgent
from headrace.buffers.samples import Samples
from headrace.buffers.tree import tree_leaves, tree_paths
from headrace.errors import AgentFailed, SamplerClosed, SamplerError
from headrace.rng import Stream, env_keys, env_seeds, uniforms
from headrace.samplers import BaseSampler, CpuSampler, SerialSampler, TrajInfo
from headrace.types import AgentStep, EnvSpaces, StepInputs
from tests.environments import EPISODE_STEP_INFO, SEED, AnySpaces, EpisodeStep, Stochastic

# ---- a recurrent agent whose every number can be computed by hand ----


@dataclass
class Seen:
    """What the agent was given, recorded as its agent_info."""

    observation: Any
    prev_action: Any
    prev_reward: Any
    is_first: Any
    noise: Any
    state: Any


class Recurrent(Agent):
    """Counts the steps of an episode and sums its observations; does not look at `is_first` itself.

    Draws actions uniformly; greedy ones are the count modulo 3.
    """

    noise_size = 1

    def __init__(self) -> None:
        self.modes: list[tuple[str, int]] = []
        self.greedy_inputs: list[dict[str, Any]] = []
        self._greedy = False

    def build_model(self, spaces: EnvSpaces) -> torch.nn.Module:
        return torch.nn.Linear(1, 1)

    def initial_state(self, n: int) -> Any:
        return {"count": torch.zeros(n), "sum": (torch.zeros(n, 2),)}

    def sample_mode(self, itr: int) -> None:
        self.modes.append(("sample", itr))
        self._greedy = False

    def eval_mode(self, itr: int) -> None:
        self.modes.append(("eval", itr))
        self._greedy = True

    def step(self, inputs: StepInputs, state: Any) -> AgentStep:
        seen = Seen(
            inputs.observation, inputs.prev_action, inputs.prev_reward, inputs.is_first, inputs.noise[:, 0], state
        )
        action = (inputs.noise[:, 0] * 3).long()
        if self._greedy:
            action = state["count"].long() % 3
            self.greedy_inputs.append({path: leaf.tolist() for path, leaf in tree_paths(seen)})
        after = {"count": state["count"] + 1, "sum": (state["sum"][0] + inputs.observation,)}
        return AgentStep(action, seen, after)

    def value(self, inputs: StepInputs, state: Any) -> torch.Tensor:
        given = inputs.observation.sum(-1) + inputs.prev_action + inputs.prev_reward
        return 1000 * state["count"] + 10 * state["sum"][0].sum(-1) + given

    def __call__(self, inputs: StepInputs, state: Any = None) -> Any:
        raise NotImplementedError


# ---- the same by hand: one environment at a time, one step at a time ----

T, B, BATCHES = 6, 5, 5
LENGTHS = ((3, 1, 4), (5,), (1, 2), (7, 6), (20,))
DISCOUNT = 0.5


@dataclass(frozen=True)
class Setup:
    reset_mode: str = "mid_batch"
    decorrelation: int = 0
    deterministic: bool = False
    rank: int = 0
    n_workers: int = 0  # more: the same from that many processes

    def __str__(self) -> str:
        return "-".join(
            [self.reset_mode]
            + [f"decorrelation {self.decorrelation}"] * (self.decorrelation > 0)
            + [f"rank {self.rank}"] * (self.rank > 0)
            + ["deterministic"] * self.deterministic
            + [f"{self.n_workers} workers"] * (self.n_workers > 0)
        )


SETUPS = [
    Setup(),
    Setup(reset_mode="wait"),
    Setup(decorrelation=11),
    Setup(reset_mode="wait", decorrelation=11),
    Setup(deterministic=True, rank=6),  # env ids 30 to 34: the rows of two blocks
    Setup(reset_mode="wait", decorrelation=4, deterministic=True, rank=1),
    Setup(decorrelation=11, n_workers=3),
    Setup(reset_mode="wait", n_workers=2),
]


@dataclass
class Column:
    """One environment and what the agent remembers of it."""

    number: int
    setup: Setup
    waits: bool = False
    running: TrajInfo = field(default_factory=lambda: TrajInfo(discount=DISCOUNT))

    def __post_init__(self) -> None:
        self.env = EpisodeStep(LENGTHS)
        seed, space_seed = env_seeds(SEED, self.number)
        self.observation, _ = self.env.reset(seed=seed)
        self.steps_before = 0
        if self.setup.decorrelation:
            draw = uniforms(env_keys(SEED, Stream.DECORRELATION, [self.number]), 0, 1, 1)
            self.steps_before = 1 + int(draw.item() * self.setup.decorrelation)
        space = spaces.Discrete(3)
        space.seed(space_seed)
        for _ in range(self.steps_before):
            ended, _ = self.advance(int(space.sample()))
            if ended is not None:
                self.observation, _ = self.env.reset()
        self.begin()

    def begin(self) -> None:
        self.is_first, self.prev_action, self.prev_reward = True, 0, 0.0
        self.count, self.sum = 0.0, np.zeros(2, np.float32)

    def advance(self, action: int) -> tuple[TrajInfo | None, dict[str, Any]]:
        """A step and its statistics; the finished episode's, if it ended."""
        self.observation, reward, terminated, truncated, info = self.env.step(np.int64(action))
        run = self.running
        run.Return += reward
        run.DiscountedReturn += DISCOUNT**run.Length * reward
        run.NonzeroRewards += reward != 0
        run.Length += 1
        record = {"reward": reward, "terminated": terminated, "truncated": truncated, "info": info}
        if not (terminated or truncated):
            return None, record
        run.env_id, run.info, self.running = self.number, info, TrajInfo(discount=DISCOUNT)
        return run, record


@dataclass
class Expected:
    """A batch by hand: arrays by path; where they say nothing about a cell, its mask is False."""

    arrays: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]
    traj_infos: list[TrajInfo]


def by_hand(setup: Setup) -> list[Expected]:
    ids = range(setup.rank * B, setup.rank * B + B)
    columns = [Column(number, setup) for number in ids]
    noise = uniforms(env_keys(SEED, Stream.ACTION, ids), 0, BATCHES * T, 1)[:, :, 0]
    return [one_batch_by_hand(columns, setup, noise[k * T : k * T + T], k) for k in range(BATCHES)]


def one_batch_by_hand(columns: list[Column], setup: Setup, noise: np.ndarray, version: int) -> Expected:
    cells: dict[str, dict[tuple[int, ...], Any]] = {}
    finals: list[tuple[int, int, dict[str, Any]]] = []
    ended: list[tuple[int, int, TrajInfo]] = []

    def put(place: tuple[int, ...], **values: Any) -> None:
        for name, value in values.items():
            cells.setdefault(name.replace("__", "."), {})[place] = value

    for b, column in enumerate(columns):
        if column.waits:  # it ended in the last batch
            column.observation, _ = column.env.reset()
            column.waits = False
            column.begin()
        put((0, b), agent__first_state__count=column.count, agent__first_state__sum=column.sum)
        for t in range(T):
            if column.waits:
                column.observation, column.is_first = np.zeros(2, np.float32), False
                column.prev_action, column.prev_reward = 0, 0.0
            action = int(noise[t, b] * 3)
            put(
                (t, b),
                env__observation=column.observation,
                env__is_first=column.is_first,
                env__prev_reward=column.prev_reward,
                env__valid=not column.waits,
                agent__prev_action=column.prev_action,
                agent__action=action,
                agent__version=version,
                agent__seen__observation=column.observation,
                agent__seen__prev_action=column.prev_action,
                agent__seen__prev_reward=column.prev_reward,
                agent__seen__is_first=column.is_first,
                agent__seen__noise=noise[t, b],
                agent__seen__count=column.count,
                agent__seen__sum=column.sum,
            )
            if column.waits:
                put((t, b), env__reward=0.0, env__terminated=False, env__truncated=False)
                put((t, b), info__number=0, info__pair=np.zeros(2), info__odd=False)
                continue
            column.count, column.sum = column.count + 1, column.sum + column.observation
            run, record = column.advance(action)
            info = record.pop("info")
            put((t, b), info__number=info["number"], info__pair=info["pair"], info__odd=info["odd"])
            put((t, b), **{f"env__{name}": value for name, value in record.items()})
            column.is_first, column.prev_action, column.prev_reward = False, action, record["reward"]
            if run is None:
                continue
            ended.append((t, column.number, run))
            final = {"time": t, "column": b, "observation": column.observation, "prev_action": action}
            final |= {"prev_reward": record["reward"], "count": column.count, "sum": column.sum}
            finals.append((t, b, final))
            last_count, last_sum = column.count, column.sum
            if setup.reset_mode == "wait":
                column.waits = True
            else:
                column.observation, _ = column.env.reset()
                column.begin()
                if t == T - 1:  # the state after the last row is not yet the next episode's
                    put((0, b), agent__last_state__count=last_count, agent__last_state__sum=last_sum)
        if (0, b) not in cells.setdefault("agent.last_state.count", {}):
            put((0, b), agent__last_state__count=column.count, agent__last_state__sum=column.sum)
        put((0, b), env__last_observation=column.observation * (not column.waits))
        given = column.observation.sum() + column.prev_action + column.prev_reward
        put((0, b), agent__bootstrap_value=1000 * column.count + 10 * column.sum.sum() + given)

    waits = np.array([[column.waits for column in columns]])
    arrays = {PATHS[name]: array_of(values) for name, values in cells.items()}
    valid = arrays[".env.valid"].astype(bool)
    masks = {PATHS[name]: valid for name in ("agent.seen.count", "agent.seen.sum")}
    masks |= {PATHS[f"agent.{name}"]: ~waits for name in ("last_state.count", "last_state.sum", "bootstrap_value")}
    finals.sort(key=lambda entry: entry[:2])
    for name, path in FINAL_PATHS.items():
        arrays[path] = np.array([entry[name] for _, _, entry in finals])
    ended.sort(key=lambda entry: entry[:2])
    return Expected(arrays, masks, [run for _, _, run in ended])


def array_of(values: dict[tuple[int, ...], Any]) -> np.ndarray:
    rows = 1 + max(place[0] for place in values)
    return np.array([[values[t, b] for b in range(B)] for t in range(rows)])


FIELDS = ("observation", "is_first", "prev_reward", "reward", "terminated", "truncated", "valid", "last_observation")
PATHS = {f"env.{name}": f".env.{name}" for name in FIELDS}
PATHS |= {f"info.{name}": f".env.env_info['{name}']" for name in EPISODE_STEP_INFO}
PATHS |= {f"agent.{name}": f".agent.{name}" for name in ("action", "prev_action", "version", "bootstrap_value")}
PATHS |= {
    f"agent.{short}.{name}": f".agent.{long}{path}"
    for short, long in [("first_state", "first_state"), ("last_state", "last_state"), ("seen", "agent_info.state")]
    for name, path in [("count", "['count']"), ("sum", "['sum'][0]")]
}
PATHS |= {
    f"agent.seen.{name}": f".agent.agent_info.{name}"
    for name in ("observation", "prev_action", "prev_reward", "is_first", "noise")
}
FINAL_PATHS = {name: f".final.{name}" for name in ("time", "column", "observation", "prev_action", "prev_reward")}
FINAL_PATHS |= {"count": ".final.state['count']", "sum": ".final.state['sum'][0]"}
ALL_PATHS = [*PATHS.values(), *FINAL_PATHS.values()]

DTYPES = {name: torch.float32 for name in ALL_PATHS}
DTYPES |= {f".env.{name}": torch.bool for name in ("is_first", "terminated", "truncated", "valid")}
DTYPES |= {".agent.agent_info.is_first": torch.bool, ".env.env_info['odd']": torch.bool}
DTYPES |= {".agent.version": torch.int32, ".env.env_info['number']": torch.int32}
DTYPES |= {path: torch.int64 for path in (".agent.action", ".agent.prev_action", ".agent.agent_info.prev_action")}
DTYPES |= {f".final.{name}": torch.int64 for name in ("time", "column", "prev_action")}

Run = tuple[list[dict[str, torch.Tensor]], list[Sequence[TrajInfo]], list[Expected]]


@functools.cache
def run(setup: Setup) -> Run:
    """Returns the sampler's batches and those of the reference loop."""
    sampler = (CpuSampler if setup.n_workers else SerialSampler)(
        EpisodeStep,
        {"lengths": LENGTHS},
        batch_T=T,
        batch_B=B,
        reset_mode=setup.reset_mode,
        max_decorrelation_steps=setup.decorrelation,
        env_info_keys=EPISODE_STEP_INFO,
        deterministic=setup.deterministic,
        n_workers=setup.n_workers or None,
        start_method="fork",
    )
    batches, traj_infos = [], []
    kwargs: dict[str, Any] = {"traj_info_kwargs": {"discount": DISCOUNT}, "rank": setup.rank, "world_size": 8}
    with sampler.initialize(Recurrent(), seed=SEED, bootstrap_value=True, **kwargs):
        for itr in range(BATCHES):
            samples, infos = sampler.obtain_samples(itr)
            batches.append(dict(tree_paths(samples.copy())))
            traj_infos.append(infos)
    return batches, traj_infos, by_hand(setup)


ALL_SETUPS = pytest.mark.parametrize("setup", SETUPS, ids=str)


@ALL_SETUPS
def test_every_field_equals_a_reference_loop(setup: Setup) -> None:
    batches, _, expected = run(setup)
    for path, (number, (batch, hand)) in itertools.product(ALL_PATHS, enumerate(zip(batches, expected, strict=True))):
        tensor, array = batch[path], hand.arrays[path]
        assert tensor.dtype == DTYPES[path], path
        assert list(tensor.shape) == list(array.shape), f"{path}, batch {number}"
        mask = hand.masks.get(path, np.ones(array.shape[:2] if path.startswith((".env", ".agent")) else (), bool))
        wrong = (tensor.numpy() != array.astype(tensor.numpy().dtype)).reshape(*mask.shape, -1).any(-1) & mask
        assert not wrong.any(), f"{path}, batch {number}: wrong at {np.argwhere(wrong).tolist()}"


@ALL_SETUPS
def test_reference_loop_covers_every_field(setup: Setup) -> None:
    batches, _, expected = run(setup)
    for batch, hand in zip(batches, expected, strict=True):
        assert set(batch) == set(hand.arrays) == set(ALL_PATHS)


@ALL_SETUPS
def test_batches_contain_every_kind_of_end(setup: Setup) -> None:
    """Otherwise the comparison would show little."""
    ends = set()
    for batch in run(setup)[0]:
        terminated, truncated = batch[".env.terminated"], batch[".env.truncated"]
        ends |= set(zip(terminated.flatten().tolist(), truncated.flatten().tolist(), strict=True))
        if setup.reset_mode == "wait":
            assert not batch[".env.valid"].all()
        else:
            assert batch[".env.valid"].all()
            assert batch[".env.is_first"][1:].any()
    assert ends == {(False, False), (True, False), (False, True), (True, True)}


@ALL_SETUPS
def test_episode_statistics_equal_a_reference_loop(setup: Setup) -> None:
    _, traj_infos, expected = run(setup)
    assert sum(map(len, traj_infos)) > 15
    for infos, hand in zip(traj_infos, expected, strict=True):
        assert len(infos) == len(hand.traj_infos)
        for info, other in zip(infos, hand.traj_infos, strict=True):
            assert (info.Length, info.NonzeroRewards, info.env_id) == (other.Length, other.NonzeroRewards, other.env_id)
            assert info.Return == other.Return
            assert info.DiscountedReturn == pytest.approx(other.DiscountedReturn, rel=1e-12)
            assert info.finished
            assert info.discount == DISCOUNT
            assert info.info["pair"].tolist() == other.info["pair"].tolist()


# ---- the same, of single rules ----


def sampler_of(lengths: Any = LENGTHS, **options: Any) -> SerialSampler:
    sizes = {"batch_T": T, "batch_B": B, "max_decorrelation_steps": 0}
    return SerialSampler(EpisodeStep, {"lengths": lengths}, **(sizes | options))


def obtain(sampler: BaseSampler, agent: Agent | None = None, n: int = 1, **kwargs: Any) -> list[Samples]:
    with sampler.initialize(agent or Recurrent(), **({"seed": SEED} | kwargs)):
        return [sampler.obtain_samples(itr)[0].copy() for itr in range(n)]


def equal(first: Samples, second: Samples, but: tuple[str, ...] = ()) -> bool:
    pairs = list(zip(tree_paths(first), tree_paths(second), strict=True))
    return all(path in but or torch.equal(leaf, other) for (path, leaf), (_, other) in pairs)


@pytest.mark.parametrize("decorrelation", [0, 9])
def test_wait_mode_records_episodes_from_their_first_observation(decorrelation: int) -> None:
    """Not from the second one, and not with the final observation of the last episode."""
    batches = obtain(sampler_of(reset_mode="wait", max_decorrelation_steps=decorrelation), n=6)
    for before, after in itertools.pairwise(batches):
        for b in range(B):
            first = after.env.observation[0, b].tolist()
            if not before.env.done[:, b].any():
                assert first == before.env.last_observation[0, b].tolist()
                assert not after.env.is_first[0, b]
                continue
            row = int(before.env.done[:, b].nonzero())
            episode = before.final.observation[before.final.column == b][0, 0].item()
            assert first == [episode + 1, 0]
            assert after.env.is_first[0, b]
            assert before.env.valid[: row + 1, b].all()
            assert not before.env.valid[row + 1 :, b].any()
            assert not before.env.observation[row + 1 :, b].any()


def test_mid_batch_mode_records_the_next_first_observation_after_an_end() -> None:
    (samples,) = obtain(sampler_of(((2,),), batch_B=1))
    assert samples.env.observation[:, 0].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]]
    assert samples.env.is_first[:, 0].tolist() == [True, False] * 3
    assert samples.env.last_observation[0].tolist() == [[3, 0]]
    assert samples.final.observation.tolist() == [[0, 2], [1, 2], [2, 2]]
    assert samples.final.time.tolist() == [1, 3, 5]


def test_recurrent_state_continues_over_batches_and_is_zero_after_ends() -> None:
    batches = obtain(sampler_of(((9,),), batch_B=2), n=3)
    counts = torch.cat([samples.agent.agent_info.state["count"][:, 0] for samples in batches])
    assert counts.tolist() == [*range(9), *range(9)]
    assert [samples.agent.first_state["count"][0, 0].item() for samples in batches] == [0, 6, 3]
    assert [samples.agent.last_state["count"][0, 0].item() for samples in batches] == [6, 3, 9]
    assert batches[1].final.state["count"].tolist() == [9, 9]


@pytest.mark.parametrize("cls", [SerialSampler, CpuSampler])
def test_more_ends_than_the_final_region_holds(cls: type[BaseSampler]) -> None:
    """Episodes of one step: T · B of them in every batch."""
    sampler = cls(
        EpisodeStep,
        {"lengths": ((1,),)},
        batch_T=20,
        batch_B=3,
        max_decorrelation_steps=0,
        n_workers=2,
        start_method="fork",
    )
    for samples in obtain(sampler, n=3):
        assert len(samples.final) == 60
        assert samples.final.time.tolist() == [t for t in range(20) for _ in range(3)]
        assert samples.final.column.tolist() == [0, 1, 2] * 20
        assert samples.final.prev_action.tolist() == samples.agent.action.flatten().tolist()
        assert samples.final.prev_reward.tolist() == samples.env.reward.flatten().tolist()
        assert samples.final.observation[:, 0].tolist() == samples.env.observation[..., 0].flatten().tolist()
        assert samples.final.observation[:, 1].tolist() == [1] * 60
        assert samples.final.state["count"].tolist() == [1] * 60
        assert samples.final.state["sum"][0].tolist() == samples.env.observation.flatten(0, 1).tolist()


def test_batch_without_ends_has_no_final_entries() -> None:
    (samples,) = obtain(sampler_of(((100,),)))
    assert len(samples.final) == 0
    assert samples.final.observation.shape == (0, 2)
    assert samples.final.state["count"].shape == (0,)
    assert not samples.env.done.any()


@pytest.mark.parametrize("reset_mode", ["mid_batch", "wait"])
def test_a_batch_of_one_row_and_one_column(reset_mode: str) -> None:
    sampler = sampler_of(((2, 1),), batch_T=1, batch_B=1, reset_mode=reset_mode)
    batches = obtain(sampler, n=6, bootstrap_value=True)
    seen = [samples.env.observation[0, 0].tolist() for samples in batches]
    assert seen == [[0, 0], [0, 1], [1, 0], [2, 0], [2, 1], [3, 0]]
    assert [samples.env.is_first.item() for samples in batches] == [True, False, True, True, False, True]
    assert [samples.agent.agent_info.state["count"].item() for samples in batches] == [0, 1, 0, 0, 1, 0]
    assert [len(samples.final) for samples in batches] == [0, 1, 1, 0, 1, 1]


def test_fields_that_are_not_requested_are_none() -> None:
    (samples,) = obtain(sampler_of(), CategoricalPgAgent())
    assert samples.agent.bootstrap_value is None
    assert samples.agent.first_state is samples.agent.last_state is samples.final.state is None
    assert samples.env.env_info is None


def test_decorrelation_starts_environments_at_different_steps() -> None:
    (samples,) = obtain(sampler_of(((1000,),), batch_B=50, max_decorrelation_steps=40))
    steps = samples.env.observation[0, :, 1]
    assert steps.min() >= 1
    assert steps.max() <= 40
    assert len(steps.unique()) > 20
    assert samples.env.is_first[0].all()
    assert not samples.env.prev_reward[0].any()
    assert not samples.agent.prev_action[0].any()
    assert not samples.agent.agent_info.state["count"][0].any()


def test_decorrelation_of_one_step() -> None:
    (samples,) = obtain(sampler_of(((1000,),), max_decorrelation_steps=1))
    assert samples.env.observation[0].tolist() == [[0, 1]] * B


class SharedSpaces(Stochastic):
    """Its spaces are class attributes, as in many environments."""

    action_space = spaces.Discrete(4)

    def __init__(self) -> None:
        super().__init__()
        del self.__dict__["action_space"]


@pytest.mark.parametrize("env", [Stochastic, SharedSpaces])
def test_environment_starts_alike_with_any_other_environments(env: type[gym.Env[Any, Any]]) -> None:
    """Including its random actions of decorrelation."""

    def first_rows(batch_B: int, rank: int) -> torch.Tensor:
        sampler = SerialSampler(env, batch_T=3, batch_B=batch_B, deterministic=True, max_decorrelation_steps=30)
        (samples,) = obtain(sampler, CategoricalPgAgent(), rank=rank, world_size=4)
        return samples.env.observation

    whole = first_rows(6, 0)
    assert torch.equal(whole[:, :2], first_rows(2, 0))
    assert torch.equal(whole[:, 2:4], first_rows(2, 1))
    assert torch.equal(whole[:, 3:], first_rows(3, 1))


@pytest.mark.parametrize("reset_mode", ["mid_batch", "wait"])
def test_the_same_seed_gives_the_same_batches_and_another_seed_others(reset_mode: str) -> None:
    def batches(seed: int) -> list[Samples]:
        sampler = SerialSampler(Stochastic, batch_T=12, batch_B=4, reset_mode=reset_mode)
        return obtain(sampler, CategoricalPgAgent(), 4, seed=seed, bootstrap_value=True)

    first, again, other = batches(3), batches(3), batches(4)
    assert all(map(equal, first, again))
    for mine, theirs in zip(first, other, strict=True):
        assert not torch.equal(mine.env.observation, theirs.env.observation)
        assert not torch.equal(mine.agent.action, theirs.agent.action)


class OwnChoice(Stochastic):
    """Samples from its own action space."""

    def step(self, action: np.int64) -> Any:
        return super().step(self.action_space.sample())


def test_the_action_space_of_an_environment_is_seeded_too() -> None:
    first, again = (obtain(SerialSampler(OwnChoice, batch_T=9, batch_B=3), CategoricalPgAgent()) for _ in range(2))
    assert equal(first[0], again[0])
    assert len(first[0].env.observation[-1, :, 2].unique()) == 3


class Placed(CategoricalPgAgent):
    """Records the row in which an environment stands when its action is chosen, and how many rows there are."""

    def step(self, inputs: StepInputs, state: Any) -> AgentStep:
        n = len(inputs.is_first)
        return AgentStep(super().step(inputs, state).action, (torch.arange(n), torch.full((n,), n)))


def test_deterministic_inference_uses_blocks_of_32_with_positions_by_env_id() -> None:
    """So matrix products for an environment are rounded alike whichever other environments are in the batch."""
    sampler = SerialSampler(Stochastic, batch_T=2, batch_B=20, deterministic=True)
    (samples,) = obtain(sampler, Placed(), rank=1, world_size=2)
    places, counts = samples.agent.agent_info
    assert places[1].tolist() == [env_id % 32 for env_id in range(20, 40)]
    assert counts.unique().tolist() == [32]
    (samples,) = obtain(SerialSampler(Stochastic, batch_T=2, batch_B=20), Placed())
    assert samples.agent.agent_info[1].unique().tolist() == [20]


def test_environments_of_one_batch_differ() -> None:
    (samples,) = obtain(SerialSampler(Stochastic, batch_T=4, batch_B=32), CategoricalPgAgent())
    assert len(samples.env.observation[0].unique(dim=0)) == 32
    assert len(samples.agent.action.T.unique(dim=0)) > 20


def test_missing_seed_is_drawn_and_readable() -> None:
    sampler = SerialSampler(Stochastic, batch_T=4, batch_B=2)
    (first,) = obtain(sampler, CategoricalPgAgent(), seed=None)
    (again,) = obtain(SerialSampler(Stochastic, batch_T=4, batch_B=2), CategoricalPgAgent(), seed=sampler.seed)
    (other,) = obtain(SerialSampler(Stochastic, batch_T=4, batch_B=2), CategoricalPgAgent(), seed=None)
    assert equal(first, again)
    assert not torch.equal(first.env.observation, other.env.observation)


def test_agent_modes_are_set_with_the_number_of_the_batch() -> None:
    agent = Recurrent()
    with sampler_of(eval_n_envs=1).initialize(agent, seed=SEED) as sampler:
        agent.modes.clear()
        sampler.obtain_samples(7)
        sampler.evaluate_agent(8)
        sampler.obtain_samples(20)
    assert agent.modes == [("sample", 7), ("eval", 8), ("sample", 20)]


def test_the_version_counts_the_calls_that_act() -> None:
    with sampler_of(eval_n_envs=1).initialize(Recurrent(), seed=SEED) as sampler:
        versions = []
        for itr in range(4):
            versions.append(sampler.obtain_samples(itr)[0].agent.version.unique().tolist())
            if itr == 1:
                sampler.evaluate_agent(itr)
    assert versions == [[0], [1], [3], [4]]


def test_agent_acts_with_its_current_parameters() -> None:
    agent = CategoricalPgAgent()
    with sampler_of().initialize(agent, seed=SEED) as sampler:
        for value in (0.25, -1.5):
            with torch.no_grad():
                agent.model.get_parameter("policy.head.weight")[-1] = 0
                agent.model.get_parameter("policy.head.bias")[-1] = value
            samples, _ = sampler.obtain_samples(0)
            assert samples.agent.agent_info.value.unique().tolist() == [value]


# ---- memory ----


def test_samples_are_views_until_the_next_call_and_copies_remain() -> None:
    with sampler_of().initialize(Recurrent(), seed=SEED) as sampler:
        first, _ = sampler.obtain_samples(0)
        kept, before = first.copy(), first.env.observation.clone()
        place = first.env.observation.data_ptr()
        second, _ = sampler.obtain_samples(1)
        assert second.env.observation.data_ptr() == place
        assert torch.equal(first.env.observation, second.env.observation)  # written again
        assert not torch.equal(first.env.observation, before)
        assert torch.equal(kept.env.observation, before)
    assert torch.equal(first.env.observation, second.env.observation)  # memory lives as long as a view does


def test_final_entries_are_copies() -> None:
    with sampler_of(((2,),)).initialize(Recurrent(), seed=SEED) as sampler:
        first = sampler.obtain_samples(0)[0].final
        before = first.observation.clone()
        sampler.obtain_samples(1)
        assert torch.equal(first.observation, before)


def test_changes_of_batch_objects_do_not_affect_the_next_batch() -> None:
    with sampler_of(env_info_keys=EPISODE_STEP_INFO).initialize(Recurrent(), seed=SEED) as sampler:
        samples, _ = sampler.obtain_samples(0)
        samples.env.reward = samples.env.reward * 0
        samples.env.env_info["return"] = samples.env.reward
        del samples.env.env_info["pair"]
        samples.agent.agent_info.noise = None
        samples.agent.first_state["count"] = None
        samples, _ = sampler.obtain_samples(1)
        assert samples.env.reward.any()
        assert set(samples.env.env_info) == set(EPISODE_STEP_INFO)
        assert samples.agent.agent_info.noise is not None
        assert samples.agent.first_state["count"] is not None


@pytest.mark.parametrize("reset_mode", ["mid_batch", "wait"])
def test_writes_into_a_batch_do_not_affect_the_next_batch(reset_mode: str) -> None:
    """The loop keeps the current row in its own memory, and every cell is written again."""
    options = {"reset_mode": reset_mode, "env_info_keys": EPISODE_STEP_INFO}
    expected = obtain(sampler_of(**options), n=4, bootstrap_value=True)
    with sampler_of(**options).initialize(Recurrent(), seed=SEED, bootstrap_value=True) as sampler:
        for itr in range(4):
            samples, _ = sampler.obtain_samples(itr)
            assert equal(samples, expected[itr])
            for leaf in tree_leaves(samples):
                leaf.fill_(1)


# ---- evaluation ----

EVAL_LENGTHS = ((2,), (50, 3), (7, 1, 4))


def evaluations(
    n: int = 1, agent: Agent | None = None, lengths: Any = EVAL_LENGTHS, **options: Any
) -> list[list[TrajInfo]]:
    """Evaluation environment k has the lengths of k + 1000."""
    sampler = sampler_of(tuple(lengths[(k - 1000) % len(lengths)] for k in range(len(lengths))), **options)
    with sampler.initialize(agent or Recurrent(), seed=SEED):
        return [sampler.evaluate_agent(itr) for itr in range(n)]


@pytest.mark.parametrize(("wanted", "each"), [(None, 1), (1, 1), (3, 1), (4, 2), (6, 2), (7, 3)])
def test_evaluation_counts_the_same_number_of_episodes_in_every_environment(wanted: int | None, each: int) -> None:
    """So short episodes are not favoured. The next evaluation continues with the next episode."""
    first, second = evaluations(2, eval_n_envs=3, eval_max_trajectories=wanted)
    for number, answer in enumerate((first, second)):
        assert len(answer) == 3 * each
        assert all(info.finished for info in answer)
        for k, lengths in enumerate(EVAL_LENGTHS):
            episodes = range(number * each, number * each + each)
            mine = [info for info in answer if info.env_id == k]
            assert [info.Length for info in mine] == [lengths[episode % len(lengths)] for episode in episodes]
            assert [info.info["pair"][0] for info in mine] == list(episodes)
            assert {info.info["number"] for info in mine} == {1000 + k}


def test_evaluated_episodes_are_in_the_order_of_their_ends() -> None:
    (answer,) = evaluations(eval_n_envs=3, eval_max_trajectories=9)
    ends = {
        k: np.cumsum([lengths[episode % len(lengths)] for episode in range(3)])
        for k, lengths in enumerate(EVAL_LENGTHS)
    }
    expected = sorted((int(end), k) for k, times in ends.items() for end in times)
    assert [info.env_id for info in answer] == [k for _, k in expected]


@pytest.mark.parametrize(("max_steps", "rows"), [(30, 10), (31, 10), (99, 33), (141, 47)])
def test_evaluation_stops_at_eval_max_steps_with_unfinished_episodes(max_steps: int, rows: int) -> None:
    (answer,) = evaluations(eval_n_envs=3, eval_max_steps=max_steps)
    assert [(info.env_id, info.Length, info.finished) for info in answer] == [
        (0, 2, True),
        (2, 7, True),
        (1, rows, False),
    ]
    cut = answer[-1]
    assert cut.Return == sum(step - 1 + (step % 3) / 4 for step in range(rows))


@pytest.mark.parametrize("max_steps", [1, 2])
def test_eval_max_steps_below_eval_n_envs_is_one_step_each(max_steps: int) -> None:
    (answer,) = evaluations(eval_n_envs=3, eval_max_steps=max_steps)
    assert [(info.env_id, info.Length, info.finished) for info in answer] == [
        (0, 1, False),
        (1, 1, False),
        (2, 1, False),
    ]


def test_evaluation_after_an_unfinished_one_starts_new_episodes() -> None:
    first, second = evaluations(2, eval_n_envs=3, eval_max_steps=15)
    assert [(info.env_id, info.Length, info.finished) for info in first] == [(0, 2, True), (1, 5, False), (2, 5, False)]
    assert [(info.env_id, info.Length, info.finished) for info in second] == [(2, 1, True), (0, 2, True), (1, 3, True)]


def test_evaluations_start_with_zero_inputs_and_zero_state() -> None:
    """Also after an evaluation that stopped within episodes."""
    agent = Recurrent()
    evaluations(3, agent, ((100,), (50,)), eval_n_envs=2, eval_max_steps=20)
    assert len(agent.greedy_inputs) == 30
    for number in range(3):
        first = agent.greedy_inputs[10 * number]
        assert first[".observation"] == [[number, 0], [number, 0]]
        assert first[".prev_action"] == [0, 0]
        assert first[".prev_reward"] == [0, 0]
        assert first[".is_first"] == [True, True]
        assert first[".state['count']"] == [0, 0]
        assert first[".state['sum'][0]"] == [[0, 0], [0, 0]]
        second = agent.greedy_inputs[10 * number + 1]
        assert second[".is_first"] == [False, False]
        assert second[".prev_reward"] == [10 * number - 1, 10 * number - 1]


def test_noise_differs_between_evaluations() -> None:
    """And from the noise of training."""
    agent = Recurrent()
    sampler = sampler_of(((40,),), eval_n_envs=2)
    with sampler.initialize(agent, seed=SEED):
        noise = sampler.obtain_samples(0)[0].agent.agent_info.noise.flatten().tolist()
        for itr in range(3):
            sampler.evaluate_agent(itr)
    noise += [draw for row in agent.greedy_inputs for draw in row[".noise"]]
    assert len(set(noise)) == len(noise) == T * B + 3 * 2 * 40


def test_each_rank_has_its_own_evaluation_environments() -> None:
    with sampler_of(((2,),), eval_n_envs=2).initialize(Recurrent(), seed=SEED, rank=1, world_size=2) as sampler:
        answer = sampler.evaluate_agent(0)
    assert [(info.env_id, info.info["number"]) for info in answer] == [(2, 1002), (3, 1003)]


def test_recurrent_state_continues_through_a_long_evaluation() -> None:
    agent = Recurrent()
    (answer,) = evaluations(1, agent, ((150,), (40, 70)), eval_n_envs=2, eval_max_trajectories=4, eval_max_steps=300)
    assert len(agent.greedy_inputs) == 150
    counts = [[row[".state['count']"][k] for row in agent.greedy_inputs] for k in range(2)]
    assert counts[0] == list(range(150))
    assert counts[1][:110] == [*range(40), *range(70)]
    assert [info.Length for info in answer] == [40, 70, 150]
    expected = sum(step - 1 + (step % 3) / 4 for step in range(150))
    assert answer[-1].Return == expected


def test_greedy_episodes_are_the_same_every_time_and_differ_from_sampled_ones() -> None:
    class Same(Stochastic):
        """Every episode is the same."""

        def reset(self, **kwargs: Any) -> Any:
            self._digest = 0.0
            return super().reset(seed=3)

    sampler = SerialSampler(Same, batch_T=40, batch_B=4, eval_n_envs=2)
    agent = CategoricalPgAgent()
    with sampler.initialize(agent, seed=SEED):
        with torch.no_grad():
            agent.model.get_parameter("policy.head.weight").mul_(50)  # actions depend on observations
        answers = [[(info.Length, info.Return) for info in sampler.evaluate_agent(itr)] for itr in range(3)]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0][0] == answers[0][1]


@pytest.mark.parametrize("reset_mode", ["mid_batch", "wait"])
def test_evaluations_do_not_change_batches(reset_mode: str) -> None:
    def batches(evaluate: bool) -> list[Samples]:
        sampler = sampler_of(eval_n_envs=3, eval_max_steps=20, reset_mode=reset_mode)
        found = []
        with sampler.initialize(Recurrent(), seed=SEED, bootstrap_value=True):
            for itr in range(4):
                if evaluate:
                    sampler.evaluate_agent(itr)
                samples, _ = sampler.obtain_samples(itr)
                found.append(samples.copy())
                if evaluate:
                    before = samples.copy()
                    sampler.evaluate_agent(itr)
                    assert equal(samples, before)
        return found

    for with_them, without in zip(batches(True), batches(False), strict=True):
        assert equal(with_them, without, but=(".agent.version",))


def test_batches_do_not_change_evaluations() -> None:
    def answers(n_batches: int) -> list[tuple[Any, ...]]:
        sampler = SerialSampler(Stochastic, batch_T=10, batch_B=3, eval_n_envs=4, eval_max_trajectories=12)
        with sampler.initialize(CategoricalPgAgent(), seed=SEED):
            found = []
            for itr in range(2):
                for _ in range(n_batches):
                    sampler.obtain_samples(itr)
                found += [(info.env_id, info.Length, info.Return) for info in sampler.evaluate_agent(itr)]
        return found

    assert answers(0) == answers(2)
    assert len(answers(0)) == 24


def test_evaluation_environments_have_their_own_arguments() -> None:
    sampler = sampler_of(((5,),), eval_n_envs=2, eval_env_kwargs={"lengths": ((9,),)})
    with sampler.initialize(Recurrent(), seed=SEED):
        assert {info.Length for info in sampler.evaluate_agent(0)} == {9}
        assert {info.Length for info in sampler.obtain_samples(0)[1]} == {5}


def test_evaluation_environments_need_no_declared_info_keys() -> None:
    sampler = sampler_of(eval_n_envs=2, env_info_keys=EPISODE_STEP_INFO)
    with sampler.initialize(Recurrent(), seed=SEED):
        assert len(sampler.evaluate_agent(0)) == 2


# ---- calls in the wrong order ----


@pytest.fixture
def new() -> Iterator[SerialSampler]:
    sampler = sampler_of(eval_n_envs=1)
    yield sampler
    sampler.shutdown()


@pytest.mark.parametrize("call", ["obtain_samples", "evaluate_agent"])
def test_sampling_before_initialize_says_what_to_do(new: SerialSampler, call: str) -> None:
    with pytest.raises(SamplerError, match=r"call initialize\(agent\) first"):
        getattr(new, call)(0)
    new.initialize(Recurrent(), seed=SEED)
    getattr(new, call)(0)


def test_a_with_block_before_initialize_says_what_to_do(new: SerialSampler) -> None:
    with pytest.raises(SamplerError, match=r"call initialize\(\) first"):
        new.__enter__()


def test_timing_before_initialize_has_no_steps(new: SerialSampler) -> None:
    assert new.timing().steps == 0


def test_second_initialize_is_refused_and_the_sampler_continues(new: SerialSampler) -> None:
    new.initialize(Recurrent(), seed=SEED)
    with pytest.raises(SamplerError, match="make a new sampler"):
        new.initialize(Recurrent(), seed=SEED)
    new.obtain_samples(0)


def test_after_shutdown_everything_is_refused(new: SerialSampler) -> None:
    new.initialize(Recurrent(), seed=SEED)
    new.shutdown()
    new.shutdown()
    for call in (lambda: new.obtain_samples(0), lambda: new.evaluate_agent(0), lambda: new.initialize(Recurrent())):
        with pytest.raises(SamplerClosed, match="closed") as caught:
            call()
        assert caught.value.__cause__ is None


def test_shutdown_before_initialize_closes(new: SerialSampler) -> None:
    new.shutdown()
    with pytest.raises(SamplerClosed):
        new.initialize(Recurrent())


def test_evaluation_without_environments_says_what_to_do() -> None:
    with sampler_of().initialize(Recurrent(), seed=SEED) as sampler:
        with pytest.raises(SamplerError, match="eval_n_envs"):
            sampler.evaluate_agent(0)
        sampler.obtain_samples(0)  # it goes on


def test_a_with_block_closes_the_environments_and_keeps_the_users_error() -> None:
    made: list[AnySpaces] = []
    kwargs = {"observation_space": spaces.Discrete(2), "action_space": spaces.Discrete(2), "made": made}
    sampler = SerialSampler(AnySpaces, kwargs, batch_T=2, batch_B=3, eval_n_envs=2)
    with pytest.raises(ZeroDivisionError), sampler.initialize(CategoricalPgAgent(), seed=0):
        _ = 1 / 0
    assert [env.closed for env in made] == [1] * 5
    with pytest.raises(SamplerClosed) as caught:
        sampler.obtain_samples(0)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


# ---- agents that answer wrongly ----


class Stubborn(CategoricalPgAgent):
    """Changes its outputs after its first call, which determines the layout of a batch."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self._change, self._calls = change, 0

    def step(self, inputs: StepInputs, state: Any) -> AgentStep:
        self._calls += 1
        step = super().step(inputs, state)
        return step if self._calls == 1 else self._change(step)


@pytest.mark.parametrize(
    "change",
    [
        lambda step: AgentStep(step.action[:1], step.agent_info),
        lambda step: AgentStep(step.action[:, None], step.agent_info),
        lambda step: AgentStep(step.action, None),
        lambda step: AgentStep((step.action, step.action), step.agent_info),
        lambda step: AgentStep(step.action, (step.agent_info.value[:1],)),
    ],
)
def test_agent_output_of_another_structure_is_named(change: Any) -> None:
    with sampler_of().initialize(Stubborn(change), seed=SEED) as sampler:
        with pytest.raises(AgentFailed, match=r"Stubborn\.step\(\)"):
            sampler.obtain_samples(0)


# ---- environments as users give them, and the report of time ----


@pytest.mark.parametrize("env", ["CartPole-v1", gym.spec("CartPole-v1"), lambda: gym.make("CartPole-v1")])
def test_an_environment_is_an_id_a_spec_or_a_callable(env: Any) -> None:
    (samples,) = obtain(SerialSampler(env, batch_T=16, batch_B=3), CategoricalPgAgent())
    (other,) = obtain(SerialSampler("CartPole-v1", batch_T=16, batch_B=3), CategoricalPgAgent())
    assert equal(samples, other)
    assert samples.env.observation.shape == (16, 3, 4)


def test_timing_counts_the_steps_environments_took() -> None:
    with sampler_of(reset_mode="wait").initialize(Recurrent(), seed=SEED) as sampler:
        valid = sum(int(sampler.obtain_samples(itr)[0].env.valid.sum()) for itr in range(3))
        report = sampler.timing()
    assert report.steps == valid < 3 * T * B
    assert report.seconds > 0
    shares = (report.env, report.reset, report.acting, report.recording)
    assert math.isclose(sum(shares), 1, abs_tol=1e-6)
    assert all(0 <= share <= 1 for share in (*shares, report.idle))
    assert f"{valid:,} steps" in str(report)


def test_the_batch_spec_is_what_was_asked_for() -> None:
    sampler = sampler_of()
    assert (sampler.batch_spec.T, sampler.batch_spec.B, sampler.batch_spec.size) == (T, B, T * B)


@pytest.mark.parametrize("itr", ["0", None, 0.5, -1, True])
def test_invalid_itr_is_named_and_does_not_close_the_sampler(itr: Any) -> None:
    sampler = SerialSampler(EpisodeStep, batch_T=2, batch_B=1, eval_n_envs=1)
    with sampler.initialize(CategoricalPgAgent(), seed=SEED):
        for call in (sampler.obtain_samples, sampler.evaluate_agent):
            with pytest.raises((TypeError, ValueError), match="itr must be"):
                call(itr)
        sampler.obtain_samples(0)
