"""Names of settings: which setting a wrong name means, and which settings differ from their defaults."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import partial, wraps
from typing import Any, TypeVar

__all__ = ["call_text", "checked_names", "meant_name", "nearest_name", "require_known", "settings_in"]

#: Names of settings in other libraries and common usage, and headrace's names. The first that a class has is meant.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "action_noise": ("exploration_std",),
    "action_std": ("exploration_std",),
    "actor_lr": ("actor_learning_rate",),
    "alpha": ("pri_alpha",),
    "beta": ("pri_beta_init",),
    "buffer_size": ("replay_size",),
    "clip_coef": ("ratio_clip",),
    "clip_eps": ("ratio_clip",),
    "clip_param": ("ratio_clip",),
    "clip_range": ("ratio_clip",),
    "clip_range_vf": ("value_clip",),
    "critic_lr": ("learning_rate",),
    "cuda": ("device",),
    "ent_coef": ("entropy_loss_coeff", "alpha"),
    "entropy_coef": ("entropy_loss_coeff",),
    "entropy_coeff": ("entropy_loss_coeff",),
    "env": ("EnvCls",),
    "env_fn": ("env", "EnvCls"),
    "env_id": ("env", "EnvCls"),
    "environment": ("env", "EnvCls"),
    "eps": ("adam_eps", "eps_final"),
    "eps_steps": ("eps_steps", "eps_itr_max"),
    "epsilon": ("ratio_clip", "eps_final"),
    "eval_freq": ("log_interval_steps",),
    "exploration_final_eps": ("eps_final",),
    "exploration_fraction": ("eps_steps", "eps_itr_max"),
    "exploration_initial_eps": ("eps_init",),
    "fixed_alpha": ("alpha",),
    "gae_lam": ("gae_lambda",),
    "game": ("env", "EnvCls"),
    "gamma": ("discount",),
    "gpu": ("device",),
    "gradient_steps": ("replay_ratio",),
    "horizon": ("batch_T",),
    "huber": ("delta_clip",),
    "initial_lr": ("learning_rate",),
    "lam": ("gae_lambda",),
    "lambda": ("gae_lambda",),
    "learning_starts": ("min_steps_learn",),
    "linear_lr": ("linear_lr_schedule",),
    "log_freq": ("log_interval_steps",),
    "log_interval": ("log_interval_steps",),
    "log_std_init": ("init_log_std",),
    "lr": ("learning_rate",),
    "lr_decay": ("linear_lr_schedule",),
    "lr_schedule": ("linear_lr_schedule",),
    "lstm": ("recurrent",),
    "max_grad_norm": ("clip_grad_norm",),
    "max_steps": ("n_steps",),
    "minibatch_size": ("minibatches",),
    "mp_context": ("start_method",),
    "n_envs": ("batch_B",),
    "n_epochs": ("epochs",),
    "n_eval_episodes": ("eval_episodes",),
    "n_minibatches": ("minibatches",),
    "n_processes": ("n_workers",),
    "n_step_return": ("n_step",),
    "n_steps": ("batch_T",),
    "net_arch": ("hidden_sizes",),
    "norm_adv": ("normalize_advantage",),
    "norm_obs": ("normalize_observation",),
    "norm_reward": ("normalize_reward",),
    "normalize_obs": ("normalize_observation",),
    "num_envs": ("batch_B",),
    "num_epochs": ("epochs",),
    "num_minibatches": ("minibatches",),
    "num_processes": ("n_workers",),
    "num_steps": ("n_steps", "batch_T"),
    "num_workers": ("n_workers",),
    "out": ("log_dir",),
    "output_dir": ("log_dir",),
    "pi_lr": ("actor_learning_rate",),
    "policy_delay": ("policy_update_interval",),
    "policy_frequency": ("policy_update_interval",),
    "polyak": ("target_update_tau",),
    "prioritized": ("prioritized_replay",),
    "processes": ("n_workers",),
    "rollout_fragment_length": ("batch_T",),
    "rollout_length": ("batch_T",),
    "save_dir": ("log_dir",),
    "save_freq": ("checkpoint_interval_steps",),
    "start_steps": ("random_steps", "random_itr_max"),
    "steps": ("n_steps", "batch_T"),
    "target_network_update_freq": ("target_update_interval",),
    "target_policy_noise": ("target_noise_std",),
    "target_update_freq": ("target_update_interval",),
    "tau": ("target_update_tau",),
    "threads": ("torch_threads",),
    "timesteps": ("n_steps",),
    "total_steps": ("n_steps",),
    "total_timesteps": ("n_steps",),
    "train_freq": ("replay_ratio",),
    "train_v_iters": ("value_epochs",),
    "unroll_length": ("batch_T",),
    "update_epochs": ("epochs",),
    "value_coeff": ("value_loss_coeff",),
    "vf_coef": ("value_loss_coeff",),
    "workers": ("n_workers",),
}

_Class = TypeVar("_Class", bound=type)


def meant_name(name: str, known: Collection[str]) -> str:
    """Returns the known name that `name`, headrace's or another library's, means; empty if there is none."""
    lower = name.lower().replace("-", "_")
    return next((ours for ours in (lower, *SYNONYMS.get(lower, ())) if ours in known), "")


def nearest_name(name: str, known: Collection[str]) -> str:
    """Returns `meant_name`, or else the known name with the most similar spelling; empty if none is similar.

    Spellings are compared without regard to case, and to "-" or "_".
    """
    spelt = {one.lower().replace("-", "_"): one for one in known}
    near = difflib.get_close_matches(name.lower().replace("-", "_"), spelt, n=1, cutoff=0.6)
    return meant_name(name, known) or (spelt[near[0]] if near else "")


def require_known(
    owner: str, names: Iterable[str], known: Collection[str], remedy: Callable[[str], str] | None = None
) -> None:
    """Raises TypeError for the first keyword that is not known, with what to do about it.

    Args:
        owner: name of the class that takes the settings.
        names: the keywords that were passed.
        known: names of the settings.
        remedy: says what to do about an unknown name. Default: names the setting that was probably meant.
    """
    for name in names:
        if name not in known:
            near = nearest_name(name, known)
            meant = f"it is called {near}" if near else f"its settings are {', '.join(known)}"
            raise TypeError(f"{owner} has no setting {name!r}; {meant if remedy is None else remedy(name)}")


def checked_names(cls: _Class) -> _Class:
    """Decorates a class whose constructor takes settings by name.

    An unknown keyword raises TypeError with the name of the setting that was probably meant. The `repr` of a dataclass
    shows only settings that differ from their defaults.
    """
    _refuse_unknown(cls, list(inspect.signature(cls).parameters))
    if is_dataclass(cls):

        def __repr__(self: Any) -> str:
            return call_text(type(self), {field.name: getattr(self, field.name) for field in fields(self)})

        cls.__repr__ = __repr__  # type: ignore[method-assign]
    return cls


def settings_in(config: type, first: bool = True) -> Callable[[_Class], _Class]:
    """Returns a decorator for a class whose constructor takes all settings in one object of class `config`.

    A setting as a keyword of the class raises TypeError that says where it belongs, and so does an object of another
    class in place of the settings.

    Args:
        config: class of the settings.
        first: whether the settings are the first argument; otherwise the constructor checks their class itself.
    """
    settings = [field.name for field in fields(config)]

    def decorated(cls: _Class) -> _Class:
        def remedy(owner: str, name: str) -> str:
            near = nearest_name(name, settings)
            call = f"{owner}({'' if first else '..., '}{config.__name__}({near or '...'}{'=...' * bool(near)}))"
            return f"settings are given as {call}" + ("" if near else f"; its settings are {', '.join(settings)}")

        def check(given: Any) -> None:
            if given is not None and not isinstance(given, config):
                raise TypeError(
                    f"{cls.__name__} takes its settings as a {config.__name__}, got {type(given).__name__} {given!r}; "
                    f"give {cls.__name__}({config.__name__}(...))"
                )

        return _refuse_unknown(cls, list(inspect.signature(cls).parameters), remedy, check if first else None)

    return decorated


def _refuse_unknown(
    cls: _Class,
    known: list[str],
    remedy: Callable[[str, str], str] | None = None,
    check: Callable[[Any], None] | None = None,
) -> _Class:
    """Makes the constructor raise TypeError for unknown keywords.

    Args:
        cls: the class; it is changed.
        known: names of the arguments.
        remedy: as for `require_known`, called with the name of the class of the object and the unknown name.
        check: called with the first argument, if one is given.
    """
    made: Any = cls
    construct = made.__init__

    @wraps(construct)
    def constructed(self: Any, *args: Any, **kwargs: Any) -> None:
        owner = type(self).__name__
        require_known(owner, kwargs, known, None if remedy is None else partial(remedy, owner))
        if check is not None:
            check(args[0] if args else kwargs.get(known[0]))
        construct(self, *args, **kwargs)

    made.__init__ = constructed
    return cls


def call_text(cls: type, arguments: Mapping[str, Any]) -> str:
    """Returns the constructor call of an object, `Cls(name=value)`, with arguments that differ from their defaults."""
    parameters = inspect.signature(cls).parameters
    parts = [
        f"{name}={_text(value)}"
        for name, value in arguments.items()
        if not _same(value, parameters[name].default if name in parameters else inspect.Parameter.empty)
    ]
    return f"{cls.__name__}({', '.join(parts)})"


def _same(value: Any, default: Any) -> bool:
    if default is None and isinstance(value, Mapping):  # an empty dict equals the default None
        return not value
    return type(value) is type(default) and bool(value == default)


def _text(value: Any) -> str:
    return str(value.__name__) if isinstance(value, type) else repr(value)
