"""Checkpoints on disk: which there are, what is in one, why one cannot be read."""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Iterator

import jax
import orbax.checkpoint as ocp
from etils import epath

from mtmamba_jax.checkpoints.quiet import quiet_orbax
from mtmamba_jax.files.paths import clear_listing_cache
from mtmamba_jax.messages import first_line
from mtmamba_jax.training.state import TrainState

KINDS = ("best", "latest")
"""A run's checkpoints are in `<workdir>/<kind>/<step>`: parameters of the best one, to use, and the
latest few states, to go on from."""

ITEMS = ("parameters", "rest", "details")
"""Folders in a checkpoint: arrays, the other arrays of a state (not in a best one), JSON."""

# What TensorStore, gRPC and XLA say of a bucket, network or device that fails for now.
_PASSING_CODES = (
    "ABORTED",
    "DEADLINE_EXCEEDED",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "UNAUTHENTICATED",
    "UNAVAILABLE",
)


def steps_saved(workdir: epath.PathLike, kind: str) -> list[int]:
    """Returns the steps of a work directory's finished checkpoints, in order."""
    clear_listing_cache(workdir)
    found = ocp.utils.checkpoint_steps_paths(epath.Path(workdir) / kind)
    # A copy that somebody made, 40_copy, is none.
    steps = [int(path.name) for path in found if path.name.isdecimal()]
    return sorted(step for step in steps if epath.Path(workdir) / kind / str(step) in found)


def holds_checkpoints(workdir: epath.PathLike) -> bool:
    """Whether a work directory holds a finished checkpoint."""
    return any(steps_saved(workdir, kind) for kind in KINDS)


def newest(workdir: epath.PathLike, kind: str) -> epath.Path | None:
    """Returns the folder of a work directory's newest checkpoint, None where there is none."""
    steps = steps_saved(workdir, kind)
    return absolute(workdir) / kind / str(steps[-1]) if steps else None


def absolute(workdir: epath.PathLike) -> epath.Path:
    """Returns a path that does not depend on the current folder, which Orbax wants."""
    path = epath.Path(workdir)
    # Those in buckets are, and epath would put the current folder before them.
    return path if path.is_absolute() else path.absolute()


def read_details(checkpoint: epath.Path) -> dict:
    """Returns what is told of a checkpoint: step, versions, configuration, a best one's scores.

    Raises:
      OSError: it is not there.
      ValueError: it cannot be read.
    """
    return json.loads((checkpoint / "details" / "metadata").read_text())


def read_parameters(checkpoint: epath.Path, like: dict) -> dict:
    """Returns a checkpoint's parameters, shaped and placed on devices as `like` is.

    Raises:
      Exception: they cannot be read; see `naming_errors`.
    """
    return _read(checkpoint, parameters=like)["parameters"]


def read_state(checkpoint: epath.Path, like: TrainState) -> TrainState:
    """Returns a latest checkpoint's state, shaped and placed on devices as `like` is.

    Raises:
      Exception: it cannot be read; see `naming_errors`.
    """
    found = _read(checkpoint, **items_of(like))
    return TrainState(parameters=found["parameters"], **found["rest"])


def items_of(state: TrainState) -> dict[str, dict]:
    """Returns a state as the items of a checkpoint."""
    rest = {"step": state.step, "optimizer": state.optimizer}
    return {"parameters": state.parameters, "rest": rest}


def _read(checkpoint: epath.Path, **like) -> ocp.args.Composite:
    # Not by Orbax's manager, which has all processes meet after reading: one that fails stays away.
    arguments = {
        name: ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, item))
        for name, item in like.items()
    }
    quiet_orbax()
    handler = ocp.CompositeCheckpointHandler(*ITEMS)
    with contextlib.closing(handler):
        return handler.restore(checkpoint, args=ocp.args.Composite(**arguments))


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


def may_pass(error: Exception) -> bool:
    """Says whether reading failed for a reason that is not the checkpoint's own."""
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return False
    if isinstance(error, OSError):
        return error.errno != errno.EIO  # a disk that lost it
    text = str(error)
    return isinstance(error, MemoryError) or any(code in text for code in _PASSING_CODES)
