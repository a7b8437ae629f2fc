"""Parses the options of a command into a dataclass; an error is one line."""

from __future__ import annotations

import contextlib
import io
import json
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import tyro
from tyro.conf import AvoidSubcommands, OmitArgPrefixes as Unprefixed, Positional, SuppressFixed
from tyro.constructors import PrimitiveConstructorSpec

from headrace.cli.errors import UsageError
from headrace.config import meant_name, nearest_name

__all__ = ["Json", "Lengths", "Positional", "Unprefixed", "flags_of", "nearest_flag", "parse_options", "restored"]


def _json_object(texts: list[str]) -> dict[str, Any]:
    try:
        value = json.loads(texts[0])
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"""expected a JSON object such as '{{"continuous": true}}', got {texts[0]}""")
    return value


#: A dict, written as JSON.
Json = Annotated[
    dict[str, Any],
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="JSON",
        instance_from_str=_json_object,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [json.dumps(value)],
    ),
]


def _lengths(texts: list[str]) -> dict[str, int]:
    lengths = {}
    for text in texts:
        place, equals, n = text.rpartition("=")
        if not equals or not n.isdecimal():
            raise ValueError(f"expected place=n such as mission=48, got {text}")
        lengths[place] = int(n)
    return lengths


#: Maximum lengths by place, each written as `place=n`.
Lengths = Annotated[
    dict[str, int],
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="PLACE=N",
        instance_from_str=_lengths,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [f"{place}={n}" for place, n in value.items()],
    ),
]

_Options = TypeVar("_Options")

#: The annotations that `Unprefixed` and `Positional` add to a type.
_BARE, _ALONE = (get_args(cast(Any, kind)[Any])[1:] for kind in (Unprefixed, Positional))


def parse_options(
    default: _Options,
    prog: str,
    args: Sequence[str],
    own: Callable[[_Options], str] = lambda options: "",
    stray: Callable[[str], str] = lambda word: "",
) -> _Options:
    """Returns `default` with the values of the options.

    Args:
        default: a dataclass; the docstrings of its fields are the help.
        prog: name of the program in the help.
        args: the command line after the name of the program.
        own: returns the name of the nested settings in which to look for the meaning of an unknown option.
        stray: returns the option and value that a word without an option probably means; empty if it is unknown.

    Raises:
        UsageError: an option is unknown, or its value does not parse.
        SystemExit: with status 0, after printing the help.
    """
    complaint = io.StringIO()
    helps = not {"-h", "--help"}.isdisjoint(args)
    # tyro formats its output for the terminal behind standard output, also what it writes to standard error.
    aside = contextlib.nullcontext() if helps else contextlib.redirect_stdout(io.StringIO())
    try:
        with contextlib.redirect_stderr(complaint), aside:
            options, rest = tyro.cli(
                type(default),
                default=default,
                prog=prog,
                args=list(args),
                return_unknown_args=True,
                config=(SuppressFixed, AvoidSubcommands),  # see `_is_in_python_only`
            )
    except SystemExit as leaving:
        if not leaving.code:
            raise
        raise UsageError(f"{_sentence(complaint.getvalue())}; see {prog} --help") from None
    if rest:
        raise UsageError(_about_unknown(rest[0], prog, args, options, own(options), stray))
    return options


def _about_unknown(
    word: str, prog: str, args: Sequence[str], options: Any, own: str, stray: Callable[[str], str]
) -> str:
    """Returns what to say about an unknown option, or about a word that is no option's value."""
    flags, name = flags_of(options), word.partition("=")[0].lstrip("-").replace("-", "_")
    if not word.startswith("-"):
        before = args[args.index(word) - 1]
        remedy = f"{before} takes no value" if before in flags else stray(word) and f"write {stray(word)}"
        return f"{word!r} stands without an option; {remedy or f'see {prog} --help'}"
    if name in _positional(options):
        return f"unknown option {word!r}; its value stands alone: {prog} {name.upper()}"
    near = nearest_flag(word, ["--help", *flags], own)
    return f"unknown option {word!r}; {f'did you mean {near}?' if near else f'see {prog} --help'}"


def nearest_flag(option: str, flags: Sequence[str], own: str) -> str:
    """Returns the flag that an unknown option probably means; empty if there is none.

    Names of other libraries are looked up before similar spellings, each in the settings of the option, then in those
    of `own`, then among the options without settings.

    Args:
        option: the unknown option.
        flags: all flags.
        own: name of the nested settings of the run.
    """
    where, _, name = option.partition("=")[0].lstrip("-").replace("_", "-").rpartition(".")
    for find in (meant_name, nearest_name):
        for prefix in dict.fromkeys([f"--{where}." if where else "--", f"--{own}.", "--"]):
            here = {
                flag[len(prefix) :].replace("-", "_"): flag
                for flag in flags
                if flag.startswith(prefix) and "." not in flag[len(prefix) :]
            }
            if near := find(name, here):
                return here[near]
    return ""


