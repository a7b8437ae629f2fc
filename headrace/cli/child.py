"""Tries an environment in a child process, so that the command's own process is not affected.

Environments with OpenGL or JAX open devices and start threads. Workers that are forked from a process with these may
hang or crash.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from headrace.cli.errors import CommandFailed, UsageError
from headrace.cli.report import failed
from headrace.envs.checking.check import one_thread
from headrace.envs.factory import EnvFactory
from headrace.errors import SamplerError, headline
from headrace.processes.child import Channel
from headrace.processes.group import WorkerGroup
from headrace.processes.start_method import choose_start_method
from headrace.processes.status import Phase
from headrace.samplers.config import SamplerOptions

__all__ = ["in_child"]

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class _Refusal:
    """An error that the child process sends to the parent.

    Args:
        text: what `CommandFailed` says.
        status: exit status of the command.
    """

    text: str
    status: int


def in_child(function: Callable[[EnvFactory], _Answer], factory: EnvFactory, start_method: str) -> _Answer:
    """Returns `function(factory)`, called in a child process that ends afterwards.

    Args:
        function: a module-level function. It may raise CommandFailed and SamplerError; what it returns is pickled.
        factory: makes the environment.
        start_method: how the child process starts, as for a sampler.

    Raises:
        UsageError: raised by the function.
        CommandFailed: raised by the function, or for a SamplerError, a crash, or a call that does not end.
    """
    try:
        group = WorkerGroup(
            _child,
            [factory],
            start_method=choose_start_method(start_method),
            prologue=one_thread,
            name="headrace-try",
            timeout=SamplerOptions.start_timeout,
            names=["the process that tries the environment"],
        )
        try:
            group.send(function)
            (answer,) = group.replies()
            group.stop()
        finally:
            group.kill()
    except SamplerError as error:
        raise failed(error, None) from error
    except ValueError as error:  # start_method="fork" in a program that has used CUDA
        raise UsageError(str(error)) from error
    if isinstance(answer, _Refusal):
        raise (UsageError if answer.status == UsageError.status else CommandFailed)(answer.text)
    result: _Answer = answer
    return result


def _child(channel: Channel, factory: EnvFactory) -> None:
    """Calls each function that it receives, until it receives None."""
    channel.status.enter(Phase.CONSTRUCTING)
    while (function := channel.receive()) is not None:
        answer = _called(function, factory)
        try:
            channel.reply(answer)
        except Exception as error:  # pickling may raise anything
            text = f"{factory.name}: its spaces cannot be pickled ({headline(error)}); use Gymnasium's own spaces"
            channel.reply(_Refusal(text, CommandFailed.status))
    channel.leave()


def _called(function: Callable[[EnvFactory], Any], factory: EnvFactory) -> Any:
    try:
        return function(factory)
    except CommandFailed as error:
        return _Refusal(str(error), error.status)
    except SamplerError as error:
        return _Refusal(error.message, CommandFailed.status)
