"""The benchmark command: what it counts, prints and writes. Times are not asserted."""

import json

import pytest

from mtmamba_jax.benchmarks import devices, programs
from mtmamba_jax.benchmarks.programs import BOTH, FORWARD
from mtmamba_jax.cli import main as cli
from mtmamba_jax.devices import timing
from mtmamba_jax.devices.chips import CHIPS
from mtmamba_jax.kernels.ss2d.arg_specs import ArgSpec
from mtmamba_jax.tasks.table import TASK_SETS
from mtmamba_jax.training import state
from tests.data_pipelines.batch_contract import check_batch
from tests.pixel_model import build_pixel_model

MISTAKES = [
    (["--what=ss2d", "--spec=pixl"], "Unknown spec 'pixl'. Did you mean 'pixel'?"),
    (["--what=ss2d", "--implementation=xl"], "Did you mean 'xla'?"),
    (["--what=ss2d", "--dtype=float16"], "Unknown dtype 'float16'"),
    (["--what=ss2d", "--repeats=0"], "--repeats must be at least 1, got 0"),
    (["--what=ss2d", "--config=synthetic"], "--config does not go with --what=ss2d"),
    (["--what=ss2d", "--config.seed=1"], "--config.seed does not go with --what=ss2d"),
    (["--what=step", "--spec=pixel"], "--spec does not go with --what=step"),
    (["--what=step", "--repeats=0"], "--repeats must be at least 1, got 0"),
    (["--what=step", "--config.train.step=3"], "Did you mean 'train.steps'?"),
    (["--what=inference", "--config=synthetc"], "Did you mean 'synthetic'?"),
    (["--what=devices", "--repeats=0"], "--repeats must be at least 1, got 0"),
    (["--what=input", "--spec=pixel"], "--spec does not go with --what=input"),
    (["--what=input", "--config=nyudv3"], "Did you mean 'nyudv2'?"),
    (["--what=input", "--repeats=0"], "--repeats must be at least 1, got 0"),
    (["--what=input", "--config=custom"], "Config key"),
    (["--what=inference", "--output=missing/a.json"], "there is no folder missing"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=lambda v: str(v)[:40])
def test_a_mistake_prints_one_message_and_writes_nothing(
    arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["benchmark", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert not list(tmp_path.iterdir())


def test_ss2d_prints_a_row_and_writes_a_record_for_each_program(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["benchmark", "--what=ss2d", "--spec=pixel", "--repeats=2"]
    assert cli.main(arguments) == 0
    document = json.loads((tmp_path / "benchmark_ss2d.json").read_text())
    assert document["device"]["kind"] == "cpu"
    assert {"jax", "jaxlib", "python", "mtmamba_jax"} <= document["versions"].keys()
    records = document["records"]
    programs = [(r["spec"], r["implementation"], r["passes"]) for r in records]
    assert programs == [("pixel", "xla", FORWARD), ("pixel", "xla", BOTH)]
    for record in records:
        assert record["dtype"] == "bfloat16"
        assert record["median_seconds"] > 0
        assert len(record["sample_seconds"]) == 2
        assert record["memory_bytes"]["peak"] > 0
        assert record["exponential_fraction"] is None  # the rate of a CPU is unknown
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(records)
    assert len({len(line) for line in table}) == 1
    assert len({line.count("|") for line in table}) == 1


def test_a_program_that_cannot_run_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    def refuse(*arrays, directions):
        raise NotImplementedError("not on a Tuesday")

    monkeypatch.setitem(programs.IMPLEMENTATIONS, "refusing", refuse)
    output = tmp_path / "out.json"
    arguments = ["--what=ss2d", "--spec=pixel", "--implementation=refusing,xla", "--repeats=1"]
    assert cli.main(["benchmark", *arguments, f"--output={output}"]) == 1
    error = capsys.readouterr().err.splitlines()
    assert error[0] == "error: refusing: not on a Tuesday"
    records = json.loads(output.read_text())["records"]
    assert ["error" in record for record in records] == [True, False, True, False]


def test_the_limits_of_a_known_chip_are_used():
    spec = ArgSpec(28, 36, d=1536, b=8, r=48)
    count = 16 * 4 * 8 * 28 * 36 * 1536
    assert programs.count_exponentials(spec, FORWARD) == count
    assert programs.count_exponentials(spec, BOTH) == 2 * count
    chip = CHIPS["NVIDIA H200"]
    # 132 multiprocessors, 16 results per clock, 1.98 GHz: 0.19 ms, as docs/kernels.md has it.
    assert programs.fraction(count, chip.exponentials, 1e-3) == pytest.approx(0.1896, abs=1e-4)
    assert programs.fraction(4.8e9, chip.bytes, 2e-3) == pytest.approx(0.5)
    assert programs.fraction(4.8e9, None, 2e-3) is None


def test_each_array_is_moved_once_per_pass():
    spec = ArgSpec(2, 3, d=5, b=7, n=2)
    arrays = spec.arguments()
    inputs, y = sum(v.nbytes for v in arrays), arrays[0].nbytes
    assert programs.count_bytes(arrays, FORWARD) == inputs + y
    assert programs.count_bytes(arrays, BOTH) == (inputs + y) + (inputs + y + inputs)


@pytest.mark.parametrize("label_scale", [1, 2])
@pytest.mark.parametrize("task_set", ["nyudv2", "pascal_context", "cityscapes"])
def test_a_random_batch_fulfils_the_batch_contract(task_set, label_scale):
    tasks = TASK_SETS[task_set]
    batch = programs.random_batch(tasks, 3, (4, 6), label_scale)
    check_batch(batch, tasks, label_scale)
    for task in tasks:
        assert not (batch[task.name] == task.ignore).any()
        if task.class_names:
            assert batch[task.name].max() < task.channels


@pytest.mark.parametrize(("what", "part"), [("step", "train"), ("inference", "eval")])
def test_a_model_takes_config_keys_and_its_time_and_memory_are_recorded(
    what, part, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for module in (programs, state):
        monkeypatch.setattr(module, "build", build_pixel_model)
    keys = [f"--config.{part}.batch_size=6", "--config.data.size=(4,8)"]
    arguments = ["benchmark", f"--what={what}", "--repeats=3", "--config=synthetic:pascal", *keys]
    assert cli.main(arguments) == 0
    output = capsys.readouterr().out
    assert "4x8 images" in output
    assert "| images/s " in output
    document = json.loads((tmp_path / f"benchmark_{what}.json").read_text())
    assert document["settings"]["config"]["tasks.set"] == "pascal_context"
    (record,) = document["records"]
    assert record["batch_size"] == record["devices"] == 6
    assert record["images_per_second"] == pytest.approx(6 / record["median_seconds"])
    assert len(record["sample_seconds"]) == 3
    memory = record["memory_bytes"]
    assert memory["peak"] == (
        memory["arguments"] + memory["temporaries"] + memory["outputs"] - memory["aliased"]
    )
    assert (memory["aliased"] > 0) == (what == "step")  # the state is updated in place


TINY = ["--config.train.batch_size=2", "--config.data.size=(4,8)", "--config=synthetic:pascal"]


def test_devices_are_compared_at_an_equal_batch_size_per_device(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(devices.jax, "device_count", lambda: 2)
    monkeypatch.setattr(state, "build", build_pixel_model)
    monkeypatch.setattr(state, "abstract_build", build_pixel_model)
    assert cli.main(["benchmark", "--what=devices", "--repeats=2", *TINY]) == 0
    records = json.loads((tmp_path / "benchmark_devices.json").read_text())["records"]
    assert [(r["data"], r["fsdp"], r["batch_size"]) for r in records] == [
        (1, 1, 2),
        (2, 1, 4),
        (1, 2, 4),
    ]
    one, several, shared = (record["state_bytes"] for record in records)
    assert one == several > shared > one / 2
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 5
    assert len({len(line) for line in table}) == 1
    assert "100.0%" in table[2]


def test_a_single_device_is_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(devices.jax, "device_count", lambda: 1)
    assert cli.main(["benchmark", "--what=devices", *TINY]) == 2
    assert "there is only one." in capsys.readouterr().err


def test_short_calls_on_an_accelerator_are_timed_back_to_back(monkeypatch):
    calls = []
    monkeypatch.setattr(timing.jax, "default_backend", lambda: "gpu")
    found = timing.time_calls(lambda: calls.append(1), repeats=4)
    assert found.calls == timing.BACK_TO_BACK
    assert len(found.seconds) == 4
    assert len(calls) == timing.WARM_UPS + 4 * timing.BACK_TO_BACK
