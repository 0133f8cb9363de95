"""What every backend of SS2D must do. A backend's test class inherits it and names itself."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mtmamba_jax.kernels.ss2d import DIRECTIONS, selective_scan, ss2d
from mtmamba_jax.kernels.ss2d.arg_specs import ODD, ArgSpec

NAMES = ("y", "x", "dt", "dt_weight", "dt_bias", "A", "B", "C", "D")
ACTIVATIONS = (0, 1, 5, 6)

# Both sides sum in float32 in different orders: about sqrt(terms) roundings of 6e-8, and an image
# of the suite has at most a few thousand terms in a sum. Measured: at most 8e-7 on a CPU, 5.5e-6 on
# a GPU, whose exponentials are rounded to two units of the last place.
FLOAT32 = 2e-5
# bfloat16 inputs are the same on both sides. What differs is a rounding to bfloat16, half of 2**-8
# of the value, of each result on either side, and on a GPU of what is kept between passes too.
BFLOAT16 = 1e-2
TOLERANCES = {"float32": FLOAT32, "bfloat16": BFLOAT16}


def cast(arguments, dtype):
    """The arguments with activations of a dtype."""
    return [jnp.asarray(v, dtype if i in ACTIVATIONS else None) for i, v in enumerate(arguments)]


def relative_error(got, wanted) -> float:
    """Largest difference as a share of the largest wanted value."""
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
    """y and the eight gradients of sum(y * a random array)."""
    cotangent = np.random.default_rng(seed).standard_normal(arguments[0].shape, np.float32)
    return _program(implementation, directions)(jnp.asarray(cotangent), *arguments)


def over_tasks(*arrays, **options):
    """`vmap` over the task axis, each task by itself."""
    one = functools.partial(ss2d, **options)
    return jax.vmap(lambda *v: one(*(a[None] for a in v))[0])(*arrays)


def recomputed(*arrays, **options):
    """The op under `jax.checkpoint`."""
    return jax.checkpoint(functools.partial(ss2d, **options))(*arrays)


def intermediates(jaxpr):
    """Every array that a program makes, those of its inner programs included."""
    for equation in jaxpr.eqns:
        yield from (v.aval for v in equation.outvars)
        for value in equation.params.values():
            for inner in jax.tree.leaves(value, is_leaf=lambda v: hasattr(v, "eqns")):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from intermediates(inner)


class SS2DSuite:
    """The tests; subclasses set `implementation`."""

    implementation: str
    odd = ODD
    # Within a GPU kernel's tile, and across.
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

    @pytest.mark.parametrize("name", ODD)
    def test_value_and_gradients_equal_the_definition(self, name):
        self.check(self.odd[name].arguments())

    @pytest.mark.parametrize("directions", [*((one,) for one in DIRECTIONS), DIRECTIONS[::-1][:3]])
    @pytest.mark.parametrize("size", [0, 1])
    def test_each_direction_and_any_order_of_directions(self, directions, size):
        spec = ArgSpec(*self.sizes[size], d=4, n=3, k=len(directions))
        self.check(spec.arguments(), directions)

    @pytest.mark.parametrize("step_scale", [1e-3, 1e3])
    def test_tiny_and_large_steps(self, step_scale):
        spec = ArgSpec(*self.sizes[0], d=4, n=3)
        self.check(spec.arguments(step_scale=step_scale))

    def test_bfloat16_activations_with_float32_states(self):
        spec = ArgSpec(*self.sizes[0], d=8, t=2, b=2, n=4, r=2)
        arguments = cast(spec.arguments(), "bfloat16")
        self.check(arguments, tolerance=BFLOAT16)

    def check_gradients(self, transform, arguments):
        """Gradients of a loss on `transform(op)`, against those on the definition as it is."""

        def gradients(implementation, transform):
            op = transform(functools.partial(ss2d, implementation=implementation))
            return jax.jit(jax.grad(lambda *arrays: jnp.sum(jnp.sin(op(*arrays))), range(8)))

        got = gradients(self.implementation, transform)(*arguments)
        wanted = gradients("reference", lambda op: op)(*arguments)
        for name, one, other in zip(NAMES[1:], got, wanted, strict=True):
            assert relative_error(one, other) < FLOAT32, name

    def test_vmap_equals_one_at_a_time(self):
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
            pytest.skip("needs two devices; tests/conftest.py asks for eight on a CPU")
        auto = (jax.sharding.AxisType.Auto,)
        mesh = jax.make_mesh((2,), ("data",), auto, devices=jax.devices()[:2])
        specs = tuple(P(None, "data") if i in ACTIVATIONS else P() for i in range(8))
        self.check_gradients(
            lambda op: jax.shard_map(op, mesh=mesh, in_specs=specs, out_specs=P(None, "data")),
            ArgSpec(3, 5, d=4, b=2, n=3, r=2).arguments(),
        )

    @pytest.mark.parametrize("reverse", [False, True])
    def test_selective_scan_is_one_row(self, reverse):
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
        assert len(sizes) > 100  # the walk went inside
        # All directions' boundary states, one in eight, make half of one direction's states.
        assert max(sizes) <= states / 2
