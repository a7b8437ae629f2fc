"""What a run goes on from: a checkpoint that was found whole, and is of the same run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.agents.base import Agent
from headrace.agents.description import spaces_of
from headrace.errors import CheckpointError
from headrace.runners.settings import differences
from headrace.runners.store import CheckpointStore
from headrace.samplers.snapshot import SamplerState
from headrace.storage import load_checkpoint

__all__ = ["Resumed", "folder_of", "resumed"]


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


def resumed(store: CheckpointStore, path: Path) -> Resumed:
    """From a folder, the newest checkpoint that is whole; from a file, that one. Both are of the store's folder."""
    if path.is_dir():
        path, state = store.load()
    else:
        state = load_checkpoint(path)
    try:
        found = Resumed(path, state, store.sampler_state(state))
        found.seed, found.rows, state["settings"].items(), state["about"].items()  # are they there?
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is a checkpoint, but not one that a runner of this headrace wrote ({error!r}); give another"
        ) from error
    return found


def folder_of(log_dir: str | Path | None, resume_from: Path | None) -> Path | None:
    """The folder of the run; raises ValueError if two are given."""
    if resume_from is None:
        return None if log_dir is None else Path(log_dir)
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
