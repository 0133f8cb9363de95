"""Writes a run's checkpoints, beside training."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Mapping

import flax
import jax
import orbax.checkpoint as ocp
from etils import epath

import mtmamba_jax
from mtmamba_jax.checkpoints.background import Background
from mtmamba_jax.checkpoints.saved import ITEMS, absolute, items_of, steps_saved
from mtmamba_jax.checkpoints.snapshot import Snapshots
from mtmamba_jax.devices.processes import is_first
from mtmamba_jax.files.paths import check_free_space, is_remote
from mtmamba_jax.messages import first_line
from mtmamba_jax.training.state import TrainState


class SavingError(OSError):
    """A checkpoint could not be written; the message names the reason and the last good one."""


class Checkpoints:
    """Writes checkpoints of a run to its work directory (`saved.KINDS`), in the background.

    A method may therefore raise the `SavingError` of an earlier save; `wait` and `close` wait for
    the last. Whenever a process is killed, the next one can count on this:

    1. A checkpoint is seen once it is whole: Orbax gives it its name last.
    2. A latest one is handed over when the best of its step or before is on disk, since a run that
       goes on from it does not evaluate that step again.
    3. ... and when its `before` is done.
    4. After a save that failed none is begun.

    Args:
      workdir: of the run; where there may be checkpoints, `recovery.recover` comes first.
      keep: how many of the latest to keep.
      config: of the run, dotted keys, to be saved in each.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        keep: int = 1,
        *,
        config: Mapping[str, object] | None = None,
    ):
        self._workdir, self._config = absolute(workdir), config
        # A best and a latest one of the same step: training need not wait for the first.
        self._background = Background(most=1)
        self._snapshots = Snapshots()
        self._best_step: int | None = None  # the last that was handed over
        self._managers = {
            kind: ocp.CheckpointManager(
                self._workdir / kind,
                item_names=ITEMS,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=number,
                    # Each manager meets the other processes under names of its own.
                    multiprocessing_options=ocp.options.MultiprocessingOptions(
                        barrier_sync_key_prefix=kind
                    ),
                ),
            )
            for kind, number in (("best", 1), ("latest", keep))
        }

    def save_latest(self, state: TrainState, before: Callable[[], object] = lambda: None) -> None:
        """Saves a state to go on from; a step that is there already is left as it is.

        Args:
          state: of the run.
          before: what must be done before a run may go on from it.
        """
        self._save("latest", int(state.step), {}, before, items_of(state))

    def save_best(self, state: TrainState, details: dict) -> None:
        """Saves parameters as the best so far, with JSON details such as their scores."""
        items = {"parameters": state.parameters}
        self._save("best", int(state.step), details, lambda: None, items)

    def _save(
        self,
        kind: str,
        step: int,
        details: dict,
        before: Callable[[], object],
        items: Mapping[str, object],
    ) -> None:
        details = details | {"step": step, "versions": versions(), "config": self._config}

        def hand_over(items: Mapping[str, object]) -> None:
            before()
            self._hand_over(kind, step, details, items)

        with self._naming_errors():
            if jax.process_count() == 1:
                copies = self._snapshots.take(items)
                self._background.give(lambda: hand_over(copies))
            else:
                # In handing over processes meet by a program of their devices, and all must start
                # those in one order.
                hand_over(items)

    def _hand_over(self, kind: str, step: int, details: dict, items: Mapping[str, object]) -> None:
        """Gives a checkpoint to Orbax, which writes it in the background.

        That takes a second for a thousand arrays.
        """
        manager = self._managers[kind]
        if step in manager.all_steps():
            return
        if kind == "latest":
            self._check_best()
        check_room(self._workdir, items)  # before Orbax, which leaves half a one and much text
        arrays = {name: ocp.args.StandardSave(item) for name, item in items.items()}
        saved = manager.save(
            step, args=ocp.args.Composite(details=ocp.args.JsonSave(details), **arrays)
        )
        assert saved, f"{kind} step {step} is older than {manager.latest_step()}"
        if kind == "best":
            self._best_step = step

    def _check_best(self) -> None:
        """Waits for the best one, and checks that it is there.

        Who waits is not told of an error that was told already.

        Raises:
          OSError: it is not.
        """
        self._managers["best"].wait_until_finished()
        step = self._best_step
        if step is not None and is_first() and step not in steps_saved(self._workdir, "best"):
            raise OSError(f"the best one, of step {step}, was not finished")

    def is_writing(self) -> bool:
        """Whether a checkpoint is not on disk yet."""
        managers = self._managers.values()
        return self._background.is_busy() or any(m.is_saving_in_progress() for m in managers)

    def check(self) -> None:
        """Raises the error of a save that has failed by now."""
        with self._naming_errors():
            self._background.check()
            for manager in self._managers.values():
                manager.check_for_errors()

    def best(self) -> epath.Path:
        """Waits until everything is on disk and returns the best checkpoint's folder."""
        self.wait()
        return self._workdir / "best" / str(self._managers["best"].latest_step())

    def last_on_disk(self) -> int | None:
        """Waits for what is being saved and returns the newest latest one's step, or None."""
        manager = self._managers["latest"]
        # What fails is not there, and that is what is asked.
        with contextlib.suppress(Exception):
            self._background.wait()
        with contextlib.suppress(Exception):
            manager.wait_until_finished()
        with contextlib.suppress(Exception):
            manager.reload()  # those in memory count one that failed in the background
        return manager.latest_step()

    def wait(self) -> None:
        """Waits until everything is on disk."""
        with self._naming_errors():
            self._background.wait()
            for manager in self._managers.values():
                manager.wait_until_finished()

    def close(self) -> None:
        """Waits until everything is on disk and ends the background work."""
        with self._naming_errors(), contextlib.ExitStack() as stack:
            for manager in self._managers.values():
                stack.callback(manager.close)
            self._background.close()

    @contextlib.contextmanager
    def _naming_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of many kinds: of Orbax, TensorStore, the file system
            last = self.last_on_disk()
            good = (
                "There is none yet; the same command starts anew"
                if last is None
                else f"The last good one is of step {last}; the same command goes on from there"
            )
            raise SavingError(
                f"A checkpoint could not be written to {self._workdir} ({first_line(error)}). "
                f"{good} once this is mended."
            ) from error


def check_room(workdir: epath.PathLike, items) -> None:
    """Checks that a folder's disk has room for arrays; of a bucket nothing is known.

    Raises:
      OSError: it has not.
    """
    if is_first() and not is_remote(workdir):
        needed = sum(array.nbytes for array in jax.tree.leaves(items))
        check_free_space(needed, pathlib.Path(workdir), "A checkpoint", "take another --workdir")


def versions() -> dict[str, str]:
    """Returns the versions that write a checkpoint."""
    return {
        "mtmamba_jax": mtmamba_jax.__version__,
        "jax": jax.__version__,
        "flax": flax.__version__,
    }
