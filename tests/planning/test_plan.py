"""The plan command: what it counts, its verdict, and what it tries when a program does not fit.

CPU devices of this machine, with a memory of their own, stand for an accelerator's.
"""

import importlib.util
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from mtmamba_jax import config as configuration
from mtmamba_jax.cli import main as cli
from mtmamba_jax.devices import sharding
from mtmamba_jax.devices.chips import CHIPS, GIB, Chip
from mtmamba_jax.planning import plan, topology
from mtmamba_jax.planning.collectives import count_collectives, count_loops
from mtmamba_jax.planning.topology import Topology
from mtmamba_jax.tasks import TASK_SETS
from tests.pixel_model import build_pixel_model

needs_libtpu = pytest.mark.skipif(
    not importlib.util.find_spec("libtpu"), reason="libtpu is not installed"
)

CHIP = Chip(hbm=1e9, flops=1e12, bytes=1e11)
BATCH = {"train.batch_size": "8", "eval.batch_size": "8", "data.size": "(32, 64)"}


def cpu_topology(count, memory):
    return Topology(f"test:{count}", jax.devices()[:count], CHIP, memory)


def pixel_config(**overrides):
    config = configuration.load("synthetic")
    values = {key.replace("__", "."): value for key, value in overrides.items()}
    configuration.override(config, BATCH | values)
    return config


@pytest.fixture
def pixel_model(monkeypatch):
    monkeypatch.setattr(plan, "abstract_build", build_pixel_model)


def records(what, config, memory, count=2):
    return list(plan.plan_records(what, config, cpu_topology(count, memory)))


def peak(**overrides):
    (record,) = records("step", pixel_config(**overrides), float("inf"))
    return record["memory_bytes"]["peak"]


# What a program has.


