"""The TPU compiler accepts the kernels and schedules them as expected, with no TPU needed.

A sample runs with the suite; `python -m pytest -m tpu_compile` runs everything.
"""

import collections
import functools
import importlib.util
import itertools
import math
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from mtmamba_jax.devices.sharding import replicated
from mtmamba_jax.kernels.convolution import pallas_tpu
from mtmamba_jax.kernels.platform_check import compiled_for
from mtmamba_jax.kernels.ss2d import DIRECTIONS, ss2d
from mtmamba_jax.kernels.ss2d.analysis import memory
from mtmamba_jax.kernels.ss2d.analysis.compiled_scan import (
    create_parser,
    create_tpu_mesh,
    lower_scan,
    spec_names,
    with_gradients,
)
from mtmamba_jax.kernels.ss2d.api import ACTIVATIONS, SHAPES
from mtmamba_jax.kernels.ss2d.arg_specs import SPECS, ArgSpec
from mtmamba_jax.models import ops
from mtmamba_jax.models import ss2d as ss2d_module
from mtmamba_jax.models.blocks import MFE, MambaSettings
from mtmamba_jax.planning.collectives import count_collectives
from tests.kernels.ss2d_suite import over_tasks, recomputed

CHIPS = {"v4": "2x2x1", "v5e": "2x2", "v5p": "2x2x1", "v6e": "2x2", "tpu7x": "2x2x1"}

pytestmark = pytest.mark.skipif(
    not importlib.util.find_spec("libtpu"), reason="libtpu, the TPU compiler, is not installed"
)


@functools.cache
def mesh_of(chip: str, devices: int = 1):
    return create_tpu_mesh(f"{chip}:{CHIPS[chip]}", devices)


@pytest.fixture(autouse=True)
def no_cache():
    """Restores what `create_tpu_mesh` changes in JAX's configuration."""
    names = ("jax_compilation_cache_dir", "jax_platforms")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def lowered(chip, spec, dtype="bfloat16", op=ss2d, **options):
    op = functools.partial(op, directions=DIRECTIONS[: spec.k], **options)
    return lower_scan(mesh_of(chip), spec, jnp.dtype(dtype), op)


def compiled_text(chip, spec, dtype="bfloat16", op=ss2d):
    return lowered(chip, spec, dtype, op).compile().as_text()


@pytest.mark.parametrize(
    ("chip", "name", "dtype"),
    [
        ("v4", "stage3_t1_b1", "float32"),  # the case with the least spare VMEM
        ("v5p", "prime", "float32"),
        ("v6e", "column", "bfloat16"),
        ("tpu7x", "row", "bfloat16"),
        ("tpu7x", "stage1_t1_b1", "bfloat16"),  # 36 columns, which are not whole copies
    ],
)
def test_sample_of_shapes_compiles_to_the_kernels(chip, name, dtype):
    assert "ss2d_backward" in compiled_text(chip, SPECS[name], dtype)


@pytest.mark.tpu_compile
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("chip", CHIPS)
def test_every_named_shape_compiles(chip, dtype, name):
    assert "ss2d_backward" in compiled_text(chip, SPECS[name], dtype)


@pytest.mark.parametrize(
    "spec",
    [
        ArgSpec(1, 5000, d=24, k=1, n=64, r=3),  # a sequence: one line, cut into several tiles
        ArgSpec(6, 7, d=640, n=16, r=40, b=2),  # five blocks of channels
    ],
)
def test_other_sizes_compile(spec):
    assert "ss2d_backward" in compiled_text("v5e", spec)


@pytest.mark.parametrize("op", [over_tasks, recomputed])
def test_transformations_compile(op):
    assert "ss2d_backward" in compiled_text("v5e", ArgSpec(5, 20, d=8, t=2), op=op)


def test_a_sharded_batch_compiles_without_gathering():
    mesh = mesh_of("v5e", 2)
    whole, split = replicated(mesh), NamedSharding(mesh, PartitionSpec(None, "data"))
    shardings = [split if name in ACTIVATIONS else whole for name in SHAPES]

    run = with_gradients(functools.partial(ss2d, batch_axes=("data",)))
    arrays = ArgSpec(5, 20, d=8, b=4).shapes(jnp.float32)
    jitted = jax.jit(run, in_shardings=(split, *shardings), out_shardings=(split, tuple(shardings)))
    with jax.set_mesh(mesh):
        text = jitted.lower(arrays[0], *arrays).compile().as_text()
    assert "ss2d_backward" in text
    assert set(count_collectives(text)) == {"all-reduce"}  # for the parameters' gradients


def normalize(x, scale, bias, gate):
    factors = (v[:, None, None, None] for v in (scale, bias))
    return ops.layer_norm(x, *factors, gate, batch_axis=1, dtype=x.dtype)


# Shapes of the arguments of an operation on three maps of some shape.
LAYERS = {
    "convolution": (ops.convolve_silu, lambda x: (x, (3, 3, 3, x[-1]), (3, x[-1]))),
    "layer_norm": (normalize, lambda x: (x, (3, x[-1]), (3, x[-1]), x)),
    "blend": (ops.blend, lambda x: (x, (3, x[-1]), (3, x[-1]), (2, *x[1:]))),
}
SAMPLE = [("v5e", "bfloat16", (5, 7, 128)), ("tpu7x", "float32", (5, 7, 128))]
# Widths that are not whole registers, few channels and many.
SIZES = [(112, 144, 384), (14, 18, 1536), (9, 200, 256)]


