"""Which platform's code is traced."""

import jax
import jax.numpy as jnp
import pytest

from mtmamba_jax.devices.sharding import create_mesh, jit_on
from mtmamba_jax.kernels.platform_check import by_platform, compiled_for


@pytest.fixture
def traced():
    """Platforms whose code was traced by `choose`, which returns 1 on TPUs and else 0."""
    return []


def choose(traced, x):
    def branch(name, value):
        def run(x):
            traced.append(name)
            return x + value

        return run

    return by_platform(x, tpu=branch("tpu", 1.0), default=branch("default", 0.0))


def test_without_a_promise_code_is_traced_for_every_platform(traced):
    run = jax.jit(lambda x: choose(traced, x))
    assert run(jnp.zeros(())) == 0.0  # the tests run on a CPU
    assert sorted(set(traced)) == ["default", "tpu"]


@pytest.mark.parametrize(("platform", "name"), [("tpu", "tpu"), ("cpu", "default")])
def test_inside_a_promise_code_is_traced_for_one_platform(traced, platform, name):
    with compiled_for(platform):
        value = choose(traced, jnp.zeros(()))
    assert traced == [name]
    assert value == float(name == "tpu")


def test_a_jitted_function_is_traced_again_outside_a_promise(traced):
    run = jax.jit(lambda x: choose(traced, x))
    with compiled_for("tpu"):
        assert run(jnp.zeros(())) == 1.0
    assert run(jnp.zeros(())) == 0.0


def test_a_function_of_a_mesh_is_traced_for_the_meshs_platform(traced):
    mesh = create_mesh(1, devices=jax.devices()[:1])
    assert jit_on(mesh, lambda x: choose(traced, x))(jnp.zeros(())) == 0.0
    assert traced == ["default"]
