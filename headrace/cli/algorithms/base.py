"""`Algorithm`: what a module of this package defines. `headrace.cli.build.TrainOptions` is the table of all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from gymnasium import spaces as gym_spaces

from headrace.agents.base import Agent
from headrace.algos.base import Algo
from headrace.cli.agents import ATOMS, CRITICS, NOISE, ActingOptions, ModelOptions
from headrace.cli.idle import Rule
from headrace.models.conv import is_image
from headrace.types import EnvSpaces

if TYPE_CHECKING:
    from headrace.cli.build import TrainOptions

__all__ = ["WITHOUT_ATOMS", "WITHOUT_CRITICS", "Algorithm", "Config", "Defaults", "Kind"]

#: "images": an image anywhere in the observation; "continuous": otherwise, Box actions; "discrete": everything else.
Kind = Literal["discrete", "continuous", "images"]
Config = TypeVar("Config")
#: For algorithms that learn mean returns only.
WITHOUT_ATOMS = Rule(
    ATOMS, False, "for categorical-dqn, which learns distributions of returns; add --algo categorical-dqn"
)
#: For algorithms that do not learn the values of Box actions.
WITHOUT_CRITICS = Rule(
    (*CRITICS, *NOISE), False, "for ddpg, td3 and sac, which learn the values of Box actions; add --algo sac"
)


@dataclass(frozen=True, kw_only=True)
class Defaults(Generic[Config]):
    """Default options of a training that depend on the algorithm and the environment; see `TrainOptions`.

    Args:
        settings: settings of the algorithm.
        n_steps: environment steps to train for.
        log_interval_steps: environment steps between log rows.
        batch_T: time steps of a batch.
        batch_B: environments of a batch.
        state_interval: time steps from one recorded recurrent state to the next; None: none are recorded.
        sampler: name of the sampler.
        model: the agent's network.
        acting: exploration.
    """

    settings: Config
    n_steps: int
    log_interval_steps: int
    batch_T: int
    batch_B: int
    state_interval: int | None = None
    sampler: str = "cpu"
    model: ModelOptions = field(default_factory=ModelOptions)
    acting: ActingOptions = field(default_factory=ActingOptions)


@dataclass(frozen=True, kw_only=True)
class Algorithm(Generic[Config]):
    """An algorithm of the command line.

    Args:
        algo: makes the algorithm from its settings.
        agent: makes an agent, not initialized, from the spaces of the environment and the options. Raises UsageError
            for options that do not fit, and CommandFailed if the user's own model raises.
        rules: returns the rules for the options of agents, and for settings that have an effect only with others.
        defaults: default options by kind of environment; a missing kind has those of the first.
        measured: better options for single environments by name; see docs/results.md.
        with_memory: changes default options for an agent with a memory. None: such agents do not exist.
        stands_for: names of algorithms that headrace does not have and to which this one is the nearest; the value
            continues the error's sentence after the name of this algorithm.
    """

    algo: Callable[[Config], Algo]
    agent: Callable[[EnvSpaces, TrainOptions], Agent]
    rules: Callable[[TrainOptions, EnvSpaces], list[Rule]]
    defaults: Mapping[Kind, Defaults[Config]]
    measured: Mapping[str, Defaults[Config]] = field(default_factory=dict)
    with_memory: Callable[[Defaults[Config], Kind], Defaults[Config]] | None = None
    stands_for: Mapping[str, str] = field(default_factory=dict)

    def defaults_for(
        self, env: str, spaces: EnvSpaces, recurrent: Literal["lstm", "gru"] | None = None
    ) -> Defaults[Config]:
        """Returns the default options.

        Args:
            env: name of the environment on the command line.
            spaces: its spaces.
            recurrent: memory of the agent; None: it has none.
        """
        kind = _kind_of(spaces)
        if kind not in self.defaults:
            kind = next(iter(self.defaults))
        found = self.measured.get(env, self.defaults[kind])
        if recurrent is None or self.with_memory is None:
            return found
        found = self.with_memory(found, kind)
        return replace(found, model=replace(found.model, recurrent=recurrent))


def _kind_of(spaces: EnvSpaces) -> Kind:
    if _has_images(spaces.observation):
        return "images"
    return "continuous" if isinstance(spaces.action, gym_spaces.Box) else "discrete"


def _has_images(space: gym_spaces.Space[Any]) -> bool:
    match space:
        case gym_spaces.Dict():
            return any(map(_has_images, space.spaces.values()))
        case gym_spaces.Tuple():
            return any(map(_has_images, space.spaces))
    return is_image(space)
