"""The TPU backend: results in the interpreter or on a TPU, and how it cuts images into tiles."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtmamba_jax.kernels.ss2d import DIRECTIONS, pallas_tpu, selective_ss2d
from mtmamba_jax.kernels.ss2d.arg_specs import DECODER, ODD, ArgSpec
from mtmamba_jax.kernels.ss2d.mosaic_tpu import launch, tiling
from tests.kernels.kernel_suite import value_and_gradients
from tests.kernels.ss2d_suite import REVERSED, SS2DSuite, mark_slow, relative_error


def interpreted() -> bool:
    return jax.default_backend() != "tpu"


@pytest.fixture
def small_tilings(monkeypatch):
    """Tiles small images like large ones: several pieces per line, many tiles per image."""
    monkeypatch.setattr(tiling, "MAX_PIECE_PIXELS", 8)
    monkeypatch.setattr(tiling, "TILE_ELEMENTS", 2 * 8 * 128)


@pytest.fixture
def clear_caches():
    """Clears programs with other tilings before and after a test that changes the tiling."""
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.tpu
@pytest.mark.usefixtures("tpu_interpreter", "small_tilings")
class TestPallasTPU(SS2DSuite):
    """Uses smaller shapes than the suite: the interpreter takes 10 ms per pixel."""

    implementation = "pallas_tpu"
    odd = ODD | {
        "row": ArgSpec(1, 9, d=5, n=3),
        "column": ArgSpec(9, 1, d=5, n=3),
        "prime": ArgSpec(3, 5, d=13, b=2, n=5, r=3),
        "whole_chunks": ArgSpec(2, 8, d=8, t=2, n=16, r=2),
        "one_state": ArgSpec(3, 9, d=4, n=1),
    }
    sizes = ((2, 3), (3, 9))  # one piece; several pieces and tiles
    length = 9
    # Channels are padded to 128 and states to 8; this image needs neither.
    whole_image = ArgSpec(32, 48, d=128, t=2, n=16)

    @pytest.mark.parametrize("name", mark_slow(ODD, ("pixel", "prime")))
    def test_value_and_gradients_equal_the_definition(self, name):
        super().test_value_and_gradients_equal_the_definition(name)

    @pytest.mark.parametrize(
        "directions", mark_slow([*((one,) for one in DIRECTIONS), REVERSED], (REVERSED,))
    )
    @pytest.mark.parametrize("size", [pytest.param(0, marks=pytest.mark.slow), 1])
    def test_directions_in_any_order_equal_the_definition(self, directions, size):
        super().test_directions_in_any_order_equal_the_definition(directions, size)

    @pytest.mark.parametrize("step_scale", mark_slow([1e-3, 1e3], (1e3,)))
    def test_tiny_and_large_step_sizes_equal_the_definition(self, step_scale):
        super().test_tiny_and_large_step_sizes_equal_the_definition(step_scale)

    @pytest.mark.slow  # shard_map, over images too, is not
    def test_vmap_equals_one_call_per_image(self, monkeypatch, clear_caches):
        if interpreted():  # the interpreter does not know the additional axis of the grid
            monkeypatch.setattr(launch, "SEMANTICS", None)
        super().test_vmap_equals_one_call_per_image()

    @pytest.mark.skipif(interpreted(), reason="jax.checkpoint rejects the interpreter's callbacks")
    def test_checkpoint_keeps_the_gradients(self):
        super().test_checkpoint_keeps_the_gradients()

    def test_channels_in_several_parts_equal_the_definition(self, monkeypatch, clear_caches):
        def needed(tiling, dtype):
            return 0 if tiling.parts > 1 else 2**40

        monkeypatch.setattr(pallas_tpu.memory, "vmem_bytes", needed)
        self.check(ArgSpec(2, 3, d=140, n=3).arguments())

    def test_lines_longer_than_a_tile_equal_the_definition(self, monkeypatch, clear_caches):
        monkeypatch.setattr(tiling, "MAX_PIECES", 1)
        self.check(ArgSpec(2, 9, d=4, n=3, k=1).arguments(), ("row_reversed",))

    def test_wider_copies_equal_the_definition(self, monkeypatch, clear_caches):
        monkeypatch.setattr(pallas_tpu, "copied_columns", lambda: 16)  # as on a TPU7x
        self.check(ArgSpec(2, 17, d=4, n=3).arguments())

    def test_more_states_than_a_register_has_equal_the_definition(self):
        self.check(ArgSpec(2, 3, d=4, n=17).arguments())

    @pytest.mark.slow
    def test_several_groups_of_channels_and_registers_of_maps_equal_the_definition(self):
        spec = ArgSpec(2, 3, d=300, n=17, k=2, r=100)  # two groups of two blocks
        self.check(spec.arguments(), DIRECTIONS[:2])


@pytest.mark.tpu
@pytest.mark.usefixtures("tpu_interpreter", "small_tilings")
@pytest.mark.parametrize("directions", [DIRECTIONS, ("column_reversed",), DIRECTIONS[2:]])
def test_maps_from_a_projection_equal_those_of_plain_jax(directions):
    spec = ArgSpec(3, 9, d=13, t=2, n=3, r=2, k=len(directions))
    x, _, weight, bias, A, *_, D = spec.arguments()
    rng = np.random.default_rng(0)
    source = rng.standard_normal(x.shape, np.float32)
    projection = rng.standard_normal((*bias.shape, 8), np.float32)
    arrays = (x, source, projection, weight, bias, A, D)

    def run(implementation):
        op = functools.partial(selective_ss2d, directions=directions, implementation=implementation)
        return value_and_gradients(op, jnp.sin(x), *arrays)

    with jax.default_matmul_precision("highest"):
        found, wanted = run("pallas_tpu"), run("reference")
    for one, other in zip(found, wanted, strict=True):
        assert relative_error(one, other) < 1e-5


def decoder_tilings(monkeypatch, name, dtype, memory):
    monkeypatch.setattr(pallas_tpu, "vmem_capacity", lambda: memory)
    spec = DECODER[name]
    x = jax.ShapeDtypeStruct((1, 1, spec.h, spec.w, spec.d), dtype)
    return spec, pallas_tpu.choose_tilings(DIRECTIONS, x, spec.n, spec.r)


@pytest.mark.parametrize("name", ["stage1_t1_b1", "stage2_t1_b1", "stage3_t1_b1"])
def test_decoder_images_are_tiled_with_little_padding(monkeypatch, name):
    spec, (row, column) = decoder_tilings(monkeypatch, name, "bfloat16", 64 * 2**20)
    for found, length in ((row, spec.w), (column, spec.h)):
        assert (found.parts, found.lanes) == (1, spec.d)
        assert length <= found.pieces * found.piece_pixels < 1.15 * length


def test_channels_are_divided_into_parts_if_vmem_is_small(monkeypatch):
    spec, tilings = decoder_tilings(monkeypatch, "stage3_t1_b1", "float32", 16 * 2**20)
    for found in tilings:
        assert found.parts * found.lanes >= spec.d
        assert pallas_tpu.memory.vmem_bytes(found, "float32") < 16 * 2**20
    assert tilings[1].parts > 1
