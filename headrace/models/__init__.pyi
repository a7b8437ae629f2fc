"""Small torch modules, the default models of the agents."""

from headrace.models.actor import Actor as Actor
from headrace.models.conv import NatureCnn as NatureCnn
from headrace.models.critics import Critics as Critics
from headrace.models.features import Features as Features
from headrace.models.mlp import ActorCritic as ActorCritic
from headrace.models.norm import RunningNorm as RunningNorm
from headrace.models.q import DuelingHead as DuelingHead, QNetwork as QNetwork
from headrace.models.rnn import (
    RecurrentActorCritic as RecurrentActorCritic,
    RecurrentQNetwork as RecurrentQNetwork,
)
