"""Several processes that train one model: how they find each other, and which of them speaks."""

from __future__ import annotations

import os
import sys

import jax


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
      ValueError: some of the arguments are missing, or make no sense.
      RuntimeError: the others were not found in time.
    """
    told = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [f"--{name}" for name, value in told.items() if value is None]
    if len(missing) == len(told):
        try:
            jax.distributed.initialize()
        except ValueError:  # of JAX: there is no cluster
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
    if not is_first():
        # What it prints would be said as many times as there are processes. Errors go to stderr.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (to the end of the process)


def is_first() -> bool:
    """Says whether this process writes files and prints."""
    return jax.process_index() == 0
