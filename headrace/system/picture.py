"""Draws the workers of an experiment and what connects them, with graphviz."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from pathlib import Path

from headrace.system.experiment import ExperimentConfig

__all__ = ["draw_experiment", "experiment_graph"]

_SECONDS = 60.0


def experiment_graph(config: ExperimentConfig) -> str:
    """Returns the picture in the language of graphviz: one box for all workers that are alike."""
    config = config.checked()
    lines = ["digraph experiment {", "  rankdir=LR;", '  node [shape=box, fontname="sans-serif"];']
    lines.append('  edge [fontname="sans-serif", fontsize=10];')
    edges: list[str] = []

    def box(identity: str, text: str, shape: str = "box") -> None:
        lines.append(f'  "{identity}" [label="{text}", shape={shape}];')

    for index, (actor, count) in enumerate(Counter(map(repr, config.actors)).items()):
        one = next(each for each in config.actors if repr(each) == actor)
        where = "inline policy" if one.inference_stream is None else "environments"
        box(f"actor{index}", f"{count} × actor\\n{one.ring_size} × {one.n_envs} {where}")
        if one.inference_stream is not None:
            edges.append(f'  "actor{index}" -> "policy {one.inference_stream}" [label="requests, actions", dir=both];')
        else:
            edges.append(f'  "parameters" -> "actor{index}" [label="pull", style=dashed];')
        for name in one.sample_streams:
            edges.append(f'  "actor{index}" -> "trainer {name}" [label="chunks of {one.sample_steps} steps"];')
    for stream in dict.fromkeys(one.inference_stream for one in config.policies):
        count = sum(one.inference_stream == stream for one in config.policies)
        box(f"policy {stream}", f"{count} × policy worker\\nstream {stream}")
        edges.append(f'  "parameters" -> "policy {stream}" [label="pull", style=dashed];')
    for trainer in config.trainers:
        box(f"trainer {trainer.sample_stream}", f"trainer of {trainer.policy}\\n{type(trainer.algo).__name__}")
        edges.append(f'  "trainer {trainer.sample_stream}" -> "parameters" [label="push", style=dashed];')
    if config.eval_managers:
        box("eval", f"{len(config.eval_managers)} × evaluation worker")
        edges.append('  "parameters" -> "eval" [label="pull", style=dashed];')
    box("parameters", "parameter database", "cylinder")
    for own in config.workers:
        box(own.kind, own.kind)
    return "\n".join([*lines, *dict.fromkeys(edges), "}", ""])


def draw_experiment(config: ExperimentConfig, path: Path) -> None:
    """Writes the picture to a file, in the format that its name ends with (svg, png, pdf, dot).

    Args:
        config: the experiment.
        path: the file.

    Raises:
        OSError: if graphviz is not installed, or does not know the format.
    """
    graph = experiment_graph(config)
    if path.suffix == ".dot":
        path.write_text(graph)
        return
    dot = shutil.which("dot")
    if dot is None:
        raise OSError("the picture needs graphviz: install its package (apt install graphviz), or write a .dot file")
    drawn = subprocess.run(
        [dot, f"-T{path.suffix[1:]}", "-o", str(path)], input=graph, text=True, capture_output=True, timeout=_SECONDS
    )
    if drawn.returncode:
        raise OSError(f"{path}: graphviz says {drawn.stderr.strip()}")
