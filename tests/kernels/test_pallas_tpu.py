"""The TPU backend: its numbers, in the interpreter or on a TPU; how it cuts images."""

from __future__ import annotations

import jax
import pytest
from jax.experimental.pallas import tpu as pltpu

from mtmamba_jax.kernels.ss2d import DIRECTIONS, pallas_tpu
from mtmamba_jax.kernels.ss2d.arg_specs import DECODER, ODD, ArgSpec
from mtmamba_jax.kernels.ss2d.mosaic_tpu import launch, tiling
from tests.kernels.ss2d_suite import SS2DSuite


def interpreted() -> bool:
    return jax.default_backend() != "tpu"


@pytest.fixture
def interpreter(capsys):
    """Runs kernels on a CPU as a TPU would: unwritten memory is NaN, races are errors."""
    if not interpreted():
        yield
        return
    pltpu.reset_tpu_interpret_mode_state()  # what a failed test left
    with pltpu.force_tpu_interpret_mode(
        pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
    ):
        yield
    assert "RACE DETECTED" not in capsys.readouterr().out


@pytest.fixture
def small_cuts(monkeypatch):
    """Cuts small images as large ones are cut: lines into pieces, images into many tiles."""
    monkeypatch.setattr(tiling, "MAX_PIECE_PIXELS", 8)
    monkeypatch.setattr(tiling, "TILE_ELEMENTS", 2 * 8 * 128)


@pytest.fixture
def other_cuts():
    """Forgets programs cut otherwise, before and after a test that cuts in its own tiling."""
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.usefixtures("interpreter", "small_cuts")
class TestPallasTPU(SS2DSuite):
    """Of the suite's shapes a small one of each kind: the interpreter takes 10 ms a pixel."""

    implementation = "pallas_tpu"
    odd = ODD | {
        "row": ArgSpec(1, 9, d=5, n=3),
        "column": ArgSpec(9, 1, d=5, n=3),
        "prime": ArgSpec(3, 5, d=13, b=2, n=5, r=3),
        "whole_chunks": ArgSpec(2, 8, d=8, t=2, n=16, r=2),
        "one_state": ArgSpec(3, 9, d=4, n=1),
    }
    sizes = ((2, 3), (3, 9))  # a piece, and several pieces and tiles
    length = 9
    # Channels are padded to 128 and states to 8; this image needs neither.
    whole_image = ArgSpec(32, 48, d=128, t=2, n=16)

    def test_vmap_equals_one_at_a_time(self, monkeypatch, other_cuts):
        if interpreted():  # its grid has an axis more, which the interpreter counts as unnamed
            monkeypatch.setattr(launch, "SEMANTICS", None)
        super().test_vmap_equals_one_at_a_time()

    @pytest.mark.skipif(interpreted(), reason="jax.checkpoint refuses the interpreter's callbacks")
    def test_checkpoint_keeps_the_gradients(self):
        super().test_checkpoint_keeps_the_gradients()

    def test_channels_in_several_parts(self, monkeypatch, other_cuts):
        def needed(cut, dtype):
            return 0 if cut.parts > 1 else 2**40

        monkeypatch.setattr(pallas_tpu.memory, "vmem_bytes", needed)
        self.check(ArgSpec(2, 3, d=140, n=3).arguments())

    def test_lines_that_a_tile_does_not_hold(self, monkeypatch, other_cuts):
        monkeypatch.setattr(tiling, "MAX_PIECES", 1)
        self.check(ArgSpec(2, 9, d=4, n=3, k=1).arguments(), ("row_reversed",))

    def test_more_states_than_a_register_has(self):
        self.check(ArgSpec(2, 3, d=4, n=17).arguments())

    def test_several_groups_of_channels_and_registers_of_maps(self):
        spec = ArgSpec(2, 3, d=300, n=17, k=2, r=100)  # two blocks walked together, twice
        self.check(spec.arguments(), DIRECTIONS[:2])


def decoder_cuts(monkeypatch, name, dtype, memory):
    monkeypatch.setattr(pallas_tpu, "_vmem_capacity", lambda: memory)
    spec = DECODER[name]
    x = jax.ShapeDtypeStruct((1, 1, spec.h, spec.w, spec.d), dtype)
    return spec, pallas_tpu.choose_tilings(DIRECTIONS, x, spec.n, spec.r)


@pytest.mark.parametrize("name", ["stage1_t1_b1", "stage2_t1_b1", "stage3_t1_b1"])
def test_decoder_maps_are_cut_with_little_to_spare(monkeypatch, name):
    spec, (row, column) = decoder_cuts(monkeypatch, name, "bfloat16", 64 * 2**20)
    for cut, length in ((row, spec.w), (column, spec.h)):
        assert (cut.parts, cut.lanes) == (1, spec.d)
        assert length <= cut.pieces * cut.piece_pixels < 1.15 * length


def test_a_small_memory_shares_out_the_channels(monkeypatch):
    spec, cuts = decoder_cuts(monkeypatch, "stage3_t1_b1", "float32", 16 * 2**20)
    for cut in cuts:
        assert cut.parts * cut.lanes >= spec.d
        assert pallas_tpu.memory.vmem_bytes(cut, "float32") < 16 * 2**20
    assert cuts[1].parts > 1
