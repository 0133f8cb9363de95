"""Fixtures of the kernels' tests."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mtmamba_jax.kernels import triton_instructions as instructions
from mtmamba_jax.kernels.ss2d import pallas_tpu
from mtmamba_jax.models.ops import dispatch
from tests.kernels.ss2d_suite import pretend_gpus


@pytest.fixture
def interpreted(monkeypatch):
    """Runs the kernels on this machine's default device; a list to which their names are added."""
    launched, pallas_call = [], pl.pallas_call

    def interpret(body, *args, **options):
        launched.append(getattr(body, "func", body).__name__)
        return pallas_call(body, *args, **options, interpret=True)

    monkeypatch.setattr(pl, "pallas_call", interpret)
    monkeypatch.setattr(instructions, "exp2", jnp.exp2)
    monkeypatch.setattr(dispatch, "require_platform", lambda x, *_: x)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *v, cuda, **_: cuda(*v))
    pretend_gpus(monkeypatch, 8.0)
    jax.clear_caches()
    yield launched
    jax.clear_caches()


@pytest.fixture
def tpu_interpreter(capsys, monkeypatch):
    """Runs TPU kernels on a CPU as on a TPU: uninitialized memory is NaN, races are errors."""
    if jax.default_backend() == "tpu":
        yield
        return
    monkeypatch.setattr(pallas_tpu, "PLATFORMS", ("tpu", "cpu"))
    pltpu.reset_tpu_interpret_mode_state()  # left over from a failed test
    with pltpu.force_tpu_interpret_mode(
        pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
    ):
        yield
    assert "RACE DETECTED" not in capsys.readouterr().out
