"""The plan command: its numbers, its verdict, and its suggestions if a program does not fit.

CPU devices with an assumed memory size stand in for an accelerator.
"""

import importlib.util
import json
import subprocess
import sys

import jax
import pytest

from mtmamba_jax import config as configuration
from mtmamba_jax.cli import main as cli
from mtmamba_jax.cli import plan as plan_command
from mtmamba_jax.devices import sharding
from mtmamba_jax.devices.chips import GIB, Chip
from mtmamba_jax.planning import plan, topology
from mtmamba_jax.planning.topology import Topology
from mtmamba_jax.tasks.table import TASK_SETS
from tests.pixel_model import build_pixel_model

needs_libtpu = pytest.mark.skipif(
    not importlib.util.find_spec("libtpu"), reason="libtpu is not installed"
)

CHIP = Chip(hbm=1e9, flops=1e12, bytes=1e11)
BATCH = {"train.batch_size": "8", "eval.batch_size": "8", "data.size": "(32, 64)"}


def cpu_topology(count, memory):
    return Topology(f"test:{count}", jax.devices()[:count], CHIP, memory)


def pixel_config(**overrides):
    values = {key.replace("__", "."): value for key, value in overrides.items()}
    return configuration.load("synthetic", BATCH | values)


@pytest.fixture
def pixel_model(monkeypatch):
    monkeypatch.setattr(plan, "abstract_build", build_pixel_model)


def records(what, config, memory, count=2):
    return list(plan.plan_records(what, config, cpu_topology(count, memory)))


def peak(**overrides):
    (record,) = records("step", pixel_config(**overrides), float("inf"))
    return record["memory_bytes"]["peak"]


@pytest.mark.parametrize("label_scale", [1, 2])
@pytest.mark.parametrize("task_set", ["nyudv2", "pascal_context", "cityscapes"])
def test_an_abstract_batch_has_the_shapes_that_training_puts_on_devices(task_set, label_scale):
    tasks = TASK_SETS[task_set]
    batch = plan.random_batch(tasks, 4, (6, 8), label_scale)
    batch = sharding.put_batch(batch, sharding.create_mesh(4))
    found = plan.abstract_batch(tasks, 4, (6, 8), label_scale)
    assert {k: (v.shape, v.dtype) for k, v in found.items()} == {
        k: (v.shape, v.dtype) for k, v in batch.items()
    }


@pytest.mark.parametrize("what", plan.MODEL_PROGRAMS)
def test_a_record_describes_one_device(what, pixel_model):
    (record,) = records(what, pixel_config(), 1e9)
    assert record["fits"]
    assert record["settings"] == {}
    memory = record["memory_bytes"]
    assert memory["peak"] == (
        sum(memory[part] for part in ("arguments", "temporaries", "outputs", "code"))
        - memory["aliased"]
    )
    images = 8 * 32 * 64 * 3 * 4
    assert images / 2 < memory["arguments"] < images * 2  # the labels are as large as the images
    assert record["flops_seconds"] == record["flops"] / CHIP.flops
    assert record["bytes_seconds"] == record["bytes"] / CHIP.bytes
    assert ("all-reduce" in record["collectives"]) == (what == "step")


def test_a_step_takes_labels_on_a_finer_grid(pixel_model):
    memory = [
        records("step", pixel_config(data__label_scale=scale), 1e9)[0]["memory_bytes"]["arguments"]
        for scale in ("1", "2")
    ]
    labels = 4 * 32 * 64 * 6 * 4  # of a device's 4 images: one channel of 3 tasks, 3 of normals
    assert abs(memory[1] - memory[0] - 3 * labels) < 1000


# The verdict, and the settings that are tried.


def test_settings_are_tried_until_the_program_fits(pixel_model, monkeypatch):
    sizes = iter([4, 3, 5, 2])  # fsdp needs more memory: a program may have few weights

    def numbers(program, topology, estimated):
        size = next(sizes)
        return {"memory_bytes": {"peak": size}, "fits": size <= topology.memory}

    monkeypatch.setattr(plan, "_numbers", numbers)
    found = records("step", pixel_config(), 2.5)
    assert [record["settings"] for record in found] == [
        {},
        {"model.dtype": "bfloat16"},
        {"model.dtype": "bfloat16", "mesh.fsdp": 2},
        {"model.dtype": "bfloat16", "train.microbatches": 2},
    ]
    assert [record["fits"] for record in found] == [False, False, False, True]


def test_each_setting_keeps_the_previous_ones_and_images_are_not_split(pixel_model):
    config = pixel_config(model__dtype="bfloat16", mesh__fsdp="2", train__microbatches="2")
    found = records("step", config, 1)
    assert [record["settings"] for record in found] == [
        {},
        {"model.remat": "dots"},
        {"model.remat": "full"},
        {"model.remat": "full", "train.microbatches": 4},  # with 8 a device would have no image
    ]
    assert config.model.remat == "none"


