"""Pushing and getting parameters, beside writing and reading the same bytes.

    python benchmarks/parameter_db.py --folder /tmp

Everything compared is timed in turns within one run, the median of the turns is taken, and what counts are the ratios.
"bare" writes the bytes of the file with fsync and a rename, and reads them; the disk decides about most of both.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from replays import in_turns

from headrace.services import ParameterDBClient

TURNS = 30


def mlp(n_inputs: int, sizes: tuple[int, ...]) -> dict[str, Any]:
    """A state dict of an MLP."""
    rng, tree = np.random.default_rng(0), {}
    for layer, (before, after) in enumerate(zip((n_inputs, *sizes[:-1]), sizes, strict=True)):
        tree[f"{layer}.weight"] = rng.standard_normal((after, before)).astype(np.float32)
        tree[f"{layer}.bias"] = np.zeros(after, np.float32)
    return tree


def measured(name: str, tree: dict[str, Any], folder: Path) -> None:
    """Prints what a push and a get take."""
    with ParameterDBClient("benchmark", "trial", folder) as db:
        versions = iter(range(1, 10**9))
        db.push(name, tree, 0, tags="kept", metadata={"win_rate": 0.5})
        content = db.get(name, mode="bytes")
        bare = folder / "bare"

        def push() -> None:
            db.push(name, tree, next(versions))

        def write() -> None:
            with open(f"{bare}.tmp", "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(f"{bare}.tmp", bare)

        write()
        works = {
            "push": push,
            "bare write": write,
            "get": lambda: db.get(name),
            "bare read": bare.read_bytes,
            "get by query": lambda: db.get(name, {"win_rate": {"$gt": 0.4}}),
            "update_metadata": lambda: db.update_metadata(name, 0, {"score": {"$mean": 1.0}}),
            "gc": lambda: db.gc(name, 10),
        }
        took = in_turns(works, TURNS)
    print(f"{name}: {len(content) / 1e6:.3f} MB")
    for work, microseconds in took.items():
        print(f"  {work:16} {microseconds / 1e3:8.2f} ms")
    ratios = took["push"] / took["bare write"], took["get"] / took["bare read"]
    print("  push / bare write {:.2f}, get / bare read {:.2f}".format(*ratios))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default=None, help="where to write; default: the folder for temporary files")
    with tempfile.TemporaryDirectory(dir=parser.parse_args().folder) as folder:
        measured("mlp", mlp(4, (64, 64, 2)), Path(folder))
        measured("large", mlp(1024, (1024, 256)), Path(folder))


if __name__ == "__main__":
    main()
