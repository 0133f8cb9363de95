"""The public op: checks arguments and hands them to the backend of the platform lowered for.

Letters: t task, b batch, h w height and width, d inner channels, k directions, n state, r rank of
the step size's projection, l length of a sequence.
"""

from __future__ import annotations

import difflib
import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from mtmamba_jax.kernels.ss2d.pallas_gpu import ss2d_pallas_gpu
from mtmamba_jax.kernels.ss2d.pallas_tpu import ss2d_pallas_tpu
from mtmamba_jax.kernels.ss2d.reference import ss2d_reference
from mtmamba_jax.kernels.ss2d.xla import ss2d_xla

Array = jax.Array

DIRECTIONS = ("row", "column", "row_reversed", "column_reversed")
"""Reading orders of an image, in the order of the official weights' direction axis."""

IMPLEMENTATIONS: dict[str, Callable[..., Array]] = {
    "pallas_gpu": ss2d_pallas_gpu,
    "pallas_tpu": ss2d_pallas_tpu,
    "xla": ss2d_xla,
    "reference": ss2d_reference,
}
"""Every backend by name. One that cannot do a call raises NotImplementedError before computing."""

PLATFORMS: dict[str, tuple[str, ...]] = {
    "cuda": ("pallas_gpu", "xla"),
    "tpu": ("pallas_tpu", "xla"),
    "default": ("xla",),
}
"""Backends of each platform ("cpu", "cuda", "tpu"), first asked first; "default" is any other."""

SHAPES = {
    "x": "t b h w d",
    "dt": "t b h w k r",
    "dt_weight": "t k r d",
    "dt_bias": "t k d",
    "A": "t k d n",
    "B": "t b h w k n",
    "C": "t b h w k n",
    "D": "t k d",
}
ACTIVATIONS = ("x", "dt", "B", "C")


def ss2d(
    x: Array,
    dt: Array,
    dt_weight: Array,
    dt_bias: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array,
    *,
    directions: Sequence[str] = DIRECTIONS,
    implementation: str | None = None,
    batch_axes: Sequence[str] = (),
) -> Array:
    """Selective scan of an image in several reading orders, summed (MTMamba, Eq. 8 to 11).

    In each direction's reading order, with step = softplus(dt @ dt_weight + dt_bias),

        h = exp(step * A) * h + step * x * B,    y = C.h + D * x,

    where h starts at zero, and the directions' y are added. Differentiable in all eight arrays.

    Args:
      x: activations [t b h w d], float32 or bfloat16, as are dt, B and C.
      dt: low-rank step sizes [t b h w k r].
      dt_weight: their projection [t k r d], float32, as are the other parameters.
      dt_bias: its bias [t k d].
      A: [t k d n], negative.
      B: input map [t b h w k n].
      C: output map [t b h w k n].
      D: skip [t k d].
      directions: k different names of `DIRECTIONS`, in the order of the arrays' axis k.
      implementation: a name of `IMPLEMENTATIONS`, used as given, without a fallback; None takes the
        first that can, for the platform the program is lowered for.
      batch_axes: axes of the mesh in context (`jax.set_mesh`) that b is split over: each device
        scans its own images. The compiler cannot split a fused kernel by itself.

    Returns:
      y [t b h w d] in x's dtype; states, decays and sums are float32. With bfloat16 activations
      fused kernels round dt_weight, the states they keep, each direction's results and what they
      add up to the gradients of B and C to bfloat16.

    Raises:
      ValueError: an unknown direction, implementation or mesh axis, an array of the wrong shape or
        dtype, or a batch that does not split.
      NotImplementedError: the forced implementation cannot do this call.
    """
    arrays = dict(x=x, dt=dt, dt_weight=dt_weight, dt_bias=dt_bias, A=A, B=B, C=C, D=D)
    directions = _check_directions(directions)
    _check_arrays(arrays, SHAPES, {"k": len(directions)})
    run = functools.partial(_run, directions=directions, implementation=implementation)
    if batch_axes:
        _check_batch(x.shape[1], tuple(batch_axes))
        split, whole = P(None, tuple(batch_axes)), P()
        specs = tuple(split if name in ACTIVATIONS else whole for name in arrays)
        run = jax.shard_map(run, in_specs=specs, out_specs=split)
    return run(*arrays.values())


def selective_scan(
    x: Array,
    dt: Array,
    dt_weight: Array,
    dt_bias: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array,
    *,
    reverse: bool = False,
    implementation: str | None = None,
    batch_axes: Sequence[str] = (),
) -> Array:
    """Selective scan of a sequence (Mamba's S6): `ss2d` of one row in one direction.

    Args:
      x: [t b l d].
      dt: [t b l r].
      dt_weight: [t r d].
      dt_bias: [t d].
      A: [t d n].
      B: [t b l n].
      C: [t b l n].
      D: [t d].
      reverse: read from the last element to the first.
      implementation: as in `ss2d`.
      batch_axes: as in `ss2d`.

    Returns:
      y [t b l d] in x's dtype.

    Raises:
      ValueError: an unknown implementation, or an array of the wrong shape or dtype.
      NotImplementedError: the forced implementation cannot do this call.
    """
    arrays = dict(x=x, dt=dt, dt_weight=dt_weight, dt_bias=dt_bias, A=A, B=B, C=C, D=D)
    shapes = {name: shape.replace("h w", "l").replace(" k", "") for name, shape in SHAPES.items()}
    _check_arrays(arrays, shapes, {})
    y = ss2d(
        x[:, :, None],
        *(dt[:, :, None, :, None], dt_weight[:, None], dt_bias[:, None], A[:, None]),
        *(B[:, :, None, :, None], C[:, :, None, :, None], D[:, None]),
        directions=("row_reversed" if reverse else "row",),
        implementation=implementation,
        batch_axes=batch_axes,
    )
    return y[:, :, 0]