def test_microbatches_and_remat_are_not_tried_for_prediction(pixel_model):
    found = records("inference", pixel_config(), 1)
    assert [record["settings"] for record in found] == [
        {},
        {"model.dtype": "bfloat16"},
        {"model.dtype": "bfloat16", "mesh.fsdp": 2},
    ]


def test_microbatches_are_not_tried_for_a_loss_over_the_batch(pixel_model):
    config = pixel_config(model__dtype="bfloat16", mesh__fsdp="2", loss__reduction="batch")
    settings = [record["settings"] for record in records("step", config, 1)]
    assert settings == [{}, {"model.remat": "dots"}, {"model.remat": "full"}]


def test_fsdp_divides_the_devices_and_respects_the_mesh_of_the_user(pixel_model):
    def tried(**overrides):
        config = pixel_config(model__dtype="bfloat16", **overrides)
        return [r["settings"].get("mesh.fsdp") for r in records("inference", config, 1, count=4)]

    assert tried() == [None, 4]
    assert tried(mesh__data="4") == [None]


def test_a_mesh_that_does_not_use_every_device_is_refused(pixel_model):
    with pytest.raises(
        ValueError, match=r"mesh\.data=1 and mesh\.fsdp=2 do not match the 4 devices"
    ):
        records("step", pixel_config(mesh__data="1", mesh__fsdp="2"), 1, count=4)


def refuse(message):
    class Lowered:
        def compile(self, compiler_options):
            raise jax.errors.JaxRuntimeError(message)

    return lambda config, tasks, mesh: Lowered()


def test_an_out_of_memory_error_of_the_compiler_is_quoted(monkeypatch):
    sentence = "Ran out of memory in memory space hbm. Used 34.00G of 15.75G hbm."
    monkeypatch.setattr(plan, "_lower_step", refuse(f"RESOURCE_EXHAUSTED: {sentence}\nmore"))
    first = records("step", pixel_config(), 1)[0]
    assert (first["fits"], first["refusal"]) == (False, sentence)


def test_other_errors_of_the_compiler_are_raised(monkeypatch):
    monkeypatch.setattr(plan, "_lower_step", refuse("INTERNAL: bug"))
    with pytest.raises(jax.errors.JaxRuntimeError, match="bug"):
        records("step", pixel_config(), 1)


# The command.


def command(monkeypatch, capsys, memory, *arguments, count=2):
    monkeypatch.setattr(topology, "find", lambda name: cpu_topology(count, memory))
    values = [f"--config.{key}={value}" for key, value in BATCH.items()]
    code = cli.main(["plan", "--topology=test:2", *values, *arguments])
    return code, capsys.readouterr()


def test_the_command_exits_with_0_if_the_program_fits(pixel_model, monkeypatch, capsys):
    code, captured = command(monkeypatch, capsys, GIB)
    assert code == 0
    table = [line for line in captured.out.splitlines() if line.startswith("|")]
    assert len({len(line) for line in table}) == 1
    for line in ("| devices ", "| peak, GiB ", "| - at 1 TFLOP/s, ms ", "| all-reduce, MB "):
        assert line in captured.out
    assert "\nFits: 0.0" in captured.out
    assert "Settings that may use less memory" not in captured.out


def test_the_command_exits_with_1_and_suggests_settings_if_the_program_does_not_fit(
    pixel_model, monkeypatch, capsys
):
    one, two = peak(), peak(train__microbatches="2")
    assert two < one
    mesh = "--config.mesh.data=2"  # fsdp is not tried
    code, captured = command(monkeypatch, capsys, (one + two) / 2, mesh)
    assert code == 1
    assert "\nDoes not fit: " in captured.out
    assert "--config.model.dtype=bfloat16: Does not fit" in captured.out
    assert captured.out.endswith(
        "Fits with --config.model.dtype=bfloat16 --config.train.microbatches=2\n"
    )


def test_the_command_suggests_smaller_inputs_if_no_setting_fits(pixel_model, monkeypatch, capsys):
    code, captured = command(monkeypatch, capsys, 1, "--what=inference")
    assert code == 1
    assert "Nothing found that fits. Use a smaller batch" in captured.out


@pytest.mark.parametrize(("flags", "level"), [(["--quick"], "O1"), ([], None)])
def test_quick_optimizes_less_during_the_command(monkeypatch, capsys, flags, level):
    before, found = jax.config.jax_optimization_level, []

    def report(*_, **__):
        found.append(jax.config.jax_optimization_level)
        return True

    monkeypatch.setattr(plan_command, "report_plan", report)
    code, _ = command(monkeypatch, capsys, GIB, *flags)
    assert code == 0
    assert found == [level or before]
    assert jax.config.jax_optimization_level == before


