"""Statistics of episodes: what a per-step computation would give, in the order (end time, env id)."""

import pickle
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings, strategies as st

from headrace import compiled
from headrace.agents.pg import CategoricalPgAgent
from headrace.rng import env_seeds
from headrace.samplers import CpuSampler, SerialSampler, TrajInfo
from headrace.samplers.traj_info import EpisodeColumns, Episodes, TrajInfos
from tests.environments import SEED, EpisodeStep, Stochastic

# ---- the running columns against a computation step by step ----


@dataclass
class Batch:
    reward: np.ndarray
    ends: np.ndarray  # [T, n]
    stepped: np.ndarray


@st.composite
def histories(draw: st.DrawFn) -> tuple[float, list[Batch]]:
    """Some batches: with wait, rows stop at their first end and are padding until the next batch."""
    T, n = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    discount = draw(st.sampled_from([1.0, 0.99, 0.5, 0.0]))
    wait = draw(st.booleans())
    end_often = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batches = []
    for _ in range(draw(st.integers(1, 4))):
        reward = generator.integers(-2, 3, (T, n)).astype(np.float32) / 4
        ends = generator.random((T, n)) < end_often
        stepped = np.full(n, T)
        if wait:
            for row in np.flatnonzero(ends.any(axis=0)):
                stepped[row] = ends[:, row].argmax() + 1
            padding = np.arange(T)[:, None] >= stepped
            ends &= ~padding
            reward[padding] = 0
        batches.append(Batch(reward, ends, stepped))
    return discount, batches


ENV_IDS = [7, 3, 11, 4]  # in no order


def naive(discount: float, batches: list[Batch]) -> list[list[TrajInfo]]:
    n = batches[0].reward.shape[1]
    running = [TrajInfo(discount=discount) for _ in range(n)]
    answers = []
    for number, batch in enumerate(batches):
        found = []
        for t in range(len(batch.reward)):
            for row in range(n):
                if t >= batch.stepped[row]:
                    continue
                info, reward = running[row], float(batch.reward[t, row])
                info.Return += reward
                info.DiscountedReturn += discount**info.Length * reward
                info.NonzeroRewards += reward != 0
                info.Length += 1
                if batch.ends[t, row]:
                    info.env_id, info.info = ENV_IDS[row], {"end": (number, t, row)}
                    found.append((t, ENV_IDS[row], info))
                    running[row] = TrajInfo(discount=discount)
        answers.append([info for _, _, info in sorted(found, key=lambda entry: entry[:2])])
    return answers


