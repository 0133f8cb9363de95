"""Runs of several processes: how they find each other, agree on values and fail together."""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Int64

LAUNCHERS = {
    "MEGASCALE_COORDINATOR_ADDRESS": "several Cloud TPU slices",
    "TPU_WORKER_HOSTNAMES": "Cloud TPU",
    "OMPI_COMM_WORLD_SIZE": "Open MPI",
    "SLURM_STEP_NUM_NODES": "SLURM",
    "PMI_SIZE": "MPI",
    "JAX_COORDINATOR_ADDRESS": "JAX_COORDINATOR_ADDRESS",
}
"""Launchers of several processes, by an environment variable that each sets."""


def find_launcher() -> str | None:
    """Returns the name of what started this process, if it starts several, or else None."""
    return next((name for key, name in LAUNCHERS.items() if os.environ.get(key)), None)


def check_devices() -> None:
    """Starts JAX.

    Raises:
      RuntimeError: If JAX finds no device; where no platform is left, it would fail an assertion
        that has no message.
    """
    try:
        jax.local_devices()
    except AssertionError as error:
        chosen = os.environ.get("JAX_PLATFORMS")
        raise RuntimeError(
            f"JAX finds no device for JAX_PLATFORMS={chosen!r}. The command `checks` says why, and "
            "what to do."
        ) from error


def join(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the processes of a run; call it before anything else of JAX.

    Without arguments, joins the processes that the cluster started where JAX detects one (Cloud
    TPU, GKE, SLURM, Open MPI); anywhere else this process remains alone. From then on only the
    first process prints.

    Args:
      coordinator: HOST:PORT of the first process, as the others reach it.
      num_processes: Number of processes.
      process_id: Index of this process, from 0.

    Raises:
      ValueError: If some of the arguments are missing or invalid; or if there are none, but a
        launcher started other processes that JAX does not find.
      RuntimeError: If the other processes were not found in time.
    """
    flags = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [f"--{name}" for name, value in flags.items() if value is None]
    if coordinator is None and num_processes is None and process_id is None:
        try:
            jax.distributed.initialize()
        except ValueError as error:  # JAX detects no cluster, or not all of its settings
            _check_alone(error)
            return
        except RuntimeError as error:
            if "must be called before" in str(error):
                return  # this program has used JAX before, so no cluster has just started it
            raise
    elif coordinator is None or num_processes is None or process_id is None:
        raise ValueError(
            f"{', '.join(missing)} missing: give --coordinator, --num_processes and --process_id, "
            "or none of them where a cluster is detected."
        )
    else:
        if not 0 <= process_id < num_processes or ":" not in coordinator:
            raise ValueError(
                "Expected --coordinator=HOST:PORT and 0 <= --process_id < --num_processes, got "
                f"{coordinator}, {process_id} and {num_processes}."
            )
        jax.distributed.initialize(coordinator, num_processes, process_id)
    if _owns_visible_gpus():
        jax.config.update("jax_cuda_visible_devices", "all")
    if not is_first():
        # Otherwise every line would be printed once per process. Errors go to stderr.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)


def _check_alone(error: ValueError) -> None:
    """Raises ValueError if a launcher started others: each would train the model by itself."""
    flags = "--coordinator=HOST:PORT (of the first), --num_processes"
    for size, rank in (("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), ("PMI_SIZE", "PMI_RANK")):
        count = os.environ.get(size, "1")
        if count != "1":
            raise ValueError(
                f"{count} processes were started ({size}), but JAX does not detect how they find "
                f"each other. Give each {flags}=${size} and --process_id=${rank}."
            ) from error
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        raise ValueError(
            "JAX_COORDINATOR_ADDRESS is set, so this is one of several processes, but JAX does not "
            f"detect how many ({error}). Give each {flags} and --process_id."
        ) from error


def _owns_visible_gpus() -> bool:
    """Returns True if no other process of the run uses the GPUs that this process sees.

    Under SLURM and Open MPI, JAX gives the i-th process of a host the i-th visible GPU
    (jax-ml/jax#16788). A process alone on its host would leave the other GPUs idle, and one to
    which SLURM shows a single GPU (`--gpus-per-task=1`) would ask for a GPU it does not see.
    """
    get = os.environ.get
    if get("JAX_LOCAL_DEVICE_IDS"):
        return False
    if get("OMPI_COMM_WORLD_LOCAL_SIZE"):  # first, as SLURM may have started Open MPI
        alone = get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
    elif get("SLURM_STEP_NUM_NODES"):
        alone = get("SLURM_NTASKS") == get("SLURM_STEP_NUM_NODES")
    else:
        return False
    visible = get("CUDA_VISIBLE_DEVICES", "")
    return alone or (visible != "" and "," not in visible)


def is_first() -> bool:
    """Returns True if this process writes files and prints."""
    return jax.process_index() == 0


def is_joined() -> bool:
    """Returns True if this process has joined others."""
    return jax.distributed.is_initialized()


def max_over_processes(value: int) -> int:
    """Returns the maximum over all processes; each must call it at the same point."""
    if jax.process_count() == 1:
        return value
    return int(np.max(multihost_utils.process_allgather(np.int32(value))))


def sum_over_processes(
    sums: Mapping[str, Int64[np.ndarray, "..."]],
) -> dict[str, Int64[np.ndarray, "..."]]:
    """Returns the sums over all processes, by name; each must call it at the same point."""
    if jax.process_count() == 1:
        return dict(sums)
    # JAX would truncate 64 bits to 32, so numbers are sent in halves.
    halves = {name: np.atleast_1d(value).view(np.int32) for name, value in sums.items()}
    gathered = multihost_utils.process_allgather(halves)
    return {
        name: np.ascontiguousarray(gathered[name]).view(np.int64).sum(0).reshape(value.shape)
        for name, value in sums.items()
    }


def gather_names(names: Sequence[str]) -> list[str]:
    """Returns the names, without null characters, of all processes; each must call it."""
    if jax.process_count() == 1:
        return list(names)
    text = "\0".join(names).encode("utf-8", "surrogateescape")
    padded = text.ljust(max_over_processes(len(text)) + 1, b"\0")
    rows = multihost_utils.process_allgather(np.frombuffer(padded, np.uint8))
    texts = (row.tobytes().decode("utf-8", "surrogateescape") for row in rows)
    return [name for text in texts for name in text.split("\0") if name]


@contextlib.contextmanager
def fail_together() -> Iterator[None]:
    """Raises in all processes if one raises: the others would wait for it for minutes.

    Every process must enter and leave the context at the same points, without other communication
    in between.

    Raises:
      RuntimeError: In processes without an error of their own.
    """
    error = None
    try:
        yield
    except Exception as raised:
        error = raised
    failed = max_over_processes(error is not None)
    if error is not None:
        raise error
    if failed:
        raise RuntimeError("Another process of this run failed at this point; see its output.")


def exit_now(code: int) -> NoReturn:
    """Exits a process that has joined others without waiting for them, after an error.

    A normal exit waits 5 minutes for the other processes, which wait for this one, and then fails
    in JAX's shutdown. The others notice within 100 seconds that this process is gone.
    """
    with contextlib.suppress(OSError):  # a closed pipe
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
