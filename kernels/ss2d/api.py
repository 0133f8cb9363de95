"""The public selective-scan ops: argument checks, and dispatch to the platform's backend.

Letters: t task, b batch, h w height and width, d inner channels, k directions, n state, r rank of
the step-size projection, l length of a sequence.
"""

import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from mtmamba_jax.kernels.manual_axes import on_each_device
from mtmamba_jax.kernels.platform_check import by_platform, local_platform
from mtmamba_jax.kernels.ss2d.common import check_name, split_projected
from mtmamba_jax.kernels.ss2d.pallas_gpu import ss2d_pallas_gpu
from mtmamba_jax.kernels.ss2d.pallas_tpu import selective_ss2d_pallas_tpu, ss2d_pallas_tpu
from mtmamba_jax.kernels.ss2d.pallas_triton import ss2d_pallas_triton
from mtmamba_jax.kernels.ss2d.reference import ss2d_reference
from mtmamba_jax.kernels.ss2d.xla import ss2d_xla

DIRECTIONS = ("row", "column", "row_reversed", "column_reversed")
"""Reading orders of an image, in the order of the official weights' direction axis."""

IMPLEMENTATIONS: dict[str, Callable[..., Array]] = {
    "pallas_gpu": ss2d_pallas_gpu,
    "pallas_triton": ss2d_pallas_triton,
    "pallas_tpu": ss2d_pallas_tpu,
    "xla": ss2d_xla,
    "reference": ss2d_reference,
}
"""Backends by name. One that does not support a call raises NotImplementedError."""

PLATFORMS: dict[str, tuple[str, ...]] = {
    "cuda": ("pallas_gpu", "pallas_triton", "xla"),
    "tpu": ("pallas_tpu", "xla"),
    "default": ("xla",),
}
"""Backends to try, in order, for each platform; "default" covers the platforms not listed."""

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
SELECTIVE_SHAPES = {
    "x": "t b h w d",
    "source": "t b h w d",
    "projection": "t k d e",
    **{name: SHAPES[name] for name in ("dt_weight", "dt_bias", "A", "D")},
}
ACTIVATIONS = ("x", "dt", "B", "C")
ACTIVATION_DTYPES = ("float32", "bfloat16")


def ss2d(
    x: Float[Array, "t b h w d"],
    dt: Float[Array, "t b h w k r"],
    dt_weight: Float[Array, "t k r d"],
    dt_bias: Float[Array, "t k d"],
    A: Float[Array, "t k d n"],
    B: Float[Array, "t b h w k n"],
    C: Float[Array, "t b h w k n"],
    D: Float[Array, "t k d"],
    *,
    directions: Sequence[str] = DIRECTIONS,
    implementation: str | None = None,
    batch_axes: Sequence[str] = (),
) -> Float[Array, "t b h w d"]:
    """Runs the selective scan of an image in several directions and sums the results.

    MTMamba, Eq. 8 to 11. Along each direction's reading order, with
    step = softplus(dt @ dt_weight + dt_bias),

        h = exp(step * A) * h + step * x * B,    y = C.h + D * x,

    where h starts at zero. Differentiable in all eight arrays in reverse mode; forward mode
    (`jax.jvp`, `jax.jacfwd`, `jax.hessian`) works with implementation="reference" alone.

    Args:
      x: Activations, float32 or bfloat16; so are dt, B and C. Lists of numbers are read as float32.
      dt: Low-rank step sizes.
      dt_weight: Projection of the step sizes, float32; so are the other parameters.
      dt_bias: Bias of the projection.
      A: Rates of the states' decay, negative.
      B: Input maps.
      C: Output maps.
      D: Weights of the skip connection.
      directions: Distinct names from `DIRECTIONS`, in the order of the arrays' axis k.
      implementation: Name from `IMPLEMENTATIONS`, used without a fallback. None uses the first
        backend that supports the call on the platform the program is lowered for.
      batch_axes: Axes of the mesh in context (`jax.set_mesh`) over which the batch is sharded. Each
        device then scans its own images; the compiler cannot partition a fused kernel by itself.

    Returns:
      y in x's dtype. States, decays and sums are float32. With bfloat16 activations the fused
      kernels round these to bfloat16: dt_weight, saved states, the result of each direction, and
      the terms of B's and C's gradients.

    Raises:
      ValueError: If a direction, implementation or mesh axis is unknown, an array has the wrong
        shape or dtype, or the batch is not divisible by the number of devices.
      NotImplementedError: If the forced implementation does not support this call.
    """
    arrays = dict(x=x, dt=dt, dt_weight=dt_weight, dt_bias=dt_bias, A=A, B=B, C=C, D=D)
    directions = _check_directions(directions)
    arrays = _check_arrays(arrays, SHAPES, {"k": len(directions)})
    return _run_on_devices(IMPLEMENTATIONS, arrays, directions, implementation, batch_axes)


