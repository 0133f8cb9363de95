"""Several processes that train one model: how they find each other, which speaks, how they end."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils


def join(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the processes of a run, before anything else of JAX is used.

    Without arguments: those that the cluster starts, where JAX detects one (Cloud TPU, GKE, SLURM,
    Open MPI); anywhere else this process is alone. Only the first process prints from then on.

    Args:
      coordinator: HOST:PORT of the first process, as the others reach it.
      num_processes: how many there are.
      process_id: which this one is, from 0.

    Raises:
      ValueError: some of the arguments are missing, or make no sense; or there are none, and other
        processes were started with this one that JAX does not find.
      RuntimeError: the others were not found in time.
    """
    told = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [f"--{name}" for name, value in told.items() if value is None]
    if len(missing) == len(told):
        try:
            jax.distributed.initialize()
        except ValueError as error:  # of JAX: there is no cluster, or none that it makes out
            _check_alone(error)
            return
        except RuntimeError as error:
            if "must be called before" in str(error):
                return  # this program has used JAX, so it is none that a cluster just started
            raise
    elif missing:
        raise ValueError(
            f"{', '.join(missing)} missing: give --coordinator, --num_processes and --process_id, "
            "or none of them where a cluster is detected."
        )
    else:
        if not 0 <= process_id < num_processes or ":" not in coordinator:
            raise ValueError(
                "wanted --coordinator=HOST:PORT and 0 <= --process_id < --num_processes, got "
                f"{coordinator}, {process_id} and {num_processes}."
            )
        jax.distributed.initialize(coordinator, num_processes, process_id)
    if _owns_its_gpus():
        jax.config.update("jax_cuda_visible_devices", "all")
    if not is_first():
        # What it prints would be said as many times as there are processes. Errors go to stderr.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (to the end of the process)


def _check_alone(error: ValueError) -> None:
    """Raises ValueError where a launcher started others: each would train the model by itself."""
    flags = "--coordinator=HOST:PORT (of the first), --num_processes"
    for size, rank in (("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), ("PMI_SIZE", "PMI_RANK")):
        count = os.environ.get(size, "1")
        if count != "1":
            raise ValueError(
                f"{count} processes were started ({size}), but JAX does not see how they find each "
                f"other. Give each {flags}=${size} and --process_id=${rank}."
            ) from error
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        raise ValueError(
            "JAX_COORDINATOR_ADDRESS is set, so this is one of several processes, but JAX does not "
            f"see of how many ({error}). Give each {flags} and --process_id."
        ) from error


def _owns_its_gpus() -> bool:
    """Says whether no other process of the run uses the GPUs that this one sees.

    Under SLURM and Open MPI JAX gives the i-th process of a host the i-th GPU that it sees
    (jax-ml/jax#16788). One that is alone on its host would leave the others idle, and one to which
    SLURM shows a single GPU (`--gpus-per-task=1`) would ask for one that it does not see.
    """
    told = os.environ.get
    if told("JAX_LOCAL_DEVICE_IDS"):
        return False
    if told("OMPI_COMM_WORLD_LOCAL_SIZE"):  # first, as SLURM may have started Open MPI
        alone = told("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
    elif told("SLURM_STEP_NUM_NODES"):
        alone = told("SLURM_NTASKS") == told("SLURM_STEP_NUM_NODES")
    else:
        return False
    shown = told("CUDA_VISIBLE_DEVICES", "")
    return alone or (shown != "" and "," not in shown)


def is_first() -> bool:
    """Says whether this process writes files and prints."""
    return jax.process_index() == 0


def highest(value: int) -> int:
    """Returns the highest of all processes' values; each must ask at the same place."""
    if jax.process_count() == 1:
        return value
    return int(np.max(multihost_utils.process_allgather(np.int32(value))))


def sums_of_all(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the sums over all processes of arrays of int64; each must ask at the same place."""
    if jax.process_count() == 1:
        return dict(sums)
    # JAX would make 32 bits of 64: they travel in halves.
    halves = {name: np.atleast_1d(value).view(np.int32) for name, value in sums.items()}
    gathered = multihost_utils.process_allgather(halves)
    return {
        name: np.ascontiguousarray(gathered[name]).view(np.int64).sum(0).reshape(value.shape)
        for name, value in sums.items()
    }


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Ends all processes where one meets an error: the others would wait for it for minutes.

    Each must enter and leave at the same places, and meet the others nowhere in between.

    Raises:
      RuntimeError: in those that met none themselves.
    """
    error = None
    try:
        yield
    except Exception as met:
        error = met
    failed = highest(error is not None)
    if error is not None:
        raise error
    if failed:
        raise RuntimeError("Another process of this run met an error here; see what it printed.")


def is_joined() -> bool:
    """Says whether this process has joined others."""
    return jax.distributed.is_initialized()


def leave(code: int) -> NoReturn:
    """Ends a process that has joined others at once, for an error, with an exit code.

    Ending as usual, JAX waits 5 minutes for the others, who wait for this one, and then ends with a
    fault of its own. They notice within 100 seconds that it is gone.
    """
    with contextlib.suppress(OSError):  # a pipe that nobody reads any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
