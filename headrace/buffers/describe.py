"""Text description of a batch, as shown by `print(samples)`."""

from __future__ import annotations

from typing import Any

from headrace.buffers.tree import tree_paths
from headrace.types import Tree

__all__ = ["described_batch"]

_WIDTH = 110


def described_batch(env: Any, agent: Any, final: Any) -> str:
    """Returns one line per field, with dtypes, shapes and devices; at most 20 lines for any spaces.

    Args:
        env: the `EnvSamples`.
        agent: the `AgentSamples`.
        final: the `Final`.
    """
    T, B = env.reward.shape
    lines = [
        f"Samples [T={T}, B={B}]: {int(env.valid.sum())} valid steps, {len(final)} episodes ended "
        f"({int(env.terminated.sum())} terminated, {int((env.truncated & ~env.terminated).sum())} truncated)"
    ]
    for name, part in (("env", env), ("agent", agent)):
        lines += [_line(f"{name}.{field}", tree) for field, tree in vars(part).items() if tree is not None]
    lines.append(_line("final.observation", final.observation))
    return "\n".join(lines)


def _line(name: str, tree: Tree) -> str:
    leaves = [f"{path.lstrip('.')} {_kind(leaf)}".strip() for path, leaf in tree_paths(tree)]
    line = f"  {name}: {', '.join(leaves)}"
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 1]}…"


def _kind(leaf: Any) -> str:
    """Returns dtype and shape, and the device unless it is the CPU."""
    device = str(getattr(leaf, "device", "cpu"))
    dtype = str(leaf.dtype).removeprefix("torch.")
    return f"{dtype} {list(leaf.shape)}" + (f" on {device}" if device != "cpu" else "")