def test_collectives_of_a_compiled_program_are_counted_with_their_bytes():
    mesh = sharding.create_mesh(8)

    def exchange(x):  # [4 16] on each device
        total = jax.lax.psum(x, "data")
        everywhere = jax.lax.all_gather(x, "data").sum(0)
        part = jax.lax.psum_scatter(x, "data", scatter_dimension=1, tiled=True)
        turned = jax.lax.all_to_all(x, "data", split_axis=1, concat_axis=0, tiled=True)
        next_one = jax.lax.ppermute(x, "data", [(i, (i + 1) % 8) for i in range(8)])
        return total, everywhere + next_one, part, turned

    split = P("data")
    run = jax.shard_map(exchange, mesh=mesh, in_specs=split, out_specs=(P(), split, split, split))
    text = jax.jit(run).lower(jnp.ones((32, 16))).compile().as_text()
    found = count_collectives(text)
    whole = 4 * 16 * 4
    assert found["all-reduce"] == {"count": 1, "bytes": whole}
    assert found["all-gather"] == {"count": 1, "bytes": 8 * whole}
    assert found["reduce-scatter"] == {"count": 1, "bytes": whole // 8}
    assert found["all-to-all"] == {"count": 1, "bytes": whole}
    assert found["collective-permute"] == {"count": 1, "bytes": whole}


ASYNCHRONOUS = """
  %g = (bf16[2,8]{1,0:T(8,128)(2,1)}, bf16[16,8]{1,0}) all-gather-start(%a), dimensions={0}
  %g.1 = bf16[16,8]{1,0} all-gather-done(%g)
  %p = (f32[4]{0}, f32[4]{0:S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%b)
  %p.1 = f32[4]{0} collective-permute-done(%p)
  %r = (f32[4]{0}, /*index=1*/pred[3]{0}) all-reduce-start(%b, %c), to_apply=%add
  %r.1 = (f32[4]{0}, pred[3]{0}) all-reduce-done(%r)
  %w = (s32[]{:T(128)}, f32[4]{0}) while(%t), condition=%less, body=%more
  ROOT %f = f32[4]{0} fusion(%all-reduce.3), metadata={op_name="all-reduce(x)"}
"""


def test_asynchronous_collectives_count_once_with_their_results():
    assert count_collectives(ASYNCHRONOUS) == {
        "all-gather": {"count": 1, "bytes": 16 * 8 * 2},
        "collective-permute": {"count": 1, "bytes": 16},
        "all-reduce": {"count": 1, "bytes": 16 + 3},
    }
    assert count_loops(ASYNCHRONOUS) == 1


@pytest.mark.parametrize("label_scale", [1, 2])
@pytest.mark.parametrize("task_set", ["nyudv2", "pascal_context", "cityscapes"])
def test_abstract_batch_is_of_the_shapes_that_training_puts_on_devices(task_set, label_scale):
    tasks = TASK_SETS[task_set]
    batch = plan.random_batch(tasks, 4, (6, 8), label_scale)
    batch = sharding.put_batch(batch, sharding.create_mesh(4))
    found = plan.abstract_batch(tasks, 4, (6, 8), label_scale)
    assert {k: (v.shape, v.dtype) for k, v in found.items()} == {
        k: (v.shape, v.dtype) for k, v in batch.items()
    }


@pytest.mark.parametrize("what", plan.MODEL_PROGRAMS)
def test_record_is_of_one_device(what, pixel_model):
    (record,) = records(what, pixel_config(), 1e9)
    assert record["fits"]
    assert record["settings"] == {}
    memory = record["memory_bytes"]
    assert memory["peak"] == (
        sum(memory[part] for part in ("arguments", "temporaries", "outputs", "code"))
        - memory["aliased"]
    )
    images = 8 * 32 * 64 * 3 * 4
    assert images / 2 < memory["arguments"] < images * 2  # the labels are as many as the images
    assert record["flops_seconds"] == record["flops"] / CHIP.flops
    assert record["bytes_seconds"] == record["bytes"] / CHIP.bytes
    assert ("all-reduce" in record["collectives"]) == (what == "step")


def test_step_takes_labels_on_a_finer_grid(pixel_model):
    memory = [
        records("step", pixel_config(data__label_scale=scale), 1e9)[0]["memory_bytes"]["arguments"]
        for scale in ("1", "2")
    ]
    labels = 4 * 32 * 64 * 6 * 4  # of a device's 4 images: one channel of 3 tasks, 3 of normals
    assert abs(memory[1] - memory[0] - 3 * labels) < 1000


# The verdict, and what is tried.


def test_settings_are_tried_until_one_fits(pixel_model):
    one, two = peak(), peak(train__microbatches="2")
    assert two < one
    found = records("step", pixel_config(), (one + two) / 2)
    assert [record["settings"] for record in found] == [
        {},
        {"model.dtype": "bfloat16"},
        {"model.dtype": "bfloat16", "mesh.fsdp": 2},  # its weights are few: it takes more
        {"model.dtype": "bfloat16", "train.microbatches": 2},
    ]
    assert [record["fits"] for record in found] == [False, False, False, True]


def test_each_setting_keeps_those_before_it_and_batches_stay_whole(pixel_model):
    config = pixel_config(model__dtype="bfloat16", mesh__fsdp="2", train__microbatches="2")
    found = records("step", config, 1)
    assert [record["settings"] for record in found] == [
        {},
        {"model.remat": "dots"},
        {"model.remat": "full"},
        {"model.remat": "full", "train.microbatches": 4},  # 8 would leave no image to a device
    ]
    assert config.model.remat == "none"


def test_prediction_has_no_batch_to_split_nor_anything_to_keep(pixel_model):
    found = records("inference", pixel_config(), 1)
    assert [record["settings"] for record in found] == [
        {},
        {"model.dtype": "bfloat16"},
        {"model.dtype": "bfloat16", "mesh.fsdp": 2},
    ]


def test_loss_over_a_batch_is_not_split(pixel_model):
    config = pixel_config(model__dtype="bfloat16", mesh__fsdp="2", loss__reduction="batch")
    settings = [record["settings"] for record in records("step", config, 1)]
    assert settings == [{}, {"model.remat": "dots"}, {"model.remat": "full"}]


def test_shares_of_the_state_divide_the_devices(pixel_model):
    def tried(**overrides):
        config = pixel_config(model__dtype="bfloat16", **overrides)
        return [r["settings"].get("mesh.fsdp") for r in records("inference", config, 1, count=4)]

    assert tried() == [None, 4]
    assert tried(mesh__data="4") == [None]  # the user's


def test_mesh_that_leaves_devices_out_is_refused(pixel_model):
    with pytest.raises(
        ValueError, match=r"mesh\.data=1 and mesh\.fsdp=2 do not make the 4 devices"
    ):
        records("step", pixel_config(mesh__data="1", mesh__fsdp="2"), 1, count=4)


@needs_libtpu
@pytest.mark.parametrize("name", ["v5e:4x4", "v6e:4x4", "v5p:4x4x4"])
def test_a_state_can_be_shared_on_any_torus(name):
    # In a process of its own: the topology keeps JAX on the CPU.
    run = (
        "from mtmamba_jax import sharding; from mtmamba_jax.planning import topology;"
        f"devices = topology.find({name!r}).devices;"
        "print(*(sharding.create_mesh(len(devices), fsdp=n, devices=devices).devices.shape[1]"
        " for n in (2, 4, 16)))"
    )
    found = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True)
    assert found.stdout.split() == ["2", "4", "16"], found.stderr