def selective_ss2d(
    x: Float[Array, "t b h w d"],
    source: Float[Array, "t b h w d"],
    projection: Float[Array, "t k d e"],
    dt_weight: Float[Array, "t k r d"],
    dt_bias: Float[Array, "t k d"],
    A: Float[Array, "t k d n"],
    D: Float[Array, "t k d"],
    *,
    directions: Sequence[str] = DIRECTIONS,
    implementation: str | None = None,
    batch_axes: Sequence[str] = (),
) -> Float[Array, "t b h w d"]:
    """Runs `ss2d` with dt, B and C computed from a map: [dt B C] = source @ projection.

    On TPUs this product is written as the kernels read it, where `ss2d` would copy dt, B and C.

    Args:
      x: Activations, float32 or bfloat16.
      source: Map that dt, B and C are computed from, float32 or bfloat16; usually x itself.
      projection: Weights of that product, in source's dtype; e = r + 2 n.
      dt_weight, dt_bias, A, D: Parameters of `ss2d`, float32.
      directions, implementation, batch_axes: Those of `ss2d`.

    Returns:
      y in x's dtype.

    Raises:
      ValueError: If an argument is wrong, as in `ss2d`.
      NotImplementedError: If the forced implementation does not support this call.
    """
    arrays = dict(x=x, source=source, projection=projection)
    arrays |= dict(dt_weight=dt_weight, dt_bias=dt_bias, A=A, D=D)
    directions = _check_directions(directions)
    arrays = _check_arrays(arrays, SELECTIVE_SHAPES, {"k": len(directions)})
    width = arrays["projection"].shape[-1]
    wanted = arrays["dt_weight"].shape[2] + 2 * arrays["A"].shape[3]
    if width != wanted:
        raise ValueError(f"projection must have {wanted} = r + 2 n columns, got {width}.")
    kinds = [arrays[name].dtype.name for name in ("source", "projection")]
    if kinds[0] != kinds[1]:
        raise ValueError(f"source and projection must have one dtype, got {' and '.join(kinds)}.")
    return _run_on_devices(
        SELECTIVE_IMPLEMENTATIONS, arrays, directions, implementation, batch_axes
    )


def _with_projection(name: str) -> Callable[..., Array]:
    """Returns a backend of `selective_ss2d` from one of `ss2d`."""

    def run(*arrays: Array, directions: Sequence[str]) -> Array:
        x, source, projection, dt_weight, dt_bias, A, D = arrays
        projected = jnp.einsum("tbhwd,tkde->tbhwke", source, projection)
        dt, B, C = split_projected(projected, dt_weight.shape[2])
        backend = IMPLEMENTATIONS[name]
        return backend(x, dt, dt_weight, dt_bias, A, B, C, D, directions=directions)

    return run


SELECTIVE_IMPLEMENTATIONS = {name: _with_projection(name) for name in IMPLEMENTATIONS} | {
    "pallas_tpu": selective_ss2d_pallas_tpu
}
"""Backends of `selective_ss2d` by name."""


