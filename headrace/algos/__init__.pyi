"""Algorithms, which update an agent from batches."""

from headrace.algos.base import Algo as Algo, OptInfo as OptInfo
from headrace.algos.off_policy import OffPolicyAlgo as OffPolicyAlgo, OffPolicyConfig as OffPolicyConfig