def refuse(message):
    class Lowered:
        def compile(self, compiler_options):
            raise jax.errors.JaxRuntimeError(message)

    return lambda config, tasks, mesh: Lowered()


def test_compiler_that_runs_out_of_memory_is_quoted(monkeypatch):
    sentence = "Ran out of memory in memory space hbm. Used 34.00G of 15.75G hbm."
    monkeypatch.setattr(plan, "_lower_step", refuse(f"RESOURCE_EXHAUSTED: {sentence}\nmore"))
    first = records("step", pixel_config(), 1)[0]
    assert (first["fits"], first["refusal"]) == (False, sentence)


def test_other_errors_of_a_compiler_are_errors(monkeypatch):
    monkeypatch.setattr(plan, "_lower_step", refuse("INTERNAL: bug"))
    with pytest.raises(jax.errors.JaxRuntimeError, match="bug"):
        records("step", pixel_config(), 1)


# The command.


def command(monkeypatch, capsys, memory, *arguments, count=2):
    monkeypatch.setattr(topology, "find", lambda name: cpu_topology(count, memory))
    values = [f"--config.{key}={value}" for key, value in BATCH.items()]
    code = cli.main(["plan", "--topology=test:2", *values, *arguments])
    return code, capsys.readouterr()


def test_program_that_fits_ends_with_0(pixel_model, monkeypatch, capsys):
    code, captured = command(monkeypatch, capsys, GIB)
    assert code == 0
    table = [line for line in captured.out.splitlines() if line.startswith("|")]
    assert len({len(line) for line in table}) == 1
    for line in ("| devices ", "| peak, GiB ", "| - at 1 TFLOP/s, ms ", "| all-reduce, MB "):
        assert line in captured.out
    assert "\nFits: 0.0" in captured.out
    assert "Settings that take less" not in captured.out


def test_program_that_does_not_fit_ends_with_1_and_settings_that_do(
    pixel_model, monkeypatch, capsys
):
    memory = (peak() + peak(train__microbatches="2")) / 2
    code, captured = command(monkeypatch, capsys, memory)
    assert code == 1
    assert "\nDoes not fit: " in captured.out
    assert "--config.model.dtype=bfloat16: Does not fit" in captured.out
    assert captured.out.endswith(
        "Fits with --config.model.dtype=bfloat16 --config.train.microbatches=2\n"
    )


def test_program_that_fits_with_no_setting_says_what_is_left(pixel_model, monkeypatch, capsys):
    code, captured = command(monkeypatch, capsys, 1, "--what=inference")
    assert code == 1
    assert "Nothing found that fits. Take a smaller batch" in captured.out


def test_json_goes_to_the_standard_output_alone(pixel_model, monkeypatch, capsys):
    code, captured = command(monkeypatch, capsys, 1, "--json", "--config.model.remat=full")
    assert code == 1
    document = json.loads(captured.out)
    assert document["device"] == {
        "topology": "test:2", "kind": "cpu", "platform": "cpu", "count": 2
    }  # fmt: skip
    assert document["settings"]["config"]["model.remat"] == "full"
    assert not document["records"][0]["fits"]
    assert document["records"][-1]["settings"]["train.microbatches"] == 4


def test_batch_that_does_not_split_names_its_key_and_a_multiple(monkeypatch, capsys):
    code, captured = command(monkeypatch, capsys, 1, count=3)
    assert code == 2
    assert "train.batch_size=8 does not split over the 3 devices of test:3" in captured.err
    assert "a multiple of 3" in captured.err
    arguments = ["--config.train.microbatches=4"]
    code, captured = command(monkeypatch, capsys, 1, *arguments, count=4)
    assert code == 2
    assert "in train.microbatches=4" in captured.err
    assert "a multiple of 16" in captured.err


