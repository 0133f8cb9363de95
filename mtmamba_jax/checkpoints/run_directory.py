"""Finds, reads and checks what a run's work directory holds: its files and its checkpoints.

    config.json         the configuration
    metrics.jsonl       one line for each logged step and evaluation
    tensorboard/        the same with images
    latest/STEP/        the newest training states, to resume from
    best/STEP/          the weights with the highest delta_m, to use
    panels/             predictions for some test images
    scores_best.json    what the command `eval` measured, beside other files of its own

It is a folder, or a place in a Google Cloud bucket (gs://BUCKET/NAME).
"""

import contextlib
import dataclasses
import errno
import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal, cast, get_args

import jax
import orbax.checkpoint as ocp
from etils import epath

from mtmamba_jax import config as configuration
from mtmamba_jax.config import Config
from mtmamba_jax.files import paths
from mtmamba_jax.files.json_files import write_json
from mtmamba_jax.files.paths import write_atomically
from mtmamba_jax.messages import command, first_line, shortened

CONFIG_FILE = "config.json"
CheckpointKind = Literal["best", "latest"]
KINDS: tuple[CheckpointKind, ...] = get_args(CheckpointKind)
ITEMS = ("parameters", "rest", "details")
"""The parts of a checkpoint: weights; the rest of a training state (latest only); JSON."""

