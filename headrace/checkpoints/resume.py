"""Finds the checkpoint to resume a run from, and checks that it is intact and belongs to the same run."""

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
from headrace.compiled import implementation
from headrace.errors import CheckpointError, SamplerError, one_line
from headrace.samplers.collection.snapshot import SamplerState
from headrace.schema import anything, each, fields, named, number, plain, real, text, whole

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
#: Schema of what a runner writes. The entries of the agent, the algorithm, the sampler and the runner's class are
#: checked where they are loaded.
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
    },
    {"implementation": text("native|pure Python")},  # earlier checkpoints have none
)


@dataclass(frozen=True)
class Resumed:
    """A checkpoint of a runner, and the sampler's state that belongs to it.

    Args:
        path: file of the checkpoint.
        state: contents of the checkpoint.
        sampler: state of the sampler, with its environments if they could be restored.
    """

    path: Path
    state: dict[str, Any]
    sampler: SamplerState

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return int(self.state["seed"])

    @property
    def rows(self) -> int:
        """Number of log rows when the checkpoint was written."""
        return int(self.state["runner"]["counters"]["rows"])

    @property
    def sentence(self) -> str:
        """Message for the log."""
        if self.sampler.train:
            how = "all episodes continue"
        else:
            how = f"new episodes begin, with new seeds, because there are no environments: {self.sampler.why_not}"
        before = self.state.get("implementation", implementation)
        if before != implementation:
            how += f"; {before} code acted so far and {implementation} code does now, so actions may differ by rounding"
        return f"resumed from {self.path}, {self.state['steps']:,} steps, {self.state['itr']:,} batches; {how}"

    def require(self, settings: Mapping[str, Any], n_itr: int) -> None:
        """Raises CheckpointError, which says why, if the run cannot be resumed as it is asked to be.

        Args:
            settings: settings of the resumed run.
            n_itr: number of batches after which it is to end.
        """
        before = self.state["settings"]
        for part in ("algo.class", "agent.class"):  # most other settings differ with them
            then, now = (str(one.get(part)).rpartition(".")[2][:200] for one in (before, settings))
            if then != now:
                raise CheckpointError(
                    f"the run of {self.path} was trained with {then}, not {now}; resume it with {then}, or begin a new "
                    "run in another folder"
                )
        different = differences(before, settings)
        if different:
            raise CheckpointError(
                f"{self.path} was written with other settings ({'; '.join(different)}); resume with the same ones, or "
                "begin a new run in another folder"
            )
        itr, steps = self.state["itr"], self.state["steps"]
        if n_itr < itr:
            raise CheckpointError(
                f"{self.path} has {steps:,} steps already ({itr:,} batches), which is more than the n_steps asked for "
                f"({n_itr:,} batches); n_steps counts from the start of the run: give more than {steps}"
            )

    def require_spaces(self, agent: Agent) -> None:
        """Raises CheckpointError if the agent's environments have other spaces."""
        spaces = spaces_of(self.state["about"])
        if agent.spaces != spaces:
            raise CheckpointError(
                f"{self.path} was written with environments with {spaces}, but these have {agent.spaces}; resume with "
                "the environments of the run"
            )

    def restore(self, agent: Agent) -> None:
        """Loads the agent's parameters; raises ValueError for values that no update produces (NaN, infinity)."""
        agent.load_state_dict(self.state["agent"])
        for name, parameter in agent.model.named_parameters():
            if not bool(parameter.isfinite().all()):
                raise ValueError(f"agent: {name} has values that are not finite")
        for name, buffer in agent.model.named_buffers():
            if bool(buffer.isnan().any()):
                raise ValueError(f"agent: {name} has values that are NaN")


def resumed(store: CheckpointStore, path: Path) -> Resumed:
    """Loads the newest intact checkpoint of a folder, or the given file.

    Args:
        store: the checkpoints of the folder.
        path: the folder of the store, or a checkpoint in it.

    Returns:
        The checkpoint and its sampler state.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        CheckpointError: if none is intact, or if a runner of this headrace did not write it.
    """
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
                raise ValueError(f"{name} is {one} in one place, but {other!r} in another")
        sampler = store.sampler_state(state, seal)
        whole(state["itr"])(sampler.batches, "sampler.batches")
    return Resumed(path, state, sampler)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Converts errors while the entries of a checkpoint are used to a CheckpointError that names the file.

    Such errors mean that an intact file has entries that do not fit. CheckpointError, SamplerError, OSError and
    MemoryError pass unchanged.
    """
    try:
        yield
    except (CheckpointError, SamplerError, OSError, MemoryError):
        raise
    except Exception as error:
        raise CheckpointError(
            f"{path} is a checkpoint, but this runner of this headrace did not write it ({one_line(error)}); give "
            "another one"
        ) from error


def folder_of(log_dir: str | Path | None, resume_from: Path | None) -> Path | None:
    """Returns the folder of a run.

    Args:
        log_dir: folder given by the user, or None.
        resume_from: folder or checkpoint to resume from, or None.

    Returns:
        The folder, or None if there is none.

    Raises:
        FileNotFoundError: if `resume_from` does not exist.
        ValueError: if the two are different folders.
    """
    if resume_from is None:
        return None if log_dir is None else Path(log_dir).absolute()
    if not resume_from.exists():
        raise FileNotFoundError(
            f"resume_from={str(resume_from)!r} does not exist; give the folder of a run, or a checkpoint"
        )
    folder = resume_from if resume_from.is_dir() else resume_from.parent
    if log_dir is not None and Path(log_dir).resolve() != folder.resolve():
        raise ValueError(
            f"log_dir is {log_dir}, but resume_from is in {folder}; a resumed run continues in its own folder, so "
            "leave log_dir out"
        )
    return folder
