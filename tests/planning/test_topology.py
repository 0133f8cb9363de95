"""Topologies: the devices of accelerators that this machine does not have."""

import importlib.util

import pytest

from mtmamba_jax.cli import main as cli
from mtmamba_jax.devices import sharding
from mtmamba_jax.devices.chips import CHIPS
from mtmamba_jax.kernels.ss2d.analysis import topology as compiled_for
from mtmamba_jax.planning import topology

needs_libtpu = pytest.mark.skipif(
    not importlib.util.find_spec("libtpu"), reason="libtpu is not installed"
)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5x:2x2", "Unknown topology 'v5x'. Did you mean 'v5p'? Valid: v4, v5e"),
        ("v5e", "expected v5e:SHAPE, a shape in chips. Valid shapes: 1x1, 2x2"),
        ("v5e:2x2x1", "expected v5e:SHAPE"),
        ("v5p:2x2", "expected v5p:SHAPE, a shape in chips. Valid shapes: 2x2x1"),
        ("v5e:0x2", "expected v5e:SHAPE"),
        ("h100:2x2", "expected h100:NUMBER"),
    ],
)
def test_a_wrong_topology_is_refused_with_the_valid_ones(name, message, capsys):
    assert cli.main(["plan", f"--topology={name}"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "error", "extra"),
    [
        ("v5e:2x2", RuntimeError("JAX TPU support not installed"), "[tpu]"),
        ("h200:1", NotImplementedError("topology not implemented for cuda"), "[cuda]"),
    ],
)
def test_a_missing_compiler_is_reported_with_what_to_install(
    name, error, extra, monkeypatch, capsys
):
    def missing(*_, **__):
        raise error

    monkeypatch.setattr(topology, "stay_on_cpu", lambda: None)
    monkeypatch.setattr(compiled_for.topologies, "get_topology_desc", missing)
    assert cli.main(["plan", f"--topology={name}"]) == 1
    assert f'pip install -e ".{extra}"' in capsys.readouterr().err


def test_every_topology_has_a_known_chip():
    chips = [tpu.chip for tpu in topology.TPUS.values()] + list(topology.GPUS.values())
    assert set(chips) <= CHIPS.keys()


def test_jax_allocates_three_quarters_of_a_gpu_by_default(monkeypatch):
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)
    assert topology.gpu_memory_fraction() == 0.75
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", ".9")
    assert topology.gpu_memory_fraction() == pytest.approx(0.9)


@pytest.fixture
def keep_jax_config(monkeypatch):
    """Finds topologies without changing the JAX configuration of the other tests."""
    monkeypatch.setattr(topology, "stay_on_cpu", lambda: None)


@needs_libtpu
@pytest.mark.parametrize("name", ["v5e:4x4", "v6e:4x4", "v5p:4x4x4"])
def test_the_state_can_be_sharded_on_any_torus(name, keep_jax_config):
    devices = topology.find(name).devices
    for fsdp in (2, 4, 16):
        mesh = sharding.create_mesh(len(devices), fsdp=fsdp, devices=devices)
        assert mesh.devices.shape[1] == fsdp


@needs_libtpu
def test_a_shape_that_no_tpu_has_is_refused_with_the_valid_ones(keep_jax_config, capsys):
    assert cli.main(["plan", "--topology=v5e:3x3"]) == 2
    assert "Valid shapes: 1x1, 2x2, 2x4" in capsys.readouterr().err