_FILES = "files.json"  # in a checkpoint: the sizes of its files, to notice lost or truncated ones
# What TensorStore, gRPC and XLA report when a bucket, the network or a device fails for now.
_TRANSIENT_CODES = (
    "ABORTED", "DEADLINE_EXCEEDED", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "UNAUTHENTICATED",
    "UNAVAILABLE",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A finished checkpoint on disk, in the folder `<work directory>/<kind>/<step>`."""

    path: epath.Path

    @property
    def step(self) -> int:
        """The number of updates that its weights have seen."""
        return int(self.path.name)

    @property
    def kind(self) -> CheckpointKind:
        """One of `KINDS`."""
        return cast(CheckpointKind, self.path.parent.name)

    def read_details(self) -> dict[str, Any]:
        """Returns the checkpoint's step, versions and configuration, and a best one's scores."""
        return json.loads((self.path / "details" / "metadata").read_text())

    def read(self, like: Mapping[str, Any]) -> dict[str, Any]:
        """Returns some of the checkpoint's arrays; for errors, see `explain_errors`.

        Args:
          like: {item of `ITEMS`: pytree of arrays or shapes with shardings to restore into}.
        """
        self.check_files()
        arguments = {
            name: ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, item))
            for name, item in like.items()
        }
        # Not CheckpointManager.restore: it ends with a barrier, at which the other processes would
        # wait for one that failed.
        with contextlib.closing(ocp.CompositeCheckpointHandler(*ITEMS)) as handler:
            return dict(handler.restore(self.path, args=ocp.args.Composite(**arguments)).items())

    def record_files(self) -> None:
        """Writes down the sizes of the checkpoint's files, once all are written."""
        write_atomically(self.path / _FILES, json.dumps(self._file_sizes()).encode())

    def check_files(self) -> None:
        """Checks that no file is missing or truncated.

        Orbax would notice too, but prints a traceback for each of a thousand arrays.
        """
        if not (self.path / _FILES).exists():  # killed before they were recorded
            return
        expected, found = json.loads((self.path / _FILES).read_text()), self._file_sizes()
        damaged = [name for name, size in expected.items() if found.get(name) != size]
        if damaged:
            raise ValueError(f"missing or truncated: {shortened(damaged, 3)}")

    def _file_sizes(self) -> dict[str, int]:
        sizes = paths.file_sizes(self.path)
        sizes.pop(_FILES, None)
        return sizes


class RunDirectory:
    """The work directory of a run, existing or to be created.

    Args:
      path: A folder or a place in a bucket.
      flag: The flag or key that the path was given with, for error messages.

    Raises:
      ValueError: If runs cannot be written to such a place.
    """

    def __init__(self, path: epath.PathLike, flag: str = "--workdir"):
        paths.check_writable_scheme(path, flag)
        path = epath.Path(path)
        # Orbax wants absolute paths. Those of buckets are, and epath would prefix them.
        self.path = path if path.is_absolute() else path.absolute()

    def __fspath__(self) -> str:
        return str(self.path)

    __str__ = __fspath__

    def __truediv__(self, name: str) -> epath.Path:
        return self.path / name

    @property
    def is_remote(self) -> bool:
        """Whether the directory is in a bucket."""
        return paths.is_remote(self.path)

    @property
    def config_file(self) -> epath.Path:
        """The configuration as JSON."""
        return self.path / CONFIG_FILE

    def scores_file(self, kind: CheckpointKind) -> epath.Path:
        """What the command `eval` measured of the checkpoint of a kind."""
        return self.path / f"scores_{kind}.json"

    def steps(self, kind: CheckpointKind) -> list[int]:
        """Returns the steps of the finished checkpoints of a kind, in increasing order."""
        paths.clear_listing_cache(self.path)
        found = {path.name for path in ocp.utils.checkpoint_steps_paths(self.path / kind)}
        # Folders such as 40_copy are not the run's.
        return sorted(int(name) for name in found if name.isdecimal() and str(int(name)) == name)

    def checkpoints(self, kind: CheckpointKind) -> list[Checkpoint]:
        """Returns the finished checkpoints of a kind, the newest first."""
        return [self.checkpoint(kind, step) for step in reversed(self.steps(kind))]

    def checkpoint(self, kind: CheckpointKind, step: int) -> Checkpoint:
        """Returns the checkpoint of a step."""
        return Checkpoint(self.path / kind / str(step))

    def newest(self, kind: CheckpointKind) -> Checkpoint | None:
        """Returns the newest finished checkpoint of a kind, None if there is none."""
        return next(iter(self.checkpoints(kind)), None)

    def has_checkpoints(self) -> bool:
        """Returns True if there is a finished checkpoint."""
        return any(self.steps(kind) for kind in KINDS)

    def is_finished(self, steps: int) -> bool:
        """Returns True if a run of this many steps has been completed here."""
        return bool(self.steps("best")) and max(self.steps("latest"), default=0) >= steps

    def write_config(self, config: Config) -> None:
        """Writes the configuration."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.config_file, config.flat())

    def read_config(self) -> Config:
        """Returns the run's configuration, from its file or, if that is lost, from a checkpoint.

        Raises:
          ValueError: If there is no run, or its configuration is damaged or from another version.
        """
        if self.config_file.exists():
            return _parse_config(self.config_file)
        checkpoints = [each for kind in KINDS for each in self.checkpoints(kind)]
        for checkpoint in checkpoints:
            saved = _config_in(checkpoint)
            if saved:
                return configuration.from_flat(saved, f"The configuration in {checkpoint.path}")
        if any(_config_in(checkpoint) == {} for checkpoint in checkpoints):
            raise ValueError(
                f"{self} holds the weights of an encoder, not a run (no config.json). Train with "
                f"them: --config.init.encoder={self} and another --workdir."
            )
        raise ValueError(
            f"{self} holds no run (no config.json). Create one: "
            f"{command('train', f'--workdir={self}')}"
        )


def _parse_config(path: epath.Path) -> Config:
    try:
        saved = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}).") from error
    if not isinstance(saved, dict):
        raise ValueError(f"{path} must hold a JSON object of keys, got {saved!r:.80}.")
    return configuration.from_flat(saved, str(path))


def _config_in(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Returns the configuration in a checkpoint's details, None if they cannot be read."""
    try:
        return checkpoint.read_details()["config"]
    except (OSError, ValueError, KeyError):
        return None


@contextlib.contextmanager
def explain_errors(what: str, remedy: str) -> Iterator[None]:
    """Raises errors of reading a checkpoint again, as one line that begins with `what`.

    They become OSErrors if the cause may be transient, else ValueErrors that end with `remedy`.
    """
    try:
        yield
    except Exception as error:  # damaged JSON, missing or truncated arrays, the network
        if is_transient(error):
            reason = f"{what} cannot be read ({first_line(error)}). Try again once that is fixed."
            raise OSError(reason) from error
        raise ValueError(f"{what} cannot be read ({first_line(error)}). {remedy}") from error


def is_transient(error: Exception) -> bool:
    """Returns True if reading failed for a reason other than the checkpoint itself."""
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return False
    if isinstance(error, OSError):
        return error.errno != errno.EIO  # a disk that lost the data
    text = str(error)
    return isinstance(error, MemoryError) or any(code in text for code in _TRANSIENT_CODES)