def _sentence(box: str) -> str:
    """Returns the sentence between the first two lines of the box that tyro draws if there is no terminal."""
    _, sentence, *_ = [*re.split(r"^ *-{9,} *$", box, flags=re.MULTILINE), "the options do not parse"]
    return _plain(" ".join(sentence.split()).partition(" Got errors:")[0].rstrip("."))


#: Complaints of tyro and Python about a value, and what is said instead.
_COMPLAINTS = {
    r"Error parsing (--\S+): no type matching (.+) could be instantiated from \[(.*)\]": r"\1 must be \2, got \3",
    r"Error parsing (--\S+): could not convert string to float: (.*)": r"\1 must be FLOAT, got \2",
    r"Error parsing (--\S+): invalid literal for int\(\) with base 10: (.*)": r"\1 must be INT, got \2",
    r"Missing value for argument '(--\S+)'.*": r"\1 needs a value",
    r"invalid choice (.+) for argument '(--\S+)'\. Expected one of \((.*)\)": r"\2 must be one of \3, got \1",
    r"Error parsing (--\S+): (.*)": r"\1: \2",
    r"Error parsing [\w.-]+: (.*)": r"\1",  # a check of the settings themselves
}
#: What tyro calls types.
_TYPES = {
    r"\{None\}\|(.*?)(?=, got)": r"\1 or None",
    r"\{?\[INT \[INT \.\.\.\]\]\}?": "whole numbers",
    r"\bINT\b": "a whole number",
    r"\bFLOAT\b": "a number",
}


def _plain(complaint: str) -> str:
    """Returns a complaint of tyro in plain words; one that is not in the table as it is."""
    # tyro lists choices in the order of a set, which differs from run to run.
    listed = re.search(r"(?<=Expected one of \().*(?=\)$)", complaint)
    if listed:
        complaint = complaint.replace(listed[0], ", ".join(sorted(listed[0].split(", "))))
    for pattern, plain in _COMPLAINTS.items():
        if found := re.fullmatch(pattern, complaint):
            said = found.expand(plain)
            for theirs, ours in _TYPES.items():
                said = re.sub(theirs, ours, said)
            return said
    return complaint


def flags_of(options: Any, prefix: str = "--") -> list[str]:
    """Returns every option as a user writes it: `--batch-T`, `--ppo.epochs`, `--no-separate-value`."""
    flags: list[str] = []
    hints = get_type_hints(type(options), include_extras=True)
    alone = _positional(options)
    for field in fields(options):
        if field.name in alone:
            continue
        value, name = getattr(options, field.name), field.name.replace("_", "-")
        if _is_in_python_only(hints[field.name]):
            continue
        if is_dataclass(value):
            bare = get_args(hints[field.name])[1:] == _BARE
            flags += flags_of(value, prefix if bare else f"{prefix}{name}.")
        else:
            flags += [prefix + name, f"{prefix}no-{name}"] if isinstance(value, bool) else [prefix + name]
    return flags


def _is_in_python_only(hint: Any) -> bool:
    """Returns whether a setting is None or a function, or an object with functions: the command line has neither."""
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else ()
    return any(get_origin(part) is Callable or is_dataclass(part) for part in parts)


def _positional(options: Any) -> list[str]:
    """Returns the names of the fields whose values stand alone on the command line."""
    hints = get_type_hints(type(options), include_extras=True)
    return [field.name for field in fields(options) if get_args(hints[field.name])[1:] == _ALONE]


def restored(default: _Options, settings: Any) -> _Options:
    """Returns `default` with the values of `settings`.

    Args:
        default: a dataclass.
        settings: nested plain values, as from `asdict` and a JSON file.

    Raises:
        TypeError: the dataclass refuses a value.
        ValueError: a setting is unknown or has another type, or the dataclass refuses its value.
    """
    if not isinstance(settings, Mapping):
        raise ValueError(f"expected a dict of settings, got {settings!r}"[:200])
    hints = get_type_hints(type(default), include_extras=True)
    changes: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in hints:
            raise ValueError(f"unknown setting {name!r}; another version of headrace wrote it")
        before = getattr(default, name)
        try:
            changes[name] = restored(before, value) if is_dataclass(before) else _fitting(hints[name], value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return replace(default, **changes)  # type: ignore[type-var]


def _fitting(hint: Any, value: Any) -> Any:
    """Returns `value` as the type requires, lists as tuples; raises ValueError if it has another type."""
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind is Annotated:
        return _fitting(parts[0], value)
    if kind in (Union, types.UnionType):
        for part in parts:
            with contextlib.suppress(ValueError):
                return _fitting(part, value)
    elif kind is tuple and isinstance(value, list):
        return tuple(_fitting(parts[0], item) for item in value)
    elif kind is Literal and isinstance(value, str) and value in parts:
        return value
    elif kind in (int, float) and isinstance(value, bool):
        pass
    elif isinstance(kind, type) and isinstance(value, (int, float) if kind is float else kind):
        return value
    said = f"{value!r}"
    raise ValueError(
        f"{said if len(said) <= 60 else said[:57] + '...'} is not {hint.__name__ if isinstance(hint, type) else hint}"
    )
