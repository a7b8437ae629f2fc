"""Decoupled training: actor, policy, trainer and evaluation workers, and the controller that watches them."""

from headrace.system.connections import Connections as Connections
from headrace.system.controller import Controller as Controller
from headrace.system.experiment import (
    ActorConfig as ActorConfig,
    EvaluationConfig as EvaluationConfig,
    Experiment as Experiment,
    ExperimentConfig as ExperimentConfig,
    PolicyConfig as PolicyConfig,
    TrainerConfig as TrainerConfig,
    WorkerConfig as WorkerConfig,
    make_experiment as make_experiment,
    register_experiment as register_experiment,
)
from headrace.system.launch import (
    RunResult as RunResult,
    run_experiment as run_experiment,
    run_node as run_node,
)
from headrace.system.worker import (
    PollResult as PollResult,
    Worker as Worker,
    WorkerInformation as WorkerInformation,
    WorkerReport as WorkerReport,
    WorkerState as WorkerState,
)
