"""Tests that every backend of SS2D must pass: its test class inherits `SS2DSuite`."""

import contextlib
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mtmamba_jax.kernels import platform_check
from mtmamba_jax.kernels.ss2d import DIRECTIONS, api, selective_scan, ss2d
from mtmamba_jax.kernels.ss2d.analysis.compiled_scan import with_gradients
from mtmamba_jax.kernels.ss2d.arg_specs import ODD, ArgSpec

NAMES = ("y", "x", "dt", "dt_weight", "dt_bias", "A", "B", "C", "D")
ACTIVATIONS = (0, 1, 5, 6)
REVERSED = DIRECTIONS[::-1][:3]

# Both sides sum in float32 in different orders: about sqrt(terms) rounding errors of 6e-8, with at
# most a few thousand terms in a sum. Measured: at most 8e-7 on a CPU and 5.5e-6 on a GPU, whose
# exponentials are accurate to two units in the last place.
FLOAT32 = 2e-5
# Both sides get the same bfloat16 inputs. Each rounds its results to bfloat16, by at most half of
# 2**-8 of the value; a GPU also rounds what it saves for the backward pass.
BFLOAT16 = 1e-2
TOLERANCES = {"float32": FLOAT32, "bfloat16": BFLOAT16}


def mark_slow(names, fast):
    """Returns parameters for all names, of which those not in `fast` are marked slow."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


def cast(arguments, dtype):
    """Returns the arguments with activations cast to `dtype`."""
    return [jnp.asarray(v, dtype if i in ACTIVATIONS else None) for i, v in enumerate(arguments)]


def relative_error(got, wanted) -> float:
    """Returns the largest difference divided by the largest wanted value."""
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    return float(np.abs(got - wanted).max() / max(np.abs(wanted).max(), 1e-30))


@functools.cache
def _program(implementation, directions):
    op = functools.partial(ss2d, directions=directions, implementation=implementation)

    @jax.jit
    def run(cotangent, *arrays):
        y, pull = jax.vjp(op, *arrays)
        return y, *pull(cotangent.astype(y.dtype))

    return run


def value_and_gradients(arguments, implementation, directions=DIRECTIONS, seed=1):
    """Returns y and the eight gradients of sum(y * random array)."""
    cotangent = np.random.default_rng(seed).standard_normal(arguments[0].shape, np.float32)
    return _program(implementation, directions)(jnp.asarray(cotangent), *arguments)


def over_tasks(*arrays, **options):
    """Runs the op on each task separately, by `vmap` over the task axis."""
    one = functools.partial(ss2d, **options)
    return jax.vmap(lambda *v: one(*(a[None] for a in v))[0])(*arrays)


def recomputed(*arrays, **options):
    """Runs the op under `jax.checkpoint`."""
    return jax.checkpoint(functools.partial(ss2d, **options))(*arrays)


def intermediates(jaxpr):
    """Yields every array that a program computes, including those of inner programs."""
    for equation in jaxpr.eqns:
        yield from (v.aval for v in equation.outvars)
        for value in equation.params.values():
            for inner in jax.tree.leaves(value, is_leaf=lambda v: hasattr(v, "eqns")):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from intermediates(inner)


def lowered_for_cuda(spec, dtype, op=ss2d, implementation="pallas_gpu") -> str:
    """Lowers value and gradients for CUDA and returns the program's text."""
    op = functools.partial(op, implementation=implementation)
    arrays = spec.shapes(dtype)
    mesh = jax.sharding.get_abstract_mesh()
    with contextlib.nullcontext() if not mesh.empty else an_abstract_gpu():
        traced = jax.jit(with_gradients(op)).trace(arrays[0], *arrays)
        return traced.lower(lowering_platforms=("cuda",)).as_text()


