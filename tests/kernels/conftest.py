"""Fixtures of the kernels' tests."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from mtmamba_jax.kernels import triton_instructions as instructions
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
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *v, cuda, default: cuda(*v))
    pretend_gpus(monkeypatch, 8.0)
    jax.clear_caches()
    yield launched
    jax.clear_caches()
