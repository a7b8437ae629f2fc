"""docs/reference/progress_csv.md defines exactly the columns that are written."""

import re
from pathlib import Path
from typing import Any

from headrace.agents.dqn import CategoricalDqnAgent, DqnAgent
from headrace.agents.pg import CategoricalPgAgent, GaussianPgAgent
from headrace.algos.dqn import DQN, CategoricalDQN, CategoricalDQNConfig, DQNConfig
from headrace.algos.pg import A2C, IMPALA, PPO, VPG, A2CConfig, PPOConfig
from headrace.runners import MinibatchRl, MinibatchRlEval, RunnerConfig
from headrace.runners.logging import Logger
from headrace.samplers import SerialSampler

PAGE = Path(__file__).parent.parent / "docs/reference/progress_csv.md"
LEARN: dict[str, Any] = {"min_steps_learn": 8, "batch_size": 4, "replay_size": 100, "replay_ratio": 1.0}


class Rows(Logger):
    """Remembers the last row."""

    last: dict[str, float]

    def row(self, row: Any) -> None:
        self.last = dict(row)


def row_of(cls: Any, algo: Any, agent: Any, env: str) -> dict[str, float]:
    sampler = SerialSampler(env, batch_T=16, batch_B=2, max_decorrelation_steps=0, eval_n_envs=1, eval_max_steps=50)
    rows = Rows()
    cls(algo, agent, sampler, RunnerConfig(n_steps=128, seed=0, log_interval_steps=128), logger=rows).train()
    return rows.last


def test_documented_columns_equal_the_columns_of_progress_csv() -> None:
    rows = [
        row_of(MinibatchRl, PPO(PPOConfig(lr_schedule=lambda progress: 0.5)), CategoricalPgAgent(), "CartPole-v1"),
        row_of(MinibatchRlEval, A2C(), GaussianPgAgent(init_log_std=-1.0), "Pendulum-v1"),
        row_of(MinibatchRl, IMPALA(), CategoricalPgAgent(), "CartPole-v1"),
        row_of(MinibatchRl, VPG(), CategoricalPgAgent(), "CartPole-v1"),
        row_of(MinibatchRl, DQN(DQNConfig(**LEARN)), DqnAgent(eps_itr_max=1, eps_final=0.25), "CartPole-v1"),
        row_of(MinibatchRl, CategoricalDQN(CategoricalDQNConfig(**LEARN)), CategoricalDqnAgent(), "CartPole-v1"),
    ]
    assert rows[0]["learningRateMin"] == rows[0]["learningRateMax"] == 0.5 * PPOConfig().learning_rate
    assert [name for name in rows[0] if name.endswith("Average")][:2] == ["ReturnAverage", "LengthAverage"]
    statistic = re.compile(r"(Average|Std|Median|Min|Max)$")
    written = {statistic.sub("", name) for row in rows for name in row}
    defined = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.MULTILINE)
    assert sorted(written) == sorted(defined)
    counters, others = PAGE.read_text().split("## Episodes")
    for name in written:
        several = f"{name}Average" in {name for row in rows for name in row}
        assert f"| `{name}` |" in (others if several else counters), name


def test_exploration_measures_are_columns() -> None:
    row = row_of(MinibatchRl, A2C(A2CConfig(learning_rate=0.0)), GaussianPgAgent(init_log_std=-1.0), "Pendulum-v1")
    assert abs(row["actionStdAverage"] - 2 * 0.36788) < 1e-3, "exp(−1) of half the range, which is 2"
    row = row_of(
        MinibatchRl, DQN(DQNConfig(**LEARN, learning_rate=0.5)), DqnAgent(eps_itr_max=2, eps_final=0.5), "CartPole-v1"
    )
    assert row["epsilonMax"] == 1.0
    assert row["epsilonMin"] == 0.5
    assert row["learningRateMax"] == 0.5
    assert 0.0 < row["learningRateMin"] < 0.5, "the schedule lets it fall"