def test_evaluation_that_uses_fewer_devices_is_noted(pixel_model, monkeypatch, capsys):
    _, captured = command(monkeypatch, capsys, GIB, "--config.eval.batch_size=3")
    assert "only if they also divide eval.batch_size, which is 3" in captured.out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5x:2x2", "Unknown topology 'v5x'. Did you mean 'v5p'? Valid: v4, v5e"),
        ("v5e", "wanted v5e:SHAPE, a shape in chips that there is: 1x1, 2x2"),
        ("v5e:2x2x1", "wanted v5e:SHAPE"),
        ("v5p:2x2", "wanted v5p:SHAPE, a shape in chips that there is: 2x2x1"),
        ("v5e:0x2", "wanted v5e:SHAPE"),
        ("h100:2x2", "wanted h100:NUMBER"),
    ],
)
def test_wrong_topology_is_told_the_valid_ones(name, message, capsys):
    assert cli.main(["plan", f"--topology={name}"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "error", "extra"),
    [
        ("v5e:2x2", RuntimeError("JAX TPU support not installed"), "[tpu]"),
        ("h200:1", NotImplementedError("topology not implemented for cuda"), "[cuda]"),
    ],
)
def test_missing_compiler_names_what_to_install(name, error, extra, monkeypatch, capsys):
    def missing(*_, **__):
        raise error

    monkeypatch.setattr(topology, "stay_on_cpu", lambda: None)
    monkeypatch.setattr(topology.topologies, "get_topology_desc", missing)
    assert cli.main(["plan", f"--topology={name}"]) == 1
    assert f'pip install -e ".{extra}"' in capsys.readouterr().err


def test_topologies_are_of_known_chips():
    chips = [tpu.chip for tpu in topology.TPUS.values()] + list(topology.GPUS.values())
    assert set(chips) <= CHIPS.keys()


def test_jax_takes_three_quarters_of_a_gpu_unless_told(monkeypatch):
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)
    assert topology.gpu_memory_fraction() == 0.75
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", ".9")
    assert topology.gpu_memory_fraction() == pytest.approx(0.9)


def run_command(*arguments):
    """The command in a process of its own, which can have the small encoder of the tests."""
    run = "import sys, tests.tiny, mtmamba_jax.cli.main as cli; sys.exit(cli.main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", run, "plan", *arguments], capture_output=True, text=True
    )


@needs_libtpu
def test_real_command_plans_a_training_step_for_four_tpus():
    values = {
        "model.encoder": "swin_test",
        "model.state_size": 2,
        "data.size": "(32, 64)",
        "tasks.names": "('depth',)",
        "train.batch_size": 4,
    }
    keys = [f"--config.{key}={value}" for key, value in values.items()]
    found = run_command("--topology=v5e:2x2", "--json", *keys)
    assert found.returncode == 0, found.stderr
    document = json.loads(found.stdout)
    assert document["device"]["kind"] == "TPU v5 lite"
    assert document["device"]["count"] == 4
    (record,) = document["records"]
    assert record["fits"]
    assert record["available_bytes"] == 15.75 * GIB
    assert record["flops"] > 0
    memory = record["memory_bytes"]
    assert memory["aliased"] > 0.9 * memory["outputs"]  # the state is written over the old one
    # Gradients are added up over the devices. They are a third of the state (parameters and two
    # moments), which tiles of 8 x 128 numbers make larger in memory.
    gradients = memory["outputs"] / 3
    assert gradients / 4 < record["collectives"]["all-reduce"]["bytes"] < gradients


@pytest.mark.tpu_compile
@needs_libtpu
@pytest.mark.parametrize(
    ("shape", "batch_size"), [("v5e:2x2", 4), ("v5e:16x16", 256), ("v5p:2x2x2", 8)]
)
def test_the_papers_model_trains_with_one_image_a_chip(shape, batch_size):
    keys = ("train.batch_size", "eval.batch_size")
    found = run_command(
        *("--config=common", f"--topology={shape}", "--config.model.dtype=bfloat16"),
        *(f"--config.{key}={batch_size}" for key in keys),
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "\nFits: " in found.stdout


@needs_libtpu
def test_shape_that_no_tpu_has_is_told_the_valid_ones():
    found = run_command("--topology=v5e:3x3")
    assert found.returncode == 2
    assert "there is: 1x1, 2x2, 2x4" in found.stderr
