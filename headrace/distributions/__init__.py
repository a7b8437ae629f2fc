"""Distributions over actions, as trees of tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.lazy import lazy_exports

if TYPE_CHECKING:
    from headrace.distributions.bernoulli import Bernoulli as Bernoulli
    from headrace.distributions.categorical import Categorical as Categorical
    from headrace.distributions.epsilon_greedy import EpsilonGreedy as EpsilonGreedy
    from headrace.distributions.gaussian import Gaussian as Gaussian
    from headrace.distributions.multi_categorical import MultiCategorical as MultiCategorical

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Bernoulli": "headrace.distributions.bernoulli",
        "Categorical": "headrace.distributions.categorical",
        "EpsilonGreedy": "headrace.distributions.epsilon_greedy",
        "Gaussian": "headrace.distributions.gaussian",
        "MultiCategorical": "headrace.distributions.multi_categorical",
    },
)
