"""Algorithms, which update an agent from batches."""

from headrace.algos.base import Algo as Algo, OptInfo as OptInfo
