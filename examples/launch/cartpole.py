"""Learns CartPole with two actors, a policy worker, a trainer and an evaluation worker.

headrace launch examples/launch/cartpole.py
headrace launch examples/launch/cartpole.py --plot cartpole.svg
"""

from headrace.agents.pg import CategoricalPgAgent
from headrace.algos.pg import IMPALA, IMPALAConfig
from headrace.system import (
    ActorConfig,
    EvaluationConfig,
    Experiment,
    ExperimentConfig,
    PolicyConfig,
    TrainerConfig,
    register_experiment,
)


class CartPole(Experiment):
    """Two actors with 32 environments each, in two slices of which one steps while the other waits."""

    def initial_setup(self) -> ExperimentConfig:
        actor = ActorConfig(env="CartPole-v1", n_envs=16, ring_size=2, sample_steps=32)
        trainer = TrainerConfig(
            agent=CategoricalPgAgent(model_kwargs={"separate_value": True}),
            algo=IMPALA(IMPALAConfig(learning_rate=2e-3)),
            n_steps=400_000,
            batch_B=32,
        )
        return ExperimentConfig(
            actors=[actor] * 2,
            policies=[PolicyConfig()],
            trainers=[trainer],
            eval_managers=[EvaluationConfig()],
            seed=0,
        )


register_experiment("cartpole", CartPole)