def _run_on_devices(
    backends: Mapping[str, Callable[..., Array]],
    arrays: Mapping[str, Array],
    directions: tuple[str, ...],
    implementation: str | None,
    batch_axes: Sequence[str],
) -> Array:
    """Runs a backend on each device of the mesh's `batch_axes`, with its part of the batch."""
    if isinstance(batch_axes, str):
        raise ValueError(f"batch_axes must be a sequence of names, got {batch_axes!r}.")
    if batch_axes:
        _check_batch(arrays["x"].shape[1], tuple(batch_axes))
    run = functools.partial(_run, backends, directions=directions, implementation=implementation)
    split = [name in (*ACTIVATIONS, "source") for name in arrays]
    return on_each_device(run, batch_axes, split)(*arrays.values())


def selective_scan(
    x: Float[Array, "t b l d"],
    dt: Float[Array, "t b l r"],
    dt_weight: Float[Array, "t r d"],
    dt_bias: Float[Array, "t d"],
    A: Float[Array, "t d n"],
    B: Float[Array, "t b l n"],
    C: Float[Array, "t b l n"],
    D: Float[Array, "t d"],
    *,
    reverse: bool = False,
    implementation: str | None = None,
    batch_axes: Sequence[str] = (),
) -> Float[Array, "t b l d"]:
    """Runs the selective scan of a sequence (Mamba's S6): `ss2d` of one row in one direction.

    The arrays, `implementation` and `batch_axes` are those of `ss2d`, without its axes h, w and k.

    Args:
      reverse: Whether to read from the last element to the first.

    Returns:
      y in x's dtype.

    Raises:
      ValueError: If the implementation is unknown, or an array has the wrong shape or dtype.
      NotImplementedError: If the forced implementation does not support this call.
    """
    arrays = dict(x=x, dt=dt, dt_weight=dt_weight, dt_bias=dt_bias, A=A, B=B, C=C, D=D)
    shapes = {name: shape.replace("h w", "l").replace(" k", "") for name, shape in SHAPES.items()}
    x, dt, dt_weight, dt_bias, A, B, C, D = _check_arrays(arrays, shapes, {}).values()
    y = ss2d(
        x[:, :, None],
        *(dt[:, :, None, :, None], dt_weight[:, None], dt_bias[:, None], A[:, None]),
        *(B[:, :, None, :, None], C[:, :, None, :, None], D[:, None]),
        directions=("row_reversed" if reverse else "row",),
        implementation=implementation,
        batch_axes=batch_axes,
    )
    return y[:, :, 0]


def _run(
    backends: Mapping[str, Callable[..., Array]],
    *arrays: Array,
    directions: tuple[str, ...],
    implementation: str | None,
) -> Array:
    """Calls the forced backend or else, for each platform, the first that supports the call."""
    if implementation is not None:
        check_name("implementation", implementation, backends)
        return backends[implementation](*arrays, directions=directions)
    branches = {
        platform: functools.partial(_run_first_supported, backends, platform, directions=directions)
        for platform in PLATFORMS
    }
    return by_platform(*arrays, **branches)


def _run_first_supported(
    backends: Mapping[str, Callable[..., Array]],
    platform: str,
    *arrays: Array,
    directions: tuple[str, ...],
) -> Array:
    # Branches of other platforms are traced too; what they would run is of no interest here.
    here = local_platform()
    runs_here = platform == (here if here in PLATFORMS else "default")
    platform = here if runs_here else platform
    name, refusals, y = _try_backends(backends, platform, arrays, directions)
    level = logging.DEBUG
    if runs_here and platform != "cpu":
        level = logging.WARNING if name == "xla" else logging.INFO
    reasons = "; ".join(f"not {other}: {reason}" for other, reason in refusals.items())
    message = f"The selective scan on {platform} {'runs' if runs_here else 'would run'} {name}"
    _log_once(level, message + (f" ({reasons})." if reasons else "."))
    return y