def test_nothing_but_json_is_printed_with_json(pixel_model, monkeypatch, capsys):
    code, captured = command(monkeypatch, capsys, 1, "--json", "--config.model.remat=full")
    assert code == 1
    document = json.loads(captured.out)
    assert document["device"] == {
        "topology": "test:2", "kind": "cpu", "platform": "cpu", "count": 2
    }  # fmt: skip
    assert document["settings"]["config"]["model.remat"] == "full"
    assert not document["records"][0]["fits"]
    assert document["records"][-1]["settings"]["train.microbatches"] == 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--profile"], "have no estimates for test:2. Use a v4, v5e or v5p"),
        (["--trace=missing/file.json"], "there is no folder missing"),
        (["--trace=file.json", "--json"], "--trace does not go with --json"),
    ],
)
def test_estimates_that_cannot_be_made_are_refused_at_once(
    pixel_model, monkeypatch, capsys, tmp_path, flags, message
):
    monkeypatch.chdir(tmp_path)
    code, captured = command(monkeypatch, capsys, GIB, *flags)
    assert code == 2
    assert message in captured.err


@needs_libtpu
def test_the_command_estimates_the_time_on_tpus(pixel_model, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(topology, "stay_on_cpu", lambda: None)
    keys = [f"--config.{key}={value}" for key, value in BATCH.items()]
    trace = tmp_path / "trace.json"
    assert cli.main(["plan", "--topology=v5e:2x2", "--profile", f"--trace={trace}", *keys]) == 0
    assert "Estimated time on one device" in capsys.readouterr().out
    events = json.loads(trace.read_text())["traceEvents"]
    assert sum(event["dur"] for event in events) > 0


def test_a_batch_that_does_not_split_is_refused_with_its_key_and_a_multiple(monkeypatch, capsys):
    code, captured = command(monkeypatch, capsys, 1, count=3)
    assert code == 2
    assert "train.batch_size=8 does not split over the 3 devices of test:3" in captured.err
    assert "a multiple of 3" in captured.err
    arguments = ["--config.train.microbatches=4"]
    code, captured = command(monkeypatch, capsys, 1, *arguments, count=4)
    assert code == 2
    assert "in train.microbatches=4" in captured.err
    assert "a multiple of 16" in captured.err


def test_an_evaluation_that_uses_fewer_devices_is_noted(pixel_model, monkeypatch, capsys):
    _, captured = command(monkeypatch, capsys, GIB, "--config.eval.batch_size=3")
    assert "only if eval.batch_size, which is 3, is also a multiple of 2" in captured.out


def run_command(*arguments):
    """Runs the command in its own process, with the small encoder of the tests."""
    run = "import sys, tests.tiny, mtmamba_jax.cli.main as cli; sys.exit(cli.main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", run, "plan", *arguments], capture_output=True, text=True
    )


def assert_plan_for_four_tpus(text):
    """Checks the JSON of a plan and returns the memory and the collectives of its only record."""
    document = json.loads(text)
    assert document["device"]["kind"] == "TPU v5 lite"
    assert document["device"]["count"] == 4
    (record,) = document["records"]
    assert record["fits"]
    assert record["available_bytes"] == 15.75 * GIB
    assert record["flops"] > 0
    return record["memory_bytes"], record["collectives"]


@needs_libtpu
def test_the_command_compiles_for_four_tpus(pixel_model, monkeypatch, capsys):
    monkeypatch.setattr(topology, "stay_on_cpu", lambda: None)
    keys = [f"--config.{key}={value}" for key, value in BATCH.items()]
    assert cli.main(["plan", "--topology=v5e:2x2", "--json", *keys]) == 0
    memory, collectives = assert_plan_for_four_tpus(capsys.readouterr().out)
    assert memory["aliased"] > 0  # the state is updated in place
    assert collectives["all-reduce"]["bytes"] > 0


@pytest.mark.slow
@needs_libtpu
def test_the_command_plans_a_training_step_for_four_tpus():
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
    memory, collectives = assert_plan_for_four_tpus(found.stdout)
    assert memory["aliased"] > 0.9 * memory["outputs"]  # the state is updated in place
    # Gradients are summed over the devices. They are a third of the state (parameters and two
    # moments), which is padded to tiles of 8 x 128 numbers in memory.
    gradients = memory["outputs"] / 3
    assert gradients / 4 < collectives["all-reduce"]["bytes"] < gradients


@pytest.mark.tpu_compile
@needs_libtpu
@pytest.mark.parametrize(
    ("shape", "batch_size"), [("v5e:2x2", 4), ("v5e:16x16", 256), ("v5p:2x2x2", 8)]
)
def test_the_model_of_the_paper_trains_with_one_image_per_chip(shape, batch_size):
    keys = ("train.batch_size", "eval.batch_size")
    found = run_command(
        *("--config=common", f"--topology={shape}", "--config.model.dtype=bfloat16"),
        *(f"--config.{key}={batch_size}" for key in keys),
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "\nFits: " in found.stdout
