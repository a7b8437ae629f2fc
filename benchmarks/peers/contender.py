"""One library in a process of its own, which collects when it is told to; started by `compare.py`.

    python contender.py with_gymnasium sync plain 8

Reads seconds from standard input, one number a line, collects for as long, and answers with a line of JSON: environment
steps, elapsed seconds, and CPU seconds of this process and all that it started.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
import warnings
from dataclasses import asdict
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[2]))
from worlds import torch_threads

from headrace.insight.turns import timed_turn  # it needs NumPy and psutil alone


def main() -> None:
    module, mode, world, B = sys.argv[1:]
    # Libraries print to standard output; answers go to where it was.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    torch.set_num_threads(torch_threads(world))
    collect = importlib.import_module(module).collector(mode, world, int(B))
    collect(1 if world == "pong" else 3)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(asdict(timed_turn(lambda: collect(1), float(line)))), file=answers, flush=True)
    # The groups of processes of some libraries do not end by themselves; `compare.py` ends all of the session.


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # threads of a library that failed may never end
