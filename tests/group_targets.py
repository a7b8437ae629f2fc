"""Functions that the workers of test_worker_group.py run, in a module that loads torch only if they use it."""

import os
import sys
from typing import Any

from headrace.processes.child import Channel


def echo(channel: Channel, argument: Any) -> None:
    """Answers every command with the worker's argument, the command, its pid and whether torch is loaded."""
    while (command := channel.receive()) is not None:
        channel.reply((argument, command, os.getpid(), "torch" in sys.modules))
    channel.reply(True)


def greeting_echo(channel: Channel, argument: Any) -> None:
    """Says that it is ready, and then echoes."""
    channel.reply("ready")
    echo(channel, argument)


def matmul(channel: Channel, size: int) -> None:
    """Multiplies matrices, which hangs in a forked child whose parent used a thread pool, unless it uses one thread."""
    import torch

    while channel.receive() is not None:
        channel.reply(float((torch.ones(size, size) @ torch.ones(size, size)).sum()))
    channel.reply(True)


def nothing(rank: int) -> None:
    """A prologue that does nothing."""
