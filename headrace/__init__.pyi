"""headrace: experience for reinforcement learning, collected in parallel, fast and exact."""

from headrace import (
    agents as agents,
    algos as algos,
    buffers as buffers,
    distributions as distributions,
    envs as envs,
    models as models,
    processes as processes,
    replays as replays,
    runners as runners,
    samplers as samplers,
)
from headrace.compiled import native as native
from headrace.errors import SamplerError as SamplerError
from headrace.policy import load_agent as load_agent
from headrace.processes.affinity import Affinity as Affinity
from headrace.types import BatchSpec as BatchSpec
