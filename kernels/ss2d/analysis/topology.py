"""Finds TPUs to compile for that need not be attached."""

import os
from collections.abc import Sequence

import jax
from jax.experimental import topologies

_HOST_CHIPS = (2, 2, 1)  # chips of a TPU host; smaller shapes use a part of one


def stay_on_cpu() -> None:
    """Makes this process compute on the CPU and not cache compiled programs.

    Must be called before JAX is used.
    """
    # Little is computed here, and an accelerator of this machine may be busy.
    jax.config.update("jax_platforms", "cpu")
    # JAX can write a program for other devices to the cache but cannot read it without them, so it
    # would be compiled again, with a warning (jax 0.10 to 0.12).
    jax.config.update("jax_compilation_cache_dir", None)


def find_tpus(name: str) -> Sequence[jax.Device]:  # pyright: ignore[reportInvalidTypeForm]
    """Returns devices that can be compiled for but cannot run programs or hold arrays.

    Args:
      name: Kind of TPU and its shape in chips, such as "v5e:2x2".

    Raises:
      ValueError: If libtpu does not know the topology.
      RuntimeError: If libtpu is not installed.
    """
    # Without these variables libtpu queries the network for the TPU it runs on, warns that there is
    # none, and refuses to compile in two processes at once. Any TPU type will do.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5e-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    kind, _, shape = name.partition(":")
    # On Cloud TPU the two cores of a v4 are one device.
    options = {"chip_config_name": "megacore"} if kind == "v4" else {}
    try:
        sizes = (*map(int, shape.split("x")), 1)[:3]
        host = tuple(map(min, sizes, _HOST_CHIPS))
        found = topologies.get_topology_desc(name, "tpu", chips_per_host_bounds=host, **options)
    except (ValueError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "INVALID_ARGUMENT" not in str(error):
            raise
        raise ValueError(
            f"--topology={name}: libtpu does not know this TPU. Use KIND:SHAPE with a shape in "
            f"chips, such as v5e:2x2 or v5p:2x2x1. ({error})"
        ) from error
    except RuntimeError as error:  # JAX does not find libtpu
        raise RuntimeError(
            f'--topology={name} needs the TPU compiler, libtpu: pip install -e ".[tpu]". '
            "No TPU is needed."
        ) from error
    return found.devices
