"""What a run goes on from: of what it left when it was stopped, the newest that can be read.

It looks before anything is saved. All processes of a run look together, and the first one moves
and deletes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath
from etils.epath.backend import fsspec_backend
from jax.experimental import multihost_utils

from mtmamba_jax.checkpoints.saved import (
    KINDS,
    absolute,
    may_pass,
    read_details,
    read_parameters,
    read_state,
    steps_saved,
)
from mtmamba_jax.devices.processes import highest, is_first
from mtmamba_jax.files.paths import is_remote, wait_until
from mtmamba_jax.messages import first_line
from mtmamba_jax.training.state import TrainState

_WHOLE, _DAMAGED, _PASSING = range(3)  # what weighs most comes last

Found = TypeVar("Found")


@dataclasses.dataclass(frozen=True)
class Start:
    """Where training starts.

    Attributes:
      state: before the next step.
      best: details of the best checkpoint up to there; None where there is none.
    """

    state: TrainState
    best: dict | None


def recover(workdir: epath.PathLike, like: TrainState) -> Start | None:
    """Returns what a run in a work directory goes on from, None where it starts anew.

    The newest latest checkpoint that can be read, and the newest best one. Unfinished ones are
    deleted, and so are best ones where the newest is of a later step than the state's, which the
    run redoes. Others that would be in its way are put aside, and named:

    - latest ones that cannot be read, as `unreadable_latest_<step>`, where an older one can;
    - best ones newer than any that can be read, as `unreadable_best_<step>`;
    - where there is no latest one, as of a run killed early, the best, as `earlier_best_<step>`.

    Args:
      workdir: of the run.
      like: its state, as it is to be shaped and placed on devices.

    Raises:
      ValueError: no latest one can be read; all stay where they are.
      OSError: reading failed for a reason that may pass.
    """
    workdir = absolute(workdir)
    _delete_unfinished(workdir)
    latest = _listed(workdir / "latest")
    if not latest:
        for checkpoint in _listed(workdir / "best"):
            reason = "is of a run that left no state to go on from"
            _put_aside(checkpoint, "earlier", reason, "training starts anew")
        return None
    state, unreadable = _read_newest(latest, lambda checkpoint: read_state(checkpoint, like))
    if state is None:
        checkpoint, error = next(iter(unreadable.items()))
        raise ValueError(
            f"No checkpoint in {checkpoint.parent} can be read (of step {checkpoint.name}: "
            f"{first_line(error)}). Give another --workdir, or delete this one to start anew."
        ) from error
    _put_unreadable_aside(unreadable, "the one before is taken")
    _forget_after(int(state.step), _listed(workdir / "best"))

    def read_best(checkpoint: epath.Path) -> dict:
        read_parameters(checkpoint, like.parameters)
        return read_details(checkpoint)

    best, unreadable = _read_newest(_listed(workdir / "best"), read_best)
    _put_unreadable_aside(unreadable, "the best of those to come is kept")
    return Start(state, best)


def _listed(folder: epath.Path) -> list[epath.Path]:
    """Returns the checkpoints in a folder, the newest first, as the first process sees them.

    A file system that hosts share may show the others what is gone by now.
    """
    steps = steps_saved(folder.parent, folder.name) if is_first() else []
    count = highest(len(steps))
    steps = steps or [0] * count
    return [folder / str(highest(step)) for step in reversed(steps)]


def _delete_unfinished(workdir: epath.Path) -> None:
    """Deletes what a killed process was writing: it takes room."""
    folders = [workdir / kind for kind in KINDS]
    for folder in folders if is_first() else ():
        for path in folder.iterdir() if folder.exists() else ():
            if path.is_dir() and ocp.utils.is_tmp_checkpoint(path):
                path.rmtree()


def _see_gone(checkpoint: epath.Path) -> None:
    """Waits until every process sees that the first one has taken a checkpoint away.

    Raises:
      OSError: this one still sees it after a minute.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"take away {checkpoint}")
    kind = checkpoint.parent
    if not wait_until(lambda: int(checkpoint.name) not in steps_saved(kind.parent, kind.name)):
        raise OSError(f"{checkpoint} is taken away, but still seen on another host. Try again.")


def _read_newest(
    checkpoints: Sequence[epath.Path], read: Callable[[epath.Path], Found]
) -> tuple[Found | None, dict[epath.Path, Exception]]:
    """Reads the first of some checkpoints that all processes can read.

    Returns:
      What is read, None where none can be; the errors of those before it.

    Raises:
      OSError: reading failed for a reason that may pass, so nothing is known of the checkpoint.
    """
    unreadable: dict[epath.Path, Exception] = {}
    for checkpoint in checkpoints:
        found, error = None, None
        try:
            found = read(checkpoint)
        except Exception as met:  # of many kinds: torn JSON, missing or damaged arrays
            error = met
        worst = highest(_WHOLE if error is None else _PASSING if may_pass(error) else _DAMAGED)
        if worst == _WHOLE:
            return found, unreadable
        error = error or RuntimeError("another process cannot")
        if worst == _PASSING:
            raise OSError(
                f"Checkpoint {checkpoint} could not be read ({first_line(error)}). It stays where "
                "it is; try again once that is mended."
            ) from error
        unreadable[checkpoint] = error
    return None, unreadable


def _forget_after(step: int, best: Sequence[epath.Path]) -> None:
    """Deletes the best checkpoints if the newest of them is of a step after `step`.

    Those beside it go too: they were being deleted for it, and may be half gone.

    Args:
      step: that the run goes on from.
      best: all of them, the newest first.
    """
    if best and int(best[0].name) > step:
        for checkpoint in reversed(best):  # a start after a kill here finds the newest still
            if is_first():
                checkpoint.rmtree()
            _see_gone(checkpoint)


def _put_unreadable_aside(unreadable: Mapping[epath.Path, Exception], after: str) -> None:
    for checkpoint, error in unreadable.items():
        _put_aside(checkpoint, "unreadable", f"cannot be read ({first_line(error)})", after)


def _put_aside(checkpoint: epath.Path, label: str, reason: str, after: str) -> None:
    """Moves a checkpoint to `<workdir>/<label>_<kind>_<step>` and says so.

    Args:
      checkpoint: its folder.
      label: what it is.
      reason: why it is in the way, for the message.
      after: what is done without it, for the message.
    """
    kind = checkpoint.parent
    # No folder round it: in a bucket there is none to make first.
    target = kind.parent / f"{label}_{kind.name}_{checkpoint.name}"
    if is_first():
        if target.exists():
            target.rmtree()
        _move(checkpoint, target)
    _see_gone(checkpoint)
    print(
        f"warning: checkpoint {checkpoint} {reason}. It is moved to {target}, and {after}.",
        flush=True,
    )


def _move(source: epath.Path, target: epath.Path) -> None:
    if is_remote(source):
        # epath would ask for a move within the bucket, which not all of them know.
        fsspec_backend.fs(source).copy(str(source), str(target), recursive=True)
        source.rmtree()
    else:
        source.rename(target)
