"""Finds what a run resumes from: of the checkpoints that it left, the newest that can be read.

Call `resume` before anything is saved. All processes of a run call it together; the first one moves
and deletes files.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils.epath.backend import fsspec_backend
from jax.experimental import multihost_utils

from mtmamba_jax.checkpoints.run_directory import (
    KINDS,
    Checkpoint,
    CheckpointKind,
    RunDirectory,
    is_transient,
)
from mtmamba_jax.devices.processes import is_first, max_over_processes
from mtmamba_jax.files.paths import is_remote, wait_until
from mtmamba_jax.messages import first_line

_READABLE, _DAMAGED, _UNKNOWN = range(3)  # the highest of all processes counts


@dataclasses.dataclass(frozen=True)
class Resumed:
    """What a run resumes from.

    Attributes:
      items: The arrays of the training state, by item of `run_directory.ITEMS`.
      best: The details of the best checkpoint so far, None if there is none.
      best_is_missing: Whether `best` describes the weights of this very step, but the run was
        killed before that checkpoint was complete, so that it is to be saved again.
    """

    step: int
    items: Mapping[str, Any]
    best: dict[str, Any] | None
    best_is_missing: bool


def resume(directory: RunDirectory, like: Mapping[str, Any]) -> Resumed | None:
    """Returns what a run resumes from, None if it starts from scratch.

    It uses the newest latest checkpoint that can be read, and the newest best one. Incomplete
    checkpoints are deleted. If the newest best checkpoint is of a later step than the state, all
    best ones are deleted: the run will reach that step again. Other checkpoints that would be in
    the way are renamed, with a warning:

    - latest ones that cannot be read, to `unreadable_latest_<step>`, if an older one can;
    - best ones newer than any that can be read, to `unreadable_best_<step>`;
    - best ones without any latest one, of a run killed early, to `earlier_best_<step>`.

    Args:
      directory: The run's work directory.
      like: The items of a training state, shaped and placed on devices as they are to be read.

    Raises:
      ValueError: If no latest checkpoint can be read; all are left as they are.
      OSError: If reading failed for a reason that may be transient.
    """
    _delete_incomplete(directory)
    latest = _listed(directory, "latest")
    if not latest:
        for checkpoint in _listed(directory, "best"):
            reason = "belongs to a run that left no state to resume from"
            _move_aside(directory, checkpoint, "earlier", reason, "training starts from scratch")
        return None
    found, unreadable = _read_newest(latest, like)
    if found is None:
        checkpoint, error = next(iter(unreadable.items()))
        raise ValueError(
            f"No checkpoint in {checkpoint.path.parent} can be read (step {checkpoint.step}: "
            f"{first_line(error)}). Choose another --workdir, or delete this one to start from "
            "scratch."
        ) from error
    items, details = found
    _move_unreadable_aside(directory, unreadable, "the one before it is used")
    step = latest[len(unreadable)].step
    # Best ones older than the newest were being deleted for it, and may be half gone.
    all_best = _listed(directory, "best")
    if all_best and all_best[0].step > step:
        for checkpoint in reversed(all_best):  # if killed here, the next start finds the newest
            if is_first():
                checkpoint.path.rmtree()
            _wait_until_gone(directory, checkpoint)
    found, unreadable = _read_newest(_listed(directory, "best"), {"parameters": like["parameters"]})
    best = found[1] if found else None
    known = details.get("best")
    missing = known is not None and known["step"] == step and (best or {}).get("step") != step
    if missing:
        outcome = "the best one is saved again from the latest state"
    else:
        outcome = "the one before it is used" if best else "the next evaluation saves a new one"
    _move_unreadable_aside(directory, unreadable, outcome)
    return Resumed(step, items, known if missing else best, missing)


def _listed(directory: RunDirectory, kind: CheckpointKind) -> list[Checkpoint]:
    """Returns the checkpoints of a kind, the newest first, as the first process sees them.

    On a file system that hosts share, the others may still see what is gone.
    """
    steps = directory.steps(kind) if is_first() else []
    count = max_over_processes(len(steps))
    steps = steps or [0] * count
    return [directory.checkpoint(kind, max_over_processes(step)) for step in reversed(steps)]


def _delete_incomplete(directory: RunDirectory) -> None:
    """Deletes what a killed process was writing."""
    for folder in [directory / kind for kind in KINDS] if is_first() else ():
        for path in folder.iterdir() if folder.exists() else ():
            if path.is_dir() and ocp.utils.is_tmp_checkpoint(path):
                path.rmtree()


def _read_newest(
    checkpoints: Sequence[Checkpoint], like: Mapping[str, Any]
) -> tuple[tuple[dict[str, Any], dict[str, Any]] | None, dict[Checkpoint, Exception]]:
    """Reads the first checkpoint that all processes can.

    Returns its items and details, None if there is none, and the errors of those before it.
    """
    unreadable: dict[Checkpoint, Exception] = {}
    for checkpoint in checkpoints:
        found, error = None, None
        try:
            found = checkpoint.read(like), checkpoint.read_details()
        except Exception as caught:  # damaged JSON, missing or truncated arrays, the network
            error = caught
        state = _READABLE if error is None else _UNKNOWN if is_transient(error) else _DAMAGED
        worst = max_over_processes(state)
        if worst == _READABLE:
            return found, unreadable
        error = error or RuntimeError("another process cannot")
        if worst == _UNKNOWN:
            raise OSError(
                f"Checkpoint {checkpoint.path} could not be read ({first_line(error)}). It is left "
                "as it is; try again once that is fixed."
            ) from error
        unreadable[checkpoint] = error
    return None, unreadable


def _move_unreadable_aside(
    directory: RunDirectory, unreadable: Mapping[Checkpoint, Exception], outcome: str
) -> None:
    for checkpoint, error in unreadable.items():
        reason = f"cannot be read ({first_line(error)})"
        _move_aside(directory, checkpoint, "unreadable", reason, outcome)


def _move_aside(
    directory: RunDirectory, checkpoint: Checkpoint, label: str, reason: str, outcome: str
) -> None:
    """Renames a checkpoint to `<work directory>/<label>_<kind>_<step>`, with a warning."""
    # Not into a folder: buckets have none that could be created first.
    target = directory / f"{label}_{checkpoint.kind}_{checkpoint.step}"
    if is_first():
        if target.exists():
            target.rmtree()
        if is_remote(target):
            # epath would ask for a move within the bucket, which not all buckets support.
            source = str(checkpoint.path)
            fsspec_backend.fs(source).copy(source, str(target), recursive=True)
            checkpoint.path.rmtree()
        else:
            checkpoint.path.rename(target)
    _wait_until_gone(directory, checkpoint)
    print(
        f"warning: checkpoint {checkpoint.path} {reason}. It is renamed to {target}, and "
        f"{outcome}.",
        flush=True,
    )


def _wait_until_gone(directory: RunDirectory, checkpoint: Checkpoint) -> None:
    """Waits until every process sees that the first one has moved or deleted a checkpoint."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"remove {checkpoint.path}")
    if not wait_until(lambda: checkpoint.step not in directory.steps(checkpoint.kind)):
        raise OSError(f"{checkpoint.path} was removed, but another host still sees it. Try again.")