@pytest.mark.parametrize("pure", [False, True], ids=["native", "pure"])
@settings(deadline=None, max_examples=200)
@given(history=histories())
def test_vectorized_statistics_equal_a_computation_step_by_step(history: tuple[float, list[Batch]], pure: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if pure:
            patch.setattr(compiled, "batch", None)
        assert_equals_naive(*history)


def assert_equals_naive(discount: float, batches: list[Batch]) -> None:
    kwargs = {"discount": discount}
    columns = EpisodeColumns(ENV_IDS[: batches[0].reward.shape[1]], TrajInfo, kwargs)
    for number, (batch, expected) in enumerate(zip(batches, naive(discount, batches), strict=True)):
        times, rows = np.nonzero(batch.ends)
        infos = [{"end": (number, t, row)} for t, row in zip(times.tolist(), rows.tolist(), strict=True)]
        episodes = columns.add(batch.reward, batch.stepped, times.tolist(), rows.tolist(), infos, [])
        traj_infos = TrajInfos([episodes], TrajInfo, kwargs)
        for info, other in zip(traj_infos, expected, strict=True):
            assert info.DiscountedReturn == pytest.approx(other.DiscountedReturn, rel=1e-12, abs=1e-12)
            info.DiscountedReturn = other.DiscountedReturn
            assert info == other
            assert [type(value) for value in vars(info).values()] == [int, float, float, int, int, bool, dict, float]


def test_unfinished_episodes_have_the_statistics_so_far() -> None:
    columns = EpisodeColumns([5, 6, 7], TrajInfo, {"discount": 0.5})
    reward = np.array([[1, 2, 3], [4, 0, 6]], np.float32)
    columns.add(reward, np.array([2, 2, 2]), [1], [2], [{}], [])
    traj_infos = TrajInfos([columns.unfinished(9)], TrajInfo, {"discount": 0.5})
    assert traj_infos == [
        TrajInfo(2, 5.0, 3.0, 2, env_id=5, finished=False, discount=0.5),
        TrajInfo(2, 2.0, 2.0, 1, env_id=6, finished=False, discount=0.5),
    ]


def test_traj_infos_are_made_when_asked_for_and_own_their_data() -> None:
    made = 0

    class Counted(TrajInfo):
        def __init__(self) -> None:
            nonlocal made
            made += 1
            super().__init__()

    columns = EpisodeColumns([3, 4], Counted, {})
    first, second = (
        columns.add(np.ones((3, 2), np.float32), np.array([3, 3]), [1, 2], [1, 0], [{"i": i}, {}], []) for i in (1, 2)
    )
    made = 0
    traj_infos = TrajInfos([first], Counted, {})
    assert (len(traj_infos), made) == (2, 0)
    assert traj_infos[0] is traj_infos[0]
    assert made == 2
    assert [(info.env_id, info.Length, info.info) for info in traj_infos] == [(4, 2, {"i": 1}), (3, 3, {})]
    assert [info.Length for info in [*TrajInfos([second], Counted, {}), *traj_infos[1:]]] == [3, 3, 3]
    everything = already = [TrajInfo()]
    everything += traj_infos
    assert len(already) == 3
    plain = TrajInfos([first], TrajInfo, {})
    assert pickle.loads(pickle.dumps(plain)) == plain == list(plain)
    assert plain != list(plain)[:1]


@pytest.mark.parametrize("n", [0, 3])
@pytest.mark.parametrize("infos", [False, True])
def test_episodes_survive_pickling(n: int, infos: bool) -> None:
    """Every number exactly: lengths beyond those of a float, returns with all of their digits, infinite ones, too."""
    whole = np.arange(n) + 2**60 + 1
    fractions = np.array([0.1, -np.inf, 1e300])[:n]
    last = [{"score": index} if infos else {} for index in range(n)]
    own = [{"mine": index} for index in range(n)] if infos else None
    finished = np.array([True, False, True])[:n]
    episodes = Episodes(whole, whole + 1, whole + 2, fractions, -fractions, whole + 3, finished, last, own)
    again = pickle.loads(pickle.dumps(episodes))
    for name in ("time", "env_id", "length", "ret", "discounted", "nonzero", "finished"):
        before, after = getattr(episodes, name), getattr(again, name)
        assert after.dtype == before.dtype
        assert np.array_equal(after, before)
        after[:] = 0  # they can be written to
    assert (again.infos, again.own) == (last, own)


def test_restart_discards_running_episodes() -> None:
    columns = EpisodeColumns([0], TrajInfo, {})
    columns.add(np.ones((3, 1), np.float32), np.array([3]), [], [], [], [])
    columns.restart()
    episodes = columns.add(np.ones((2, 1), np.float32), np.array([2]), [1], [0], [{}], [])
    assert TrajInfos([episodes], TrajInfo, {}) == [TrajInfo(2, 2.0, 2.0, 2, env_id=0)]


def test_returns_of_long_episodes_keep_their_precision() -> None:
    """Sums are float64: 0.1 (as float32) a million times over, in batches."""
    columns = EpisodeColumns([0], TrajInfo, {})
    reward = np.full((10_000, 1), 0.1, np.float32)
    for _ in range(99):
        columns.add(reward, np.array([10_000]), [], [], [], [])
    episodes = columns.add(reward, np.array([10_000]), [9_999], [0], [{}], [])
    assert episodes.ret[0] == pytest.approx(1e6 * float(np.float32(0.1)), rel=1e-12)


def test_slices_are_merged_in_the_order_of_time_and_env_id() -> None:
    parts = []
    for env_ids, rows in (([4, 5], [1, 0]), ([2, 3], [0, 1])):
        columns = EpisodeColumns(env_ids, TrajInfo, {})
        parts.append(columns.add(np.ones((3, 2), np.float32), np.array([3, 3]), [0, 2], rows, [{}, {}], []))
    assert [(info.Length, info.env_id) for info in TrajInfos(parts, TrajInfo, {})] == [
        (1, 2),
        (1, 5),
        (3, 3),
        (3, 4),
    ]


# ---- through a sampler ----


@dataclass
class Diary(TrajInfo):
    """Keeps what it is told."""

    Odd: int = 0
    steps: list[tuple[Any, ...]] = field(default_factory=list)

    def step(
        self, observation: Any, action: Any, reward: float, terminated: bool, truncated: bool, env_info: dict[str, Any]
    ) -> None:
        self.Odd += env_info["odd"]
        self.steps.append((observation.tolist(), int(action), reward, terminated, truncated, env_info["pair"].tolist()))


LENGTHS = ((3, 1, 4), (5, 2), (1, 2), (7,))


def diary_of_episode(number: int, episode: int, actions: list[int]) -> list[tuple[Any, ...]]:
    length = LENGTHS[number][episode % len(LENGTHS[number])]
    terminated, truncated = EpisodeStep.ENDS[(episode + number) % 3]
    assert len(actions) == length
    return [
        (
            [episode, step],
            action,
            10 * episode + step - 1 + action / 4,
            terminated and step == length - 1,
            truncated and step == length - 1,
            [episode, step + 1],
        )
        for step, action in enumerate(actions)
    ]


@pytest.mark.parametrize("max_decorrelation_steps", [0, 12])
@pytest.mark.parametrize("reset_mode", ["mid_batch", "wait"])
def test_overridden_step_is_called_once_per_step_with_its_data(reset_mode: str, max_decorrelation_steps: int) -> None:
    """During decorrelation too, whose steps count; never for padding rows."""
    sampler = SerialSampler(
        EpisodeStep,
        {"lengths": LENGTHS},
        batch_T=6,
        batch_B=4,
        TrajInfoCls=Diary,
        reset_mode=reset_mode,
        max_decorrelation_steps=max_decorrelation_steps,
    )
    actions: list[list[int]] = [[] for _ in range(4)]
    diaries: list[Diary] = []
    with sampler.initialize(CategoricalPgAgent(), seed=SEED):
        for itr in range(5):
            samples, traj_infos = sampler.obtain_samples(itr)
            diaries += traj_infos  # type: ignore[arg-type]
            for b in range(4):
                if itr == 0 and max_decorrelation_steps:
                    actions[b] += decorrelation_actions(b, samples.env.observation[0, b].tolist())
                actions[b] += samples.agent.action[:, b][samples.env.valid[:, b]].tolist()
    assert len(diaries) >= 16
    episodes = [-1] * 4
    if max_decorrelation_steps:  # what ended during decorrelation is in no batch
        for b in range(4):
            skipped = int(min(info.steps[0][0][0] for info in diaries if info.env_id == b))
            actions[b] = actions[b][sum(length_of(b, episode) for episode in range(skipped)) :]
            episodes[b] += skipped
    for info in diaries:
        b = info.env_id
        episodes[b] += 1
        mine, actions[b] = actions[b][: info.Length], actions[b][info.Length :]
        assert info.steps == diary_of_episode(b, episodes[b], mine)
        assert sum(reward for _, _, reward, *_ in info.steps) == info.Return
        assert sum((step + 1) % 2 for step in range(info.Length)) == info.Odd
        assert info.info["pair"].tolist() == [episodes[b], info.Length]
        assert info.finished


def length_of(number: int, episode: int) -> int:
    return LENGTHS[number][episode % len(LENGTHS[number])]


def decorrelation_actions(number: int, where: list[float]) -> list[int]:
    """Those of the environment's action space, as many as brought it to (episode, step)."""
    count = sum(length_of(number, episode) for episode in range(int(where[0]))) + int(where[1])
    space = spaces.Discrete(3)
    space.seed(env_seeds(SEED, number)[1])
    assert 1 <= count <= 12
    return [int(space.sample()) for _ in range(count)]


class From5(EpisodeStep):
    """Its actions are 5, 6 and 7."""

    def __init__(self) -> None:
        super().__init__(LENGTHS)
        self.action_space = spaces.Discrete(3, start=5)


def test_actions_passed_to_step_include_those_of_decorrelation() -> None:
    sampler = SerialSampler(From5, batch_T=6, batch_B=4, TrajInfoCls=Diary, max_decorrelation_steps=6)
    with sampler.initialize(CategoricalPgAgent(), seed=SEED):
        told = [entry[1] for itr in range(3) for info in sampler.obtain_samples(itr)[1] for entry in info.steps]  # type: ignore[attr-defined]
    assert set(told) == {0, 1, 2}


def test_step_is_called_in_evaluations_and_unfinished_episodes_keep_its_statistics() -> None:
    sampler = SerialSampler(
        EpisodeStep,
        {"lengths": ((3,), (50,))},
        batch_T=2,
        batch_B=1,
        TrajInfoCls=Diary,
        eval_n_envs=2,
        eval_max_steps=80,
    )
    with sampler.initialize(CategoricalPgAgent(), seed=SEED):
        short, cut = sampler.evaluate_agent(0)
    assert isinstance(short, Diary)
    assert isinstance(cut, Diary)
    assert (short.Length, short.finished, len(short.steps), short.env_id) == (3, True, 3, 0)
    assert (cut.Length, cut.finished, len(cut.steps), cut.env_id) == (40, False, 40, 1)
    assert [entry[0] for entry in cut.steps] == [[0, step] for step in range(40)]


class AsInRlpyt(TrajInfo):
    """A subclass with a constructor of its own, not a dataclass."""

    def __init__(self, scale: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.scale = scale
        self.Scaled = 0.0

    def step(self, *args: Any) -> None:
        self.Scaled += self.scale * args[2]


class OwnConstructorOnly(TrajInfo):
    """Adds a field, and does not override step."""

    def __init__(self, label: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.label = label


@pytest.mark.parametrize("cls", [SerialSampler, CpuSampler])
def test_subclasses_with_their_own_constructor_work(cls: type[SerialSampler]) -> None:
    for TrajInfoCls, kwargs in ((AsInRlpyt, {"scale": 3.0}), (OwnConstructorOnly, {"label": "x"})):
        sampler = cls(
            EpisodeStep,
            {"lengths": LENGTHS},
            batch_T=10,
            batch_B=2,
            TrajInfoCls=TrajInfoCls,
            n_workers=2,
            start_method="fork",
            max_decorrelation_steps=0,
        )
        with sampler.initialize(CategoricalPgAgent(), seed=SEED, traj_info_kwargs={"discount": 0.5, **kwargs}):
            _, traj_infos = sampler.obtain_samples(0)
        assert [info.Length for info in traj_infos] == [3, 1, 5, 2, 4]
        for info in traj_infos:
            assert isinstance(info, TrajInfoCls)
            assert info.discount == 0.5
            if isinstance(info, AsInRlpyt):
                assert info.Scaled == 3 * info.Return
                assert info.scale == 3
            else:
                assert info.label == "x"


def test_two_samplers_with_different_discounts_do_not_share_them() -> None:
    samplers = [SerialSampler(EpisodeStep, {"lengths": LENGTHS}, batch_T=7, batch_B=4) for _ in range(2)]
    discounts = (0.5, 0.9)
    for sampler, discount in zip(samplers, discounts, strict=True):
        sampler.initialize(CategoricalPgAgent(), seed=SEED, traj_info_kwargs={"discount": discount})
    answers: list[list[TrajInfo]] = [[], []]
    for itr in range(4):
        for sampler, answer in zip(samplers, answers, strict=True):
            answer += sampler.obtain_samples(itr)[1]
    for sampler in samplers:
        sampler.shutdown()
    assert [info.Return for info in answers[0]] == [info.Return for info in answers[1]]
    longer = [(first, second) for first, second in zip(*answers, strict=True) if first.Length > 2]
    assert len(longer) > 5
    assert all(first.DiscountedReturn != second.DiscountedReturn for first, second in longer)
    assert {info.discount for info in answers[0]} == {0.5}
    assert {info.discount for info in answers[1]} == {0.9}
    assert TrajInfo().discount == 1.0
    assert TrajInfo.discount == 1.0


@pytest.mark.parametrize("reset_mode", ["mid_batch", "wait"])
def test_episodes_are_returned_by_the_call_in_which_they_ended_in_order(reset_mode: str) -> None:
    sampler = SerialSampler(Stochastic, batch_T=15, batch_B=6, reset_mode=reset_mode)
    with sampler.initialize(CategoricalPgAgent(), seed=SEED):
        for itr in range(6):
            samples, traj_infos = sampler.obtain_samples(itr)
            ends = samples.env.done.nonzero()
            assert [info.env_id for info in traj_infos] == ends[:, 1].tolist()
            assert len(ends) > 3
            for (t, b), info in zip(ends.tolist(), traj_infos, strict=True):
                starts = samples.env.is_first[: t + 1, b].nonzero()
                if len(starts) and (itr or starts[-1].item()):  # it began in this batch
                    begin = int(starts[-1])
                    assert info.Length == t - begin + 1
                    assert info.Return == pytest.approx(samples.env.reward[begin : t + 1, b].sum().item(), abs=1e-5)
                    assert info.DiscountedReturn == info.Return  # discount 1
                assert set(info.info) == {"left"}


def test_last_info_of_an_episode_is_complete() -> None:
    sampler = SerialSampler(EpisodeStep, {"lengths": ((4,),)}, batch_T=4, batch_B=2, max_decorrelation_steps=0)
    with sampler.initialize(CategoricalPgAgent(), seed=SEED):
        _, traj_infos = sampler.obtain_samples(0)
    assert [(info.info["number"], info.info["pair"].tolist()) for info in traj_infos] == [(0, [0, 4]), (1, [0, 4])]
