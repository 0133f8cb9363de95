"""Checkpoints of a run: the latest few, to go on from, and the best, to use."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Mapping

import flax
import jax
import orbax.checkpoint as ocp
from etils import epath

import mtmamba_jax
from mtmamba_jax.array_types import Batch
from mtmamba_jax.names import first_line
from mtmamba_jax.places import check_space, forget_listings, is_remote
from mtmamba_jax.processes import is_first
from mtmamba_jax.training.background import Background
from mtmamba_jax.training.snapshot import snapshot
from mtmamba_jax.training.state import TrainState
from mtmamba_jax.training.step import TrainStep
from mtmamba_jax.training.unreadable import ITEMS, put_aside, put_unreadable_aside, read_newest

KINDS = ("best", "latest")
_MOST_REPLACED = 500  # states, of which each array takes a kilobyte: 0.7 GB of Swin-Large's


class SavingError(OSError):
    """A checkpoint could not be written; the message names the reason and the last good one."""


class Checkpoints:
    """The checkpoints under a work directory: `latest/<step>` and `best/<step>`.

    `latest` holds all that training needs, `best` the parameters. Saving goes on in the background
    while training does, so a method may raise the `SavingError` of an earlier save; `wait` and
    `close` wait for the last. A checkpoint that a killed process left unfinished is not seen, and
    deleted.

    Args:
      workdir: of the run.
      keep: how many of the latest to keep.
      config: of the run, dotted keys, to be saved in each.
      read_only: only read, so that nothing is created or deleted either.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        keep: int = 1,
        *,
        config: Mapping[str, object] | None = None,
        read_only: bool = False,
    ):
        def options(kind: str, number: int) -> ocp.CheckpointManagerOptions:
            # Both managers meet the other processes under names of their own.
            names = ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=kind)
            if not read_only:
                return ocp.CheckpointManagerOptions(
                    max_to_keep=number,
                    cleanup_tmp_directories=True,
                    multiprocessing_options=names,
                )
            # Orbax warns of every option that is for writing.
            return ocp.CheckpointManagerOptions(
                read_only=True,
                create=False,
                max_to_keep=None,
                save_interval_steps=0,
                multiprocessing_options=names,
            )

        self._workdir, self._config = absolute(workdir), config
        # A best and a latest one of the same step: training need not wait for the first.
        self._background = Background(most=1)
        self._best_step: int | None = None  # the last that was handed over
        self._replaced: list[TrainState] = []  # see `beside_saving`
        self._managers = {
            kind: ocp.CheckpointManager(
                self._workdir / kind,
                item_names=ITEMS,
                options=options(kind, number),
            )
            for kind, number in (("best", 1), ("latest", keep))
        }

    def beside_saving(self, step: TrainStep) -> TrainStep:
        """Returns a training step that writing checkpoints does not slow down.

        States that it takes over stay referenced while one is written. They hold no memory of a
        device any more, but freeing an array gives up the interpreter's lock (jax 0.10 to 0.12):
        for a thousand of them a thread that writes gets it as often, for up to 5 ms each.
        """

        def step_beside(state: TrainState, batch: Batch) -> tuple[TrainState, dict]:
            result = step(state, batch)
            self._replaced.append(state)
            if len(self._replaced) > _MOST_REPLACED or not self._is_writing():
                self._replaced.clear()
            return result

        return step_beside

    def _is_writing(self) -> bool:
        managers = self._managers.values()
        return self._background.is_busy() or any(m.is_saving_in_progress() for m in managers)

    def save_latest(self, state: TrainState, before: Callable[[], object] = lambda: None) -> None:
        """Saves a state to go on from; a step that is there already is left as it is.

        Args:
          state: of the run.
          before: what must be done before a run may go on from it.
        """
        rest = {"step": state.step, "optimizer": state.optimizer}
        self._save("latest", int(state.step), {}, before, parameters=state.parameters, rest=rest)

    def save_best(self, state: TrainState, details: dict) -> None:
        """Saves parameters as the best so far, with JSON details such as their scores."""
        self._save("best", int(state.step), details, lambda: None, parameters=state.parameters)

    def forget_best_after(self, step: int) -> None:
        """Deletes best checkpoints of later steps, which a run that goes on from `step` redoes.

        One beside a later one goes too: it was being deleted for that, and may be half gone.
        """
        manager = self._managers["best"]
        found = sorted(manager.all_steps())
        if found and found[-1] > step:
            for each in found:  # the last one last: a start after a kill here finds it still
                manager.delete(each)

    def put_best_aside(self) -> None:
        """Moves best checkpoints out of the way of a run that starts anew, and says so.

        They are of a run that was killed before its first latest one.
        """
        manager = self._managers["best"]
        for step in sorted(manager.all_steps()):
            reason = "is of a run that left no state to go on from"
            put_aside(manager, self._workdir, step, "earlier", reason, "training starts anew")

    def check_room(self, items) -> None:
        """Checks that a folder's disk has room for arrays; of a bucket nothing is known.

        Raises:
          OSError: it has not.
        """
        if is_first() and not is_remote(self._workdir):
            needed = sum(array.nbytes for array in jax.tree.leaves(items))
            folder = pathlib.Path(self._workdir)
            check_space(needed, folder, "A checkpoint", "take another --workdir")

    def _save(
        self, kind: str, step: int, details: dict, before: Callable[[], object], **items
    ) -> None:
        details = details | {"step": step, "versions": versions(), "config": self._config}

        def hand_over() -> None:
            before()
            self._hand_over(kind, step, details, items)

        with self._naming_errors():
            if jax.process_count() == 1:
                items = snapshot(items)
                self._background.give(hand_over)
            else:
                # In handing over processes meet by a program of their devices, and all must start
                # those in one order.
                hand_over()

    def _hand_over(self, kind: str, step: int, details: dict, items: Mapping[str, object]) -> None:
        """Gives a checkpoint to Orbax, which writes it in the background.

        That takes a second for a thousand arrays.
        """
        manager = self._managers[kind]
        if step in manager.all_steps():
            return
        if kind == "latest":
            self._check_best()
        self.check_room(items)  # before Orbax, which leaves half a checkpoint and much text
        arrays = {name: ocp.args.StandardSave(item) for name, item in items.items()}
        saved = manager.save(
            step, args=ocp.args.Composite(details=ocp.args.JsonSave(details), **arrays)
        )
        assert saved, f"{kind} step {step} is older than {manager.latest_step()}"
        if kind == "best":
            self._best_step = step

    def _check_best(self) -> None:
        """Waits for the best one, and checks that it is there.

        A run that goes on from a latest one does not evaluate its step again, so that the best of
        before must be on disk first. Who waits is not told of an error that was told already.

        Raises:
          OSError: it is not.
        """
        self._managers["best"].wait_until_finished()
        step = self._best_step
        if step is not None and is_first() and step not in steps_saved(self._workdir, "best"):
            raise OSError(f"the best one, of step {step}, was not finished")

    def check(self) -> None:
        """Raises the error of a save that has failed by now."""
        with self._naming_errors():
            self._background.check()
            for manager in self._managers.values():
                manager.check_for_errors()

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

    def step(self, kind: str) -> int | None:
        """Returns the newest checkpoint's step, or None; `kind` is one of `KINDS`."""
        with self._naming_errors():
            self._background.wait()
        return self._managers[kind].latest_step()

    def details(self, kind: str) -> dict:
        """Returns the newest checkpoint's details."""
        return self._restore(kind, details=ocp.args.JsonRestore())["details"]

    def parameters(self, kind: str, like: dict) -> dict:
        """Returns the newest checkpoint's parameters, shaped and placed on devices as `like` is."""
        return self._restore(kind, parameters=_arguments(like))["parameters"]

    def state(self, like: TrainState) -> TrainState:
        """Returns the latest state that can be read, shaped and placed on devices as `like` is.

        Later ones that cannot are put aside then, as `unreadable_latest_<step>`.

        Raises:
          ValueError: none can be read; all stay where they are.
          OSError: reading failed for a reason that may pass.
        """
        manager = self._managers["latest"]
        items = {
            "parameters": _arguments(like.parameters),
            "rest": _arguments({"step": like.step, "optimizer": like.optimizer}),
        }
        found, unreadable = read_newest(manager, ocp.args.Composite(**items))
        if found is None:
            step, error = next(iter(unreadable.items()))
            raise ValueError(
                f"No checkpoint in {manager.directory} can be read (of step {step}: "
                f"{first_line(error)}). Give another --workdir, or delete this one to start anew."
            ) from error
        for step, error in unreadable.items():
            put_unreadable_aside(manager, self._workdir, step, error, "the one before is taken")
        rest = found["rest"]
        return TrainState(rest["step"], found["parameters"], rest["optimizer"])

    def drop_unreadable_best(self, like: dict) -> None:
        """Puts aside best checkpoints that cannot be read, as `unreadable_best_<step>`.

        Args:
          like: parameters.

        Raises:
          OSError: reading failed for a reason that may pass.
        """
        items = {"parameters": _arguments(like), "details": ocp.args.JsonRestore()}
        manager = self._managers["best"]
        _, unreadable = read_newest(manager, ocp.args.Composite(**items))
        for step, error in unreadable.items():
            after = "the best of those to come is kept"
            put_unreadable_aside(manager, self._workdir, step, error, after)

    def _restore(self, kind: str, **items) -> ocp.args.Composite:
        manager = self._managers[kind]
        return manager.restore(manager.latest_step(), args=ocp.args.Composite(**items))

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


def _arguments(like) -> ocp.args.StandardRestore:
    return ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, like))


def absolute(workdir: epath.PathLike) -> epath.Path:
    """Returns a path that does not depend on the current folder, which Orbax wants."""
    path = epath.Path(workdir)
    # Those in buckets are, and epath would put the current folder before them.
    return path if path.is_absolute() else path.absolute()


def steps_saved(workdir: epath.PathLike, kind: str) -> list[int]:
    """Returns the steps of a work directory's finished checkpoints, in order."""
    forget_listings(workdir)
    return sorted(ocp.utils.checkpoint_steps(epath.Path(workdir) / kind))


def holds_checkpoints(workdir: epath.PathLike) -> bool:
    """Whether a work directory holds a finished checkpoint."""
    return any(steps_saved(workdir, kind) for kind in KINDS)


def versions() -> dict[str, str]:
    """Returns the versions that wrote a checkpoint."""
    return {
        "mtmamba_jax": mtmamba_jax.__version__,
        "jax": jax.__version__,
        "flax": flax.__version__,
    }
