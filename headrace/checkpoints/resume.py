"""What a run goes on from: a checkpoint that was found whole, and is of the same run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.agents.base import Agent
from headrace.agents.description import spaces_of
from headrace.checkpoints.file import unsealed
from headrace.checkpoints.run_settings import differences
from headrace.checkpoints.store import CheckpointStore
from headrace.errors import CheckpointError, SamplerError, one_line
from headrace.samplers.collection.snapshot import SamplerState
from headrace.schema import anything, each, fields, named, number, plain, real, whole

__all__ = ["Resumed", "folder_of", "reading", "resumed"]

_COUNTERS = fields(
    {
        "itr": whole(),
        "steps": whole(),
        "trajs": whole(),
        "sample_seconds": real(0, 1e15),
        "optimize_seconds": real(0, 1e15),
        "rows": whole(),
        "best_return": real(),
        "rows_since_best": whole(),
    }
)
#: What a runner writes. The parts of the agent, the algorithm, the sampler and the kind of runner are looked at where
#: they are loaded.
_STATE = fields(
    {
        "agent": fields({}, more=True),
        "algo": fields({}, more=True),
        "itr": whole(),
        "steps": whole(),
        "seed": whole(0, 2**256),
        "about": fields({}, more=True),
        "settings": named(plain),
        "runner": fields(
            {
                "counters": _COUNTERS,
                "logged": _COUNTERS,
                "seconds": real(0, 1e15),
                "opt_infos": named(each(number)),
                "own": fields({}, more=True),
            }
        ),
        "sampler": anything,
        "environments": fields({}, more=True),
    }
)


@dataclass(frozen=True)
class Resumed:
    """A checkpoint of a runner, and the sampler's state that belongs to it."""

    path: Path
    state: dict[str, Any]
    sampler: SamplerState

    @property
    def seed(self) -> int:
        """Of all randomness."""
        return int(self.state["seed"])

    @property
    def rows(self) -> int:
        """Of the log, when the checkpoint was written."""
        return int(self.state["runner"]["counters"]["rows"])

    @property
    def sentence(self) -> str:
        """For the log."""
        if self.sampler.train:
            how = "every episode goes on"
        else:
            how = f"episodes begin anew, with new seeds, because the environments are not there: {self.sampler.why_not}"
        return f"resumed from {self.path}, {self.state['steps']:,} steps, {self.state['itr']:,} batches; {how}"

    def require(self, settings: Mapping[str, Any]) -> None:
        """Raises CheckpointError, with the names, if settings are not as they were."""
        different = differences(self.state["settings"], settings)
        if different:
            raise CheckpointError(
                f"{self.path} was written with other settings ({'; '.join(different)}); resume with the same ones, or "
                "begin a new run in another folder"
            )

    def require_spaces(self, agent: Agent) -> None:
        """Raises CheckpointError if the agent's environments are of another kind."""
        spaces = spaces_of(self.state["about"])
        if agent.spaces != spaces:
            raise CheckpointError(f"{self.path} is of environments with {spaces}, these have {agent.spaces}")

    def restore(self, agent: Agent) -> None:
        """Gives the agent what it had learned. Raises ValueError for weights that no update leaves."""
        agent.load_state_dict(self.state["agent"])
        for name, parameter in agent.model.named_parameters():
            if not bool(parameter.isfinite().all()):
                raise ValueError(f"agent: {name} has numbers that are not finite")
        for name, buffer in agent.model.named_buffers():
            if bool(buffer.isnan().any()):
                raise ValueError(f"agent: {name} has numbers that are NaN")


def resumed(store: CheckpointStore, path: Path) -> Resumed:
    """From a folder, the newest checkpoint that is whole; from a file, that one. Both are of the store's folder."""
    if path.is_dir():
        path, state, seal = store.found()
    else:
        state, seal = unsealed(path)
    with reading(path):
        _STATE(state, "state")
        counters = state["runner"]["counters"]
        for name, one, other in (
            ("itr", state["itr"], counters["itr"]),
            ("steps", state["steps"], counters["steps"]),
            ("seed", state["seed"], state["settings"].get("seed")),
        ):
            if one != other:
                raise ValueError(f"{name} is {one} in one place and {other!r} in another")
        sampler = store.sampler_state(state, seal)
        whole(state["itr"])(sampler.batches, "sampler.batches")
    return Resumed(path, state, sampler)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Around what is done with the entries of a checkpoint: one that does not fit, in an otherwise whole file, is a
    CheckpointError that names the file. What the disk, memory or a sampler says goes as it is.
    """
    try:
        yield
    except (CheckpointError, SamplerError, OSError, MemoryError):
        raise
    except Exception as error:
        raise CheckpointError(
            f"{path} is a checkpoint, but not one that this runner of this headrace wrote "
            f"({one_line(error)}); give another"
        ) from error


def folder_of(log_dir: str | Path | None, resume_from: Path | None) -> Path | None:
    """The folder of the run; raises ValueError if two are given."""
    if resume_from is None:
        return None if log_dir is None else Path(log_dir).absolute()
    if not resume_from.exists():
        raise FileNotFoundError(
            f"resume_from={str(resume_from)!r} is not there; give the folder of a run, or a checkpoint"
        )
    folder = resume_from if resume_from.is_dir() else resume_from.parent
    if log_dir is not None and Path(log_dir).resolve() != folder.resolve():
        raise ValueError(
            f"log_dir is {log_dir} and resume_from is in {folder}; a resumed run goes on in its own folder, leave "
            "log_dir out"
        )
    return folder
