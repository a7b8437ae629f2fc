"""Distributions over actions, as dataclasses of tensors."""

from headrace.distributions.bernoulli import Bernoulli as Bernoulli
from headrace.distributions.categorical import Categorical as Categorical
from headrace.distributions.epsilon_greedy import EpsilonGreedy as EpsilonGreedy
from headrace.distributions.gaussian import Gaussian as Gaussian
from headrace.distributions.multi_categorical import MultiCategorical as MultiCategorical
from headrace.distributions.squashed_gaussian import SquashedGaussian as SquashedGaussian