def an_abstract_gpu(count=1, kind="NVIDIA A100", platform="gpu"):
    """Returns a context in which programs lower for GPUs that this machine need not have."""
    device = jax.sharding.AbstractDevice(kind, None, platform)
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.sharding.AbstractMesh((count,), ("data",), auto, abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


def ampere() -> bool:
    """Returns whether this machine's GPUs run Triton's kernels."""
    capabilities = platform_check.compute_capabilities()
    return jax.default_backend() == "gpu" and min(capabilities, default=0) >= platform_check.AMPERE


def pretend_gpus(monkeypatch, *capabilities):
    """Makes backends choose as on a machine with GPUs of these compute capabilities."""
    monkeypatch.setattr(platform_check, "compute_capabilities", lambda: capabilities)
    refusal = None if capabilities else "there is no GPU"
    monkeypatch.setattr(platform_check, "lowering_refusal", lambda: refusal)


def record_log(monkeypatch):
    """Returns a list to which levels and messages of the kernels' log are added from now on."""
    records = []
    logger = logging.getLogger(api.__name__)
    monkeypatch.setattr(logger, "log", lambda *record: records.append(record))
    api._log_once.cache_clear()
    return records


class SS2DSuite:
    """The tests. Subclasses set `implementation`, and smaller shapes where it is slow.

    Attributes:
      implementation: Name of the backend.
      odd: Shapes for the names of `ODD`.
      sizes: Heights and widths, smaller and larger than a GPU kernel's tile.
      length: Length of a sequence.
      whole_image: Shape whose states would be larger than any other array.
    """

    implementation: str
    odd = ODD
    sizes = ((5, 7), (9, 20))
    length = 21
    whole_image = ArgSpec(32, 48, d=16, t=2, b=1, n=8)

    def check(self, arguments, directions=DIRECTIONS, tolerance=FLOAT32):
        got = value_and_gradients(arguments, self.implementation, directions)
        wanted = value_and_gradients(arguments, "reference", directions)
        for name, one, other in zip(NAMES, got, wanted, strict=True):
            assert one.dtype == other.dtype, name
            assert np.isfinite(np.asarray(one, np.float32)).all(), name
            assert relative_error(one, other) < tolerance, name

    @pytest.mark.parametrize("name", mark_slow(ODD, ("pixel", "prime", "whole_chunks")))
    def test_value_and_gradients_equal_the_definition(self, name):
        self.check(self.odd[name].arguments())

    @pytest.mark.parametrize(
        "directions",
        mark_slow(
            [*((one,) for one in DIRECTIONS), REVERSED],
            (("row",), ("column_reversed",), REVERSED),
        ),
    )
    @pytest.mark.parametrize("size", [pytest.param(0, marks=pytest.mark.slow), 1])
    def test_directions_in_any_order_equal_the_definition(self, directions, size):
        spec = ArgSpec(*self.sizes[size], d=4, n=3, k=len(directions))
        self.check(spec.arguments(), directions)

    @pytest.mark.parametrize("step_scale", [1e-3, 1e3])
    def test_tiny_and_large_step_sizes_equal_the_definition(self, step_scale):
        spec = ArgSpec(*self.sizes[0], d=4, n=3)
        self.check(spec.arguments(step_scale=step_scale))

    def test_bfloat16_activations_are_within_rounding_error(self):
        spec = ArgSpec(*self.sizes[0], d=8, t=2, b=2, n=4, r=2)
        arguments = cast(spec.arguments(), "bfloat16")
        self.check(arguments, tolerance=BFLOAT16)

    def test_nan_reaches_no_other_task(self):
        spec = ArgSpec(*self.sizes[0], d=4, t=2, n=3)
        arguments = [v.at[1].set(jnp.nan) for v in map(jnp.asarray, spec.arguments())]
        got = value_and_gradients(arguments, self.implementation)
        wanted = value_and_gradients(spec.arguments(), self.implementation)
        for name, one, other in zip(NAMES, got, wanted, strict=True):
            np.testing.assert_array_equal(one[0], other[0], err_msg=name)

    def check_gradients(self, transform, arguments):
        """Compares gradients through `transform(op)` with those through the definition."""

        def gradients(implementation, transform):
            op = transform(functools.partial(ss2d, implementation=implementation))
            return jax.jit(jax.grad(lambda *arrays: jnp.sum(jnp.sin(op(*arrays))), range(8)))

        got = gradients(self.implementation, transform)(*arguments)
        wanted = gradients("reference", lambda op: op)(*arguments)
        for name, one, other in zip(NAMES[1:], got, wanted, strict=True):
            assert relative_error(one, other) < FLOAT32, name

    def test_vmap_equals_one_call_per_image(self):
        def transform(op):
            def over_the_batch(*arrays):
                axes = [1 if i in ACTIVATIONS else None for i in range(8)]
                return jax.vmap(lambda *one: op(*expand(one))[:, 0], axes, 1)(*arrays)

            def expand(arrays):
                return [v[:, None] if i in ACTIVATIONS else v for i, v in enumerate(arrays)]

            return over_the_batch

        self.check_gradients(transform, ArgSpec(3, 5, d=4, b=2, n=3, r=2).arguments())

    def test_checkpoint_keeps_the_gradients(self):
        self.check_gradients(jax.checkpoint, ArgSpec(3, 5, d=4, n=3, r=2).arguments())

    def test_shard_map_over_the_batch_equals_one_device(self):
        if jax.device_count() < 2:
            pytest.skip("needs two devices; tests/conftest.py requests eight on a CPU")
        auto = (jax.sharding.AxisType.Auto,)
        mesh = jax.make_mesh((2,), ("data",), auto, devices=jax.devices()[:2])
        specs = tuple(P(None, "data") if i in ACTIVATIONS else P() for i in range(8))
        self.check_gradients(
            lambda op: jax.shard_map(op, mesh=mesh, in_specs=specs, out_specs=P(None, "data")),
            ArgSpec(3, 5, d=4, b=2, n=3, r=2).arguments(),
        )

    @pytest.mark.parametrize("reverse", [False, True])
    def test_selective_scan_equals_ss2d_of_one_row(self, reverse):
        spec = ArgSpec(1, self.length, d=5, t=2, b=2, k=1, n=3, r=2)
        x, dt, dt_weight, dt_bias, A, B, C, D = spec.arguments()
        direction = "row_reversed" if reverse else "row"
        wanted = ss2d(
            *(x, dt, dt_weight, dt_bias, A, B, C, D),
            directions=(direction,),
            implementation="reference",
        )
        got = selective_scan(
            *(x[:, :, 0], dt[:, :, 0, :, 0], dt_weight[:, 0], dt_bias[:, 0], A[:, 0]),
            *(B[:, :, 0, :, 0], C[:, :, 0, :, 0], D[:, 0]),
            reverse=reverse,
            implementation=self.implementation,
        )
        assert relative_error(got, wanted[:, :, 0]) < FLOAT32

    def test_no_array_holds_the_states_of_a_whole_image(self):
        spec = self.whole_image
        arguments = spec.arguments()
        states = spec.t * spec.b * spec.h * spec.w * spec.d * spec.n  # of one direction
        jaxpr = jax.make_jaxpr(lambda *arrays: value_and_gradients(arrays, self.implementation))(
            *arguments
        ).jaxpr
        sizes = [np.prod(v.shape) for v in intermediates(jaxpr)]
        assert len(sizes) > 100  # inner programs were visited
        # The boundary states of four directions, one in eight, are half of one direction's states.
        assert max(sizes) <= states / 2


class GPUSuite(SS2DSuite):
    """The tests of fused GPU backends."""

    # Kernels pad channels to at most 128 and states to 16; this image needs neither.
    whole_image = ArgSpec(32, 48, d=128, t=2, n=16)

    @pytest.mark.parametrize("n", [17, 64])
    def test_more_states_than_a_program_has_equal_the_definition(self, n):
        self.check(ArgSpec(6, 20, d=12, n=n).arguments())

    def test_two_executions_give_the_same_bits(self):
        arguments = ArgSpec(28, 36, d=256, b=2, t=2, r=6).arguments()
        first, second = (value_and_gradients(arguments, self.implementation) for _ in range(2))
        for one, other in zip(first, second, strict=True):
            np.testing.assert_array_equal(one, other)

    def check_segments(self, dtype):
        """Compares an image of several segments, or of one, with the definition."""
        jax.clear_caches()  # programs divided with other limits
        arguments = ArgSpec(40, 52, d=128, b=2, t=2, r=4).arguments()
        self.check(cast(arguments, dtype), tolerance=TOLERANCES[dtype])
