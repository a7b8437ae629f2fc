"""R2D1 on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.agents.base import Agent
from headrace.agents.dqn import R2d1Agent
from headrace.algos.dqn import R2D1, R2D1Config
from headrace.cli.agents import ActingOptions, ModelOptions, own_model, tried
from headrace.cli.algorithms import q_learning
from headrace.cli.algorithms.base import WITHOUT_ATOMS, Algorithm, Defaults, Kind
from headrace.cli.errors import UsageError, require_at_least
from headrace.cli.idle import Rule
from headrace.types import EnvSpaces

if TYPE_CHECKING:
    from headrace.cli.build import TrainOptions

__all__ = ["ALGORITHM"]

#: Each environment has its own ε: Kapturowski et al., 2019, as in Horgan et al., "Distributed prioritized experience
#: replay", 2018, but with fewer environments.
_ACTING = ActingOptions(eps_final=0.4, eps_final_min=0.005, eps_steps=10_000)

_DEFAULTS: dict[Kind, Defaults[R2D1Config]] = {
    "discrete": Defaults(
        n_steps=300_000,
        log_interval_steps=10_000,
        batch_T=20,
        batch_B=16,
        state_interval=10,
        sampler="serial",
        model=ModelOptions(recurrent="lstm", normalize_observation=True),
        acting=_ACTING,
        settings=R2D1Config(
            discount=0.99,
            warmup_T=10,
            batch_T=30,
            replay_ratio=16.0,
            target_update_interval=100,
            learning_rate=1e-3,
        ),
    ),
    # Kapturowski et al., 2019, table 2, with a smaller replay and fewer environments.
    "images": Defaults(
        n_steps=10_000_000,
        log_interval_steps=50_000,
        batch_T=40,
        batch_B=16,
        state_interval=40,
        model=ModelOptions(recurrent="lstm", memory_size=512, dueling=True),
        acting=ActingOptions(eps_final=0.4, eps_final_min=0.001, eps_steps=250_000, eps_eval=0.001),
        settings=R2D1Config(
            replay_size=400_000,
            min_steps_learn=50_000,
            target_update_interval=2_500,
            linear_lr_schedule=False,
        ),
    ),
}


def _agent(spaces: EnvSpaces, options: TrainOptions) -> Agent:
    model = options.model
    require_at_least(1, "memory-size", model.memory_size)
    own = own_model(model)
    if model.hidden_sizes is not None or model.separate_value:
        raise UsageError("--hidden-sizes and --separate-value are not for r2d1; its width is --memory-size")
    if model.recurrent is None:
        raise UsageError("r2d1 trains agents with a memory; give --recurrent lstm or gru")
    network = {
        "cell": model.recurrent,
        "hidden_size": model.memory_size,
        "dueling": model.dueling,
        "normalize_observation": model.normalize_observation,
    }
    exploration = q_learning.exploration(options)
    return tried(lambda: R2d1Agent(**own, model_kwargs=model.model_kwargs if own else network, **exploration), spaces)


def _rules(options: TrainOptions, spaces: EnvSpaces) -> list[Rule]:
    settings = options.r2d1
    return [
        *q_learning.rules(options, settings.prioritized_replay),
        Rule(
            ("r2d1.input-priorities",),
            settings.prioritized_replay,
            "for a prioritized replay; leave --r2d1.no-prioritized-replay out",
        ),
        WITHOUT_ATOMS,
    ]


ALGORITHM = Algorithm(
    algo=R2D1,
    agent=_agent,
    rules=_rules,
    defaults=_DEFAULTS,
    stands_for={"r2d2": ", which has one learner", "drqn": "", "recurrent-dqn": ""},
)