def choose_implementation(
    platform: str,
    arrays: Sequence[Array | jax.ShapeDtypeStruct],
    directions: Sequence[str] = DIRECTIONS,
) -> tuple[str, dict[str, str]]:
    """Returns the backend that `ss2d` runs on a platform, and why it does not run others before it.

    Args:
      platform: Platform of a program as JAX names it, such as "cuda".
      arrays: Arguments of `ss2d`, or their shapes and dtypes.
      directions: Directions of the scan.

    Raises:
      NotImplementedError: If no backend supports the call.
    """
    found: dict[str, dict[str, str]] = {}

    def run(*arrays: Array) -> Array:
        name, refusals, y = _try_backends(IMPLEMENTATIONS, platform, arrays, tuple(directions))
        found[name] = refusals
        return y

    jax.eval_shape(run, *arrays)
    return next(iter(found.items()))


def _try_backends(
    backends: Mapping[str, Callable[..., Array]],
    platform: str,
    arrays: Sequence[Array],
    directions: tuple[str, ...],
) -> tuple[str, dict[str, str], Array]:
    """Returns the first backend that supports a call, why the others do not, and the result."""
    refusals: dict[str, str] = {}
    if platform not in (*PLATFORMS, "cpu"):
        refusals["fused kernels"] = f"there are none for {platform}"
    for name in PLATFORMS.get(platform, PLATFORMS["default"]):
        try:
            return name, refusals, backends[name](*arrays, directions=directions)
        except NotImplementedError as refusal:
            refusals[name] = str(refusal)
    reasons = "; ".join(f"{name}: {reason}" for name, reason in refusals.items())
    raise NotImplementedError(f"No backend of ss2d supports this call. {reasons}")


@functools.cache
def _log_once(level: int, message: str) -> None:
    logging.getLogger(__name__).log(level, message)


def _check_directions(directions: Sequence[str]) -> tuple[str, ...]:
    if isinstance(directions, str) or not directions:
        raise ValueError(
            f"directions must be a sequence of at least one name, got {directions!r}. "
            f"Valid names: {', '.join(DIRECTIONS)}."
        )
    for name in directions:
        check_name("direction", name, DIRECTIONS)
    if len(set(directions)) != len(directions):
        raise ValueError(f"directions must differ from one another, got {', '.join(directions)}.")
    return tuple(directions)


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
            f"batch_axes: a batch of {size} is not divisible by the {devices} devices of mesh axes "
            f"{', '.join(axes)}."
        )


def _check_arrays(
    arrays: Mapping[str, ArrayLike], shapes: Mapping[str, str], known: Mapping[str, int]
) -> dict[str, Array]:
    """Returns JAX arrays (see `to_array`) after checking their shapes.

    The first array that has a letter not `known` sets its size.
    """
    sizes, checked = dict(known), {}
    for name, given in arrays.items():
        narrow = name in (*ACTIVATIONS, "source", "projection")
        wanted = ACTIVATION_DTYPES if narrow else ("float32",)
        checked[name] = array = to_array(name, given, wanted)
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
    return checked


def to_array(name: str, given: ArrayLike, dtypes: Sequence[str]) -> Array:
    """Returns an array as JAX's, or nested lists of numbers as float32.

    Args:
      name: Name of the argument, for messages.
      given: An array, or lists. NumPy's float64 becomes float32 unless JAX has 64 bits enabled.
      dtypes: Names of the valid dtypes.

    Raises:
      ValueError: If it is neither, or has another dtype.
    """
    try:  # JAX would read lists as float64 if it has 64 bits enabled, and integers as integers
        array = jnp.asarray(given, None if hasattr(given, "dtype") else jnp.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{name} must be an array or a nested list of numbers, got a {type(given).__name__}."
        ) from error
    if array.dtype.name not in dtypes:
        raise ValueError(
            f"{name} must be {' or '.join(dtypes)}, got {array.dtype.name}. Cast it: "
            f"{name}.astype(jnp.{dtypes[0]})."
        )
    return array