def _run(*arrays: Array, directions: tuple[str, ...], implementation: str | None) -> Array:
    """Hands checked arrays to the forced backend, or to the platform's first that can."""
    varying = frozenset().union(*(jax.typeof(v).manual_axis_type.varying for v in arrays))
    if varying:  # inside shard_map: the sum of a shared array's gradient is this cast's transpose
        arrays = tuple(_vary(v, varying) for v in arrays)
    if implementation is not None:
        backend = IMPLEMENTATIONS[_choose("implementation", implementation, IMPLEMENTATIONS)]
        return backend(*arrays, directions=directions)
    branches = {
        platform: functools.partial(_first_able, platform, names, directions=directions)
        for platform, names in PLATFORMS.items()
    }
    return lax.platform_dependent(*arrays, **branches)


def _vary(v: Array, axes: frozenset[str]) -> Array:
    missing = tuple(sorted(axes - jax.typeof(v).manual_axis_type.varying))
    return lax.pcast(v, missing, to="varying") if missing else v


def _first_able(
    platform: str, names: Sequence[str], *arrays: Array, directions: tuple[str, ...]
) -> Array:
    """The result of a platform's first backend that does not refuse."""
    refusals = []
    for name in names:
        try:
            return IMPLEMENTATIONS[name](*arrays, directions=directions)
        except NotImplementedError as refusal:
            refusals.append(f"{name}: {refusal}")
            # Every platform's branch is traced, whichever is lowered for.
            here = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend()) == platform
            level = logging.WARNING if here else logging.INFO
            _log_once(level, f"ss2d on {platform} goes without {refusals[-1]}")
    raise NotImplementedError("No backend of ss2d can do this call. " + "; ".join(refusals))


@functools.cache
def _log_once(level: int, message: str) -> None:
    logging.getLogger(__name__).log(level, message)


def _choose(what: str, name: str, valid: Sequence[str] | Mapping[str, object]) -> str:
    """Returns `name` if valid; otherwise an error that gives the valid ones and the nearest."""
    if name in valid:
        return name
    close = difflib.get_close_matches(str(name), list(valid), n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"Unknown {what} {name!r}.{hint} Valid: {', '.join(valid)}.")


def _check_directions(directions: Sequence[str]) -> tuple[str, ...]:
    if isinstance(directions, str) or not directions:
        raise ValueError(
            f"directions must be a sequence of at least one name, got {directions!r}. "
            f"Valid names: {', '.join(DIRECTIONS)}."
        )
    names = tuple(_choose("direction", name, DIRECTIONS) for name in directions)
    if len(set(names)) != len(names):
        raise ValueError(f"directions must differ from one another, got {', '.join(names)}.")
    return names


def _check_batch(size: int, axes: tuple[str, ...]) -> None:
    mesh = jax.sharding.get_abstract_mesh()
    missing = [axis for axis in axes if axis not in mesh.axis_names]
    if missing:
        raise ValueError(
            f"batch_axes: the mesh in context has no axis {', '.join(missing)}; it has "
            f"{', '.join(mesh.axis_names) or 'none'}. Call inside jax.set_mesh(mesh)."
        )
    devices = math.prod(mesh.shape[axis] for axis in axes)
    if size % devices:
        raise ValueError(
            f"A batch of {size} does not split over the {devices} devices of {', '.join(axes)}."
        )


def _check_arrays(
    arrays: Mapping[str, Array], shapes: Mapping[str, str], known: Mapping[str, int]
) -> None:
    """Checks every array against its letters.

    Args:
      arrays: by argument name. The first to show a letter sets its size.
      shapes: letters of each argument, separated by spaces.
      known: sizes that are fixed before the first array.
    """
    sizes = dict(known)
    for name, array in arrays.items():
        letters, shape = shapes[name].split(), jnp.shape(array)
        fits = len(shape) == len(letters) and all(
            size >= 1 and sizes.get(letter, size) == size
            for letter, size in zip(letters, shape, strict=True)
        )
        if not fits:
            numbers = " ".join(str(sizes.get(letter, letter)) for letter in letters)
            raise ValueError(
                f"{name} must have shape [{' '.join(letters)}] = [{numbers}] with every size at "
                f"least 1, got [{' '.join(map(str, shape))}]."
            )
        sizes |= dict(zip(letters, shape, strict=True))
        wanted = ("float32", "bfloat16") if name in ACTIVATIONS else ("float32",)
        if jnp.result_type(array).name not in wanted:
            raise ValueError(
                f"{name} must be {' or '.join(wanted)}, got {jnp.result_type(array).name}."
            )
