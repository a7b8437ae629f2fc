"""Learns CartPole with two actors that have an agent each, a trainer and an evaluation worker.

headrace launch examples/launch/cartpole_inline.py
"""

from headrace.agents.pg import CategoricalPgAgent
from headrace.algos.pg import IMPALA, IMPALAConfig
from headrace.system import (
    ActorConfig,
    EvaluationConfig,
    Experiment,
    ExperimentConfig,
    TrainerConfig,
    register_experiment,
)


class CartPoleInline(Experiment):
    """Two actors with 32 environments and an agent each."""

    def initial_setup(self) -> ExperimentConfig:
        actor = ActorConfig(env="CartPole-v1", n_envs=32, ring_size=1, sample_steps=32, inference_stream=None)
        trainer = TrainerConfig(
            agent=CategoricalPgAgent(model_kwargs={"separate_value": True}),
            algo=IMPALA(IMPALAConfig(learning_rate=2e-3)),
            n_steps=400_000,
            batch_B=32,
        )
        return ExperimentConfig(actors=[actor] * 2, trainers=[trainer], eval_managers=[EvaluationConfig()], seed=0)


register_experiment("cartpole-inline", CartPoleInline)
