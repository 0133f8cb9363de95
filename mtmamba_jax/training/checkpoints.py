"""Checkpoints of a run: the latest few, to go on from, and the best, to use."""

from __future__ import annotations

import pathlib
import shutil

import flax
import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

import mtmamba_jax
from mtmamba_jax.processes import is_first
from mtmamba_jax.training.state import TrainState

KINDS = ("best", "latest")


class Checkpoints:
    """The checkpoints under a work directory: `latest/<step>` and `best/<step>`.

    `latest` holds all that training needs, `best` the parameters. Saving goes on in the background
    while training does; `close` waits for it. A checkpoint that a killed process left
    unfinished is not seen.

    Args:
      workdir: of the run.
      keep: how many of the latest to keep.
      read_only: only read, so that nothing is created either.
    """

    def __init__(self, workdir: pathlib.Path, keep: int = 1, *, read_only: bool = False):
        def options(kind: str, number: int) -> ocp.CheckpointManagerOptions:
            # Both managers meet the other processes under names of their own.
            names = ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=kind)
            if not read_only:
                return ocp.CheckpointManagerOptions(
                    max_to_keep=number, multiprocessing_options=names
                )
            # Orbax warns of every option that is for writing.
            return ocp.CheckpointManagerOptions(
                read_only=True,
                create=False,
                max_to_keep=None,
                save_interval_steps=0,
                multiprocessing_options=names,
            )

        self._managers = {
            kind: ocp.CheckpointManager(
                (workdir / kind).absolute(),
                item_names=("parameters", "rest", "details"),
                options=options(kind, number),
            )
            for kind, number in (("best", 1), ("latest", keep))
        }

    def save_latest(self, state: TrainState) -> None:
        """Saves a state to go on from; a step that is there already is left as it is."""
        # A run killed now goes on from here and does not evaluate this step again, so its best must
        # be on disk first.
        self._managers["best"].wait_until_finished()
        rest = {"step": state.step, "optimizer": state.optimizer}
        self._save(
            "latest", int(state.step), state.parameters, {}, rest=ocp.args.StandardSave(rest)
        )

    def save_best(self, state: TrainState, details: dict) -> None:
        """Saves parameters as the best so far, with JSON details such as their scores."""
        self._save("best", int(state.step), state.parameters, details)

    def forget_best_after(self, step: int) -> None:
        """Deletes best checkpoints of later steps, which a run that goes on from `step` redoes."""
        manager = self._managers["best"]
        for later in [found for found in manager.all_steps() if found > step]:
            manager.delete(later)

    def _save(self, kind: str, step: int, parameters: dict, details: dict, **items) -> None:
        manager = self._managers[kind]
        if step in manager.all_steps():
            return
        saved = manager.save(
            step,
            args=ocp.args.Composite(
                parameters=ocp.args.StandardSave(parameters),
                details=ocp.args.JsonSave(details | {"step": step, "versions": versions()}),
                **items,
            ),
        )
        assert saved, f"{kind} step {step} is older than {manager.latest_step()}"

    def step(self, kind: str) -> int | None:
        """Returns the newest checkpoint's step, or None; `kind` is one of `KINDS`."""
        return self._managers[kind].latest_step()

    def details(self, kind: str) -> dict:
        """Returns the newest checkpoint's details."""
        return self._restore(kind, details=ocp.args.JsonRestore())["details"]

    def parameters(self, kind: str, like: dict) -> dict:
        """Returns the newest checkpoint's parameters, shaped and placed on devices as `like` is."""
        return self._restore(kind, parameters=_arguments(like))["parameters"]

    def state(self, like: TrainState) -> TrainState:
        """Returns the latest state that can be read, shaped and placed on devices as `like` is.

        Later ones that cannot are put aside then, in `unreadable/` of the work directory.

        Raises:
          ValueError: none can be read; all stay where they are.
        """
        manager = self._managers["latest"]
        items = {
            "parameters": _arguments(like.parameters),
            "rest": _arguments({"step": like.step, "optimizer": like.optimizer}),
        }
        unreadable = {}
        for step in sorted(manager.all_steps(), reverse=True):
            try:
                found = manager.restore(step, args=ocp.args.Composite(**items))
            except Exception as error:  # of many kinds: torn JSON, missing or damaged arrays
                unreadable[step] = error
                continue
            for damaged, error in unreadable.items():
                self._put_aside(damaged, error)
            return TrainState(
                found["rest"]["step"], found["parameters"], found["rest"]["optimizer"]
            )
        raise ValueError(
            f"No checkpoint in {manager.directory} can be read. Delete the work directory to start "
            "anew, or give another --workdir."
        ) from next(iter(unreadable.values()), None)

    def _put_aside(self, step: int, error: Exception) -> None:
        """Moves an unreadable latest checkpoint out of the way and says so."""
        manager = self._managers["latest"]
        source = pathlib.Path(manager.directory) / str(step)
        target = source.parents[1] / "unreadable" / str(step)
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        print(
            f"warning: checkpoint {source} cannot be read ({reason}). It is moved to {target}, and "
            "the one before is taken.",
            flush=True,
        )
        if is_first():
            target.parent.mkdir(exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            source.rename(target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"put aside {step}")
        manager.reload()

    def _restore(self, kind: str, **items) -> ocp.args.Composite:
        manager = self._managers[kind]
        return manager.restore(manager.latest_step(), args=ocp.args.Composite(**items))

    def close(self) -> None:
        """Waits until everything is on disk and ends the background work."""
        for manager in self._managers.values():
            manager.close()


def _arguments(like) -> ocp.args.StandardRestore:
    return ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, like))


def holds_checkpoints(workdir: pathlib.Path) -> bool:
    """Whether a work directory holds a finished checkpoint: a folder named by its step."""
    return any(path.name.isdigit() for kind in KINDS for path in (workdir / kind).glob("*"))


def versions() -> dict[str, str]:
    """Returns the versions that wrote a checkpoint."""
    return {
        "mtmamba_jax": mtmamba_jax.__version__,
        "jax": jax.__version__,
        "flax": flax.__version__,
    }
