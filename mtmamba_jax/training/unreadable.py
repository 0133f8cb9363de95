"""Checkpoints that cannot be read: which those are, and where they are put."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

import jax
import orbax.checkpoint as ocp
from etils import epath
from etils.epath.backend import fsspec_backend
from jax.experimental import multihost_utils

from mtmamba_jax.names import first_line
from mtmamba_jax.places import forget_listings, is_remote
from mtmamba_jax.processes import highest, is_first

# What TensorStore, gRPC and XLA say of a bucket, network or device that fails for now.
_PASSING_CODES = (
    "ABORTED",
    "DEADLINE_EXCEEDED",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "UNAUTHENTICATED",
    "UNAVAILABLE",
)
_WHOLE, _DAMAGED, _PASSING = range(3)  # what weighs most comes last
ITEMS = ("parameters", "rest", "details")
"""Parts of a checkpoint."""


def read_newest(
    manager: ocp.CheckpointManager, arguments: ocp.args.Composite
) -> tuple[ocp.args.Composite | None, dict[int, Exception]]:
    """Reads the newest checkpoint that all processes can read.

    Returns:
      What is read, None where none can be; {step: error} of those that cannot, all newer.

    Raises:
      OSError: reading failed for a reason that may pass, so nothing is known of the checkpoint.
    """
    # Not by the manager, which has all processes meet after reading: one that fails does not come.
    handler = ocp.CompositeCheckpointHandler(*ITEMS)
    unreadable: dict[int, Exception] = {}
    for step in sorted(manager.all_steps(), reverse=True):
        found, error = None, None
        try:
            found = handler.restore(manager.directory / str(step), args=arguments)
        except Exception as met:  # of many kinds: torn JSON, missing or damaged arrays
            error = met
        worst = highest(_WHOLE if error is None else _PASSING if may_pass(error) else _DAMAGED)
        if worst == _WHOLE:
            return found, unreadable
        error = error or RuntimeError("another process cannot")
        if worst == _PASSING:
            raise OSError(
                f"Checkpoint {manager.directory / str(step)} could not be read "
                f"({first_line(error)}). Nothing is changed; try again once that is mended."
            ) from error
        unreadable[step] = error
    return None, unreadable


def may_pass(error: Exception) -> bool:
    """Says whether reading failed for a reason that is not the checkpoint's own."""
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return False
    if isinstance(error, OSError):
        return error.errno != errno.EIO  # a disk that lost it
    text = str(error)
    return isinstance(error, MemoryError) or any(code in text for code in _PASSING_CODES)


@contextlib.contextmanager
def naming_errors(what: str, remedy: str) -> Iterator[None]:
    """Says what could not be read, and why.

    Args:
      what: is read.
      remedy: for the message, where it cannot be read another time either.

    Raises:
      OSError: it failed for a reason that may pass.
      ValueError: it failed for another.
    """
    try:
        yield
    except Exception as error:  # of many kinds: torn JSON, missing or damaged arrays, the network
        if may_pass(error):
            remedy = "Try again once that is mended."
        kind = OSError if may_pass(error) else ValueError
        raise kind(f"{what} cannot be read ({first_line(error)}). {remedy}") from error


def put_unreadable_aside(
    manager: ocp.CheckpointManager, workdir: epath.Path, step: int, error: Exception, after: str
) -> None:
    """Moves a checkpoint out of the way that reading gave an error for; see `put_aside`."""
    put_aside(manager, workdir, step, "unreadable", f"cannot be read ({first_line(error)})", after)


def put_aside(
    manager: ocp.CheckpointManager,
    workdir: epath.Path,
    step: int,
    label: str,
    reason: str,
    after: str,
) -> None:
    """Moves a checkpoint out of the way and says so.

    Args:
      manager: of its kind.
      workdir: of the run, where it goes, as `<label>_<kind>_<step>`.
      step: of the checkpoint.
      label: what it is.
      reason: why it is in the way, for the message.
      after: what is done without it, for the message.
    """
    source = manager.directory / str(step)
    # No folder round it: in a bucket there is none to make first.
    target = workdir / f"{label}_{manager.directory.name}_{step}"
    if is_first():
        if target.exists():
            target.rmtree()
        _move(source, target)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"put aside {source}")
    forget_listings(source)  # as they were before another process moved it
    manager.reload()
    print(
        f"warning: checkpoint {source} {reason}. It is moved to {target}, and {after}.",
        flush=True,
    )


def _move(source: epath.Path, target: epath.Path) -> None:
    if is_remote(source):
        # epath would ask for a move within the bucket, which not all of them know.
        fsspec_backend.fs(source).copy(str(source), str(target), recursive=True)
        source.rmtree()
    else:
        source.rename(target)