def mark_layers():
    every = itertools.product(CHIPS, ("bfloat16", "float32"), SIZES)
    return [*SAMPLE, *(pytest.param(*v, marks=pytest.mark.tpu_compile) for v in every)]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("chip", "dtype", "size"), mark_layers())
def test_the_kernels_of_layers_compile(chip, dtype, size, layer):
    op, shapes = LAYERS[layer]
    mesh = mesh_of(chip)
    arrays = [
        jax.ShapeDtypeStruct(
            shape, dtype if len(shape) == 5 else jnp.float32, sharding=replicated(mesh)
        )
        for shape in shapes((3, 1, *size))
    ]

    def run(*arrays):
        y, pull = jax.vjp(op, *arrays)
        return y, pull(jnp.sin(y))

    with jax.set_mesh(mesh), compiled_for("tpu"):
        lowered = jax.jit(run).lower(*arrays)
        # A TPU v4 has no VMEM for large images of the convolution.
        refused = layer == "convolution" and not pallas_tpu.supports(arrays[0])
        assert lowered.as_text().count("@tpu_custom_call") == (0 if refused else 2)
        lowered.compile()
    assert not refused or chip == "v4"


def test_an_unknown_topology_is_rejected_with_examples_of_valid_ones():
    with pytest.raises(ValueError, match=r"--topology=v9:2x2: libtpu does not know .* as v5e:2x2"):
        create_tpu_mesh("v9:2x2")


def test_an_unknown_spec_is_rejected_with_a_suggestion():
    options = create_parser(None, SPECS).parse_args(["--spec=stage1_t1_b1,stage9_t1_b1"])
    with pytest.raises(ValueError, match=r"Unknown spec 'stage9_t1_b1'. Did you mean 'stage"):
        spec_names(options)


def test_columns_too_long_for_vmem_use_xla():
    spec = ArgSpec(30_000, 2, d=8, n=4)
    assert "ss2d_forward" not in lowered("v5e", spec).as_text()
    assert "ss2d_forward" in lowered("v5e", ArgSpec(5, 2, d=8, n=4)).as_text()
    with pytest.raises(NotImplementedError, match="columns of 30000 pixels"):
        lowered("v5e", spec, implementation="pallas_tpu")


@pytest.mark.parametrize(
    "spec",
    [
        ArgSpec(24, 32, d=256, r=4),
        *(pytest.param(SPECS[name], id=name, marks=pytest.mark.tpu_compile) for name in SPECS),
    ],
)
def test_memory_is_a_fifth_of_a_whole_image_scan_and_no_more_than_chunked_xla(spec):
    kernels, chunked, whole = (
        memory.measure_temporaries(mesh_of("v5e"), spec, method)[0] for method in memory.METHODS
    )
    assert kernels <= chunked
    assert kernels <= whole / 5


@pytest.mark.tpu_compile
@pytest.mark.parametrize("chip", ["v5e", "v5p", "v6e"])
def test_inner_loops_are_short_and_do_not_spill(chip):
    table = subprocess.run(
        [
            *(sys.executable, "-m", "mtmamba_jax.kernels.ss2d.analysis.schedule"),
            f"--topology={chip}:{CHIPS[chip]}",
            "--spec=stage1_t1_b1,stage2_t1_b1,stage3_t1_b1",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    rows = re.findall(r"\| stage\S+ \| (\S+), (\d+) \| \S+, \d+ \| (\S+) \|", table)
    assert len(rows) == 3
    for forward, spills, ratio in rows:
        assert float(forward) <= 6
        assert int(spills) == 0
        assert float(ratio) <= 3


def copies(text: str, size: int) -> collections.Counter:
    """Counts copies and transposes that write `size` elements or more to HBM, by shape."""
    pattern = re.compile(r" = \w+\[([\d,]+)\](\S*) (?:copy|transpose)\(")
    found = collections.Counter()
    for shape, layout in pattern.findall(text[text.index("\nENTRY") :]):
        if math.prod(map(int, shape.split(","))) >= size and "S(1)" not in layout:
            found[shape] += 1
    return found


def extractor():
    """Returns the compiled value and gradients of a feature extractor at the last stage."""
    mesh = mesh_of("v5e")
    settings = MambaSettings(dtype=jnp.bfloat16)
    model = nnx.eval_shape(lambda: MFE(1, 192, settings, rngs=nnx.Rngs(0)))
    graph, parameters = nnx.split(model)
    z = jax.ShapeDtypeStruct((1, 1, 112, 144, 384), jnp.bfloat16)

    def run(parameters, z, dy):
        y, pull = jax.vjp(lambda parameters, z: nnx.merge(graph, parameters)(z), parameters, z)
        return y, pull(dy)

    with jax.set_mesh(mesh):
        jitted = jax.jit(run, in_shardings=replicated(mesh))
        return jitted.lower(parameters, z, z).compile().as_text()


def pointwise(x, source, projection, *_, **__):
    """Reads the same maps as the scan, but needs no copies."""
    maps = jnp.einsum("tbhwd,tkde->tbhwke", source, projection)
    return (x * maps.astype(jnp.float32).sum((-1, -2))[..., None]).astype(x.dtype)


def test_no_feature_map_is_copied_before_or_after_the_kernels(monkeypatch):
    scanned = copies(extractor(), 112 * 144 * 384)
    monkeypatch.setattr(ss2d_module, "selective_ss2d", pointwise)
    assert scanned == copies(extractor(), 112 * 144 * 384)
