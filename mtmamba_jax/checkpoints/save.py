"""Writes the checkpoints of a run while it trains."""

import contextlib
import errno
import importlib.metadata
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from mtmamba_jax.checkpoints.run_directory import ITEMS, CheckpointKind, RunDirectory
from mtmamba_jax.devices.processes import is_first
from mtmamba_jax.files.paths import check_free_space
from mtmamba_jax.messages import first_line

_BEST_DETAILS = ("step", "delta_m", "scores")  # repeated in every latest checkpoint

Items = Mapping[str, Any]
"""{item of `run_directory.ITEMS`: pytree of arrays}."""


class SavingError(OSError):
    """A checkpoint could not be written; the message names the reason and the last good one."""


class CheckpointWriter:
    """Writes checkpoints with two asynchronous Orbax managers, `best/` and `latest/`.

    Any method may raise the `SavingError` of an earlier save. Whenever the process is killed, the
    next one can rely on this:

    1. A checkpoint has its final name only once it is complete (Orbax renames it last).
    2. If a latest checkpoint is complete, so is the best one of every earlier step. The best one of
       the same step may be missing: its details are in the latest one, and it is saved again from
       there (`resume.resume`).
    3. No save starts after one that failed.

    Args:
      directory: The run's work directory. If it may hold checkpoints, call `resume` before.
      keep: The number of latest checkpoints to keep.
      config: The run's configuration as `Config.flat`, saved in each checkpoint.
      best: The details of the best checkpoint that is on disk, if there is one.
    """

    def __init__(
        self,
        directory: RunDirectory,
        keep: int = 1,
        *,
        config: Mapping[str, Any],
        best: Mapping[str, Any] | None = None,
    ):
        self._directory, self._config = directory, dict(config)
        self._unrecorded: set[tuple[CheckpointKind, int]] = set()
        self._best = best and {key: best[key] for key in _BEST_DETAILS if key in best}
        numbers: dict[CheckpointKind, int] = {"best": 1, "latest": keep}
        self._managers: dict[CheckpointKind, ocp.CheckpointManager] = {
            kind: ocp.CheckpointManager(
                directory.path / kind,
                item_names=ITEMS,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=number,
                    # Each manager needs barriers of its own.
                    multiprocessing_options=ocp.options.MultiprocessingOptions(
                        barrier_sync_key_prefix=kind
                    ),
                ),
            )
            for kind, number in numbers.items()
        }

    def save_latest(self, items: Items, step: int) -> None:
        """Starts saving a state to resume from, unless that step is saved already."""
        with self._explain_errors():
            if self._best is not None and self._best["step"] != step:
                self._managers["best"].wait_until_finished()
            self._save("latest", step, items, {"best": self._best})

    def save_best(self, items: Items, step: int, details: Mapping[str, Any]) -> None:
        """Starts saving weights (the item "parameters") as the best so far, with JSON details."""
        self._best = {**details, "step": step}
        with self._explain_errors():
            self._save("best", step, items, details)

    def _save(
        self, kind: CheckpointKind, step: int, items: Items, details: Mapping[str, Any]
    ) -> None:
        manager = self._managers[kind]
        if step in manager.all_steps():
            return
        check_room(self._directory, items)  # Orbax would leave half a checkpoint
        about = {**details, "step": step, "versions": versions(), "config": self._config}
        arrays = {name: ocp.args.StandardSave(item) for name, item in items.items()}
        arguments = ocp.args.Composite(details=ocp.args.JsonSave(about), **arrays)
        saved = manager.save(step, args=arguments)
        assert saved, f"{kind} step {step} is older than {manager.latest_step()}"
        self._unrecorded.add((kind, step))

    def check(self) -> None:
        """Raises the error of a save that has failed; call it after every step."""
        with self._explain_errors():
            for kind, manager in self._managers.items():
                manager.check_for_errors()
                if not manager.is_saving_in_progress():
                    self._record_files(kind)

    def wait(self) -> None:
        """Waits until all checkpoints are on disk."""
        for manager in self._managers.values():
            with self._explain_errors():
                manager.wait_until_finished()
        self.check()

    def best_step(self) -> int:
        """Waits until all checkpoints are on disk and returns the step of the best one."""
        self.wait()
        step = self._managers["best"].latest_step()
        assert step is not None
        return step

    def last_on_disk(self) -> int | None:
        """Waits for what is being saved and returns the step of the newest latest checkpoint."""
        manager = self._managers["latest"]
        # A failed save is not on disk, which is all that matters here.
        with contextlib.suppress(Exception):
            manager.wait_until_finished()
        with contextlib.suppress(Exception):
            manager.reload()  # the steps in memory count a save that failed in the background
        return manager.latest_step()

    def close(self) -> None:
        """Waits until all checkpoints are on disk and ends Orbax's threads."""
        with contextlib.ExitStack() as stack:
            for manager in self._managers.values():
                stack.callback(manager.close)
            self.wait()

    def _record_files(self, kind: CheckpointKind) -> None:
        for each in sorted(self._unrecorded):
            checkpoint = self._directory.checkpoint(*each)
            if each[0] == kind:
                self._unrecorded.discard(each)
                if is_first() and checkpoint.path.exists():  # a newer one may have replaced it
                    checkpoint.record_files()

    @contextlib.contextmanager
    def _explain_errors(self) -> Iterator[None]:
        try:
            yield
        except SavingError:
            raise
        except Exception as error:  # of Orbax, TensorStore, the file system
            last = self.last_on_disk()
            good = (
                "There is none yet; the same command starts from scratch"
                if last is None
                else f"The last good one is of step {last}; the same command resumes from it"
            )
            full = os.strerror(errno.ENOSPC)  # behind a long path in TensorStore's message
            reason = full if full in str(error) else first_line(error)
            raise SavingError(
                f"A checkpoint could not be written to {self._directory} ({reason}). "
                f"{good} once this is fixed."
            ) from error


def check_room(directory: RunDirectory, items) -> None:
    """Raises OSError if the disk does not have room for arrays; the room in buckets is unknown."""
    if is_first() and not directory.is_remote:
        needed = sum(array.nbytes for array in jax.tree.leaves(items))
        folder = pathlib.Path(directory)
        check_free_space(needed, folder, "A checkpoint", "choose another --workdir")


def versions() -> dict[str, str]:
    """Returns the versions of the packages that write a checkpoint."""
    return {name: importlib.metadata.version(name) for name in ("mtmamba_jax", "jax", "flax")}
