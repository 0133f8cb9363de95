"""Artifacts predict like the model where only JAX is installed, and describe themselves."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from mtmamba_jax.data_pipelines.transforms import eval_transforms, normalise
from mtmamba_jax.export import model_card
from mtmamba_jax.export import program as export
from mtmamba_jax.kernels import ss2d
from mtmamba_jax.models.mtmamba import build
from mtmamba_jax.tasks.readout import VALUES, to_value
from tests.export.artifacts import SCORES, call_export, run_script, write_run
from tests.kernels.ss2d_suite import pretend_gpus
from tests.tiny import tiny_config

TOLERANCE = 1e-5  # for logits of order 1: two programs of one model round differently


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    config = tiny_config(tasks__names="('semseg', 'depth', 'edge', 'normals')")
    settings = config.model
    graph, parameters = build(settings, config.tasks.selected, config.seed)
    workdir = tmp_path_factory.mktemp("tiny") / "run"
    write_run(workdir, config, parameters)
    return workdir, config, graph, parameters


def test_an_artifact_agrees_with_the_model_in_a_process_that_has_only_jax(tiny_run, tmp_path):
    workdir, config, graph, parameters = tiny_run
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 64, 3), np.uint8)
    output = tmp_path / "artifact"
    assert call_export(workdir, output, "--batch=any") == 0
    ran = run_script(output, tmp_path, *images)
    assert ran.returncode == 0, ran.stderr

    tasks = config.tasks.selected
    (transform,) = eval_transforms((), (32, 64))[1:]
    examples = [transform({"image": image}, np.random.default_rng(0)) for image in images]
    # Programs normalise with JAX and the pipeline with a table. Their last bits differ, which this
    # random model amplifies twentyfold, beyond the tolerance below (jax 0.12).
    normalised = jax.jit(normalise)(images.astype(np.float32))
    for ours, example in zip(normalised, examples, strict=True):
        np.testing.assert_allclose(ours, example["image"], rtol=0, atol=1e-6)
    logits = jax.jit(lambda p, x: nnx.merge(graph, p)(x))(parameters, normalised)
    for task in tasks:
        expected = to_value(task, logits[task.name])
        found = np.load(tmp_path / f"{task.name}.npy")
        assert found.dtype == expected.dtype
        exact = np.asarray(logits[task.name])
        if task.quantity == "classes":  # may differ where two classes are almost equally likely
            best = np.sort(exact, axis=-1)
            clear = best[..., -1] - best[..., -2] > TOLERANCE
            assert clear.mean() > 0.99
            np.testing.assert_array_equal(found[clear], expected[clear])
        elif (
            task.quantity == "normals"
        ):  # the error of a unit vector is that of its logits over their length
            length = np.linalg.norm(exact, axis=-1, keepdims=True)
            assert (np.abs(found - expected) * np.minimum(length, 1) <= TOLERANCE).all()
        else:
            np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("platform", "scan", "kernel"),
    [
        ("cuda", "pallas_gpu", "mosaic_gpu_v2"),
        ("tpu", "pallas_tpu", "tpu_custom_call"),
        ("cuda", "xla", None),
        pytest.param("tpu", "xla", None, marks=pytest.mark.slow),
    ],
)
def test_a_program_for_an_absent_device_contains_its_scan_and_no_paths(
    tiny_run, platform, scan, kernel
):
    _, config, _, _ = tiny_run
    written = export.export_program(
        config, config.tasks.selected, platform=platform, size=(32, 64), batch=1, scan=scan
    ).serialize()
    program = jax.export.deserialize(written)
    assert program.platforms == (platform,)
    text = program.mlir_module()
    assert ("custom_call" in text) == (kernel is not None)
    assert kernel is None or f"@{kernel}" in text
    for module in (export, ss2d, jax):
        assert os.path.dirname(module.__file__).encode() not in written


# Reads and compiles an artifact like its script, for absent devices.
COMPILE = """
import importlib, json, pathlib, sys
import jax, jax.export
from mtmamba_jax.planning import topology
folder, devices = pathlib.Path(sys.argv[1]), topology.find(sys.argv[2])
for name in [name for name in sys.modules if name.startswith("mtmamba_jax")]:
    del sys.modules[name]  # to see what the program imports
for name in json.loads((folder / "model_card.json").read_text())["program"]["imports"]:
    importlib.import_module(name)
program = jax.export.deserialize(bytearray((folder / "program.jax_export").read_bytes()))
place = jax.sharding.SingleDeviceSharding(devices.devices[0])
like = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place) for a in program.in_avals]
arguments, _ = jax.tree.unflatten(program.in_tree, like)
options = dict(devices.compiler_options)
print(jax.jit(program.call, compiler_options=options).lower(*arguments).compile().as_text())
assert not any(name.startswith("mtmamba_jax") for name in sys.modules)
"""


@pytest.mark.parametrize(
    ("platform", "topology", "package", "kernel"),
    [
        pytest.param("tpu", "v5e:1x1", "libtpu", "ss2d_forward", marks=pytest.mark.tpu_compile),
        ("cuda", "h100:1", "jax_cuda13_plugin", "ss2d_forward"),
    ],
)
def test_a_fused_program_compiles_without_the_code_of_its_kernels(
    platform, topology, package, kernel, tiny_run, tmp_path
):
    pytest.importorskip(package, reason="the compiler for that device")
    output = tmp_path / "artifact"
    assert call_export(tiny_run[0], output, platform=platform) == 0
    ran = subprocess.run(
        [sys.executable, "-c", COMPILE, str(output), topology], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert kernel in ran.stdout


@pytest.mark.parametrize(
    ("platform", "flags", "message"),
    [
        ("cuda", ["--batch=any"], "the fused scan is compiled for one number of images"),
        ("cpu", ["--scan=fused"], "cpu has no fused scan"),
        ("cpu", ["--batch=0"], "a positive number of images or any, got '0'"),
        ("cpu", ["--batch=two"], "a positive number of images or any, got 'two'"),
        ("cpu", ["--size=0x32"], "--size wants HEIGHTxWIDTH"),
    ],
)
def test_a_wrong_flag_is_reported_before_anything_is_read(
    platform, flags, message, tmp_path, capsys
):
    assert call_export(tmp_path / "none", tmp_path / "out", *flags, platform=platform) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("capabilities", "scan"),
    [((), "pallas_gpu"), ((8.6,), "xla"), ((10.0,), "pallas_gpu"), ((9.0, 8.0), "xla")],
)
def test_an_artifact_for_cuda_has_a_scan_of_this_machines_gpus(monkeypatch, capabilities, scan):
    pretend_gpus(monkeypatch, *capabilities)
    assert export.choose_scan("cuda", None, 1) == scan
    assert ("cuda", scan) in model_card.NEEDS
    if scan == "xla":
        with pytest.raises(ValueError, match="--scan=fused: this machine's GPU has no fused scan"):
            export.choose_scan("cuda", "fused", 1)


def test_a_model_that_the_fused_scan_does_not_support_is_refused_with_the_alternative(
    tiny_run, tmp_path, capsys
):
    output = tmp_path / "artifact"
    assert call_export(tiny_run[0], output, "--size=65536x32", platform="tpu") == 1
    assert "MiB of VMEM. Add --scan=xla." in capsys.readouterr().err
    assert not output.exists()


def test_a_missing_run_and_a_missing_checkpoint_are_reported(pixel_run, tmp_path, capsys):
    assert call_export(tmp_path / "none", tmp_path / "out") == 2
    assert "none holds no run" in capsys.readouterr().err
    (pixel_run / "best").rename(tmp_path / "away")
    assert call_export(pixel_run, tmp_path / "out") == 2
    assert "has no best checkpoint yet" in capsys.readouterr().err


def test_an_output_that_is_not_an_artifact_is_not_changed(pixel_run, tmp_path, capsys):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("1")
    (tmp_path / "file").write_text("2")
    for name in ("thesis", "file"):
        assert call_export(pixel_run, tmp_path / name) == 2
        assert f"{name} exists and is not an artifact" in capsys.readouterr().err
    assert (tmp_path / "thesis" / "chapter").read_text() == "1"
    assert (tmp_path / "file").read_text() == "2"


def test_an_older_artifact_is_replaced_atomically(pixel_run, tmp_path, monkeypatch, capsys):
    output = tmp_path / "artifact"
    assert call_export(pixel_run, output) == 0
    (output / "note").write_text("old")
    before = (output / export.PROGRAM).read_bytes()

    def full(*args, **arrays):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        assert call_export(pixel_run, output, "--size=8x8") == 1
    assert "No space left" in capsys.readouterr().err
    assert (output / export.PROGRAM).read_bytes() == before
    assert call_export(pixel_run, output, "--size=8x8") == 0
    assert (output / export.PROGRAM).read_bytes() != before
    assert not (output / "note").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"run", "artifact"}


def test_a_card_describes_inputs_outputs_and_scores(pixel_run, tmp_path):
    output = tmp_path / "artifact"
    assert call_export(pixel_run, output, "--size=8x12", "--batch=any") == 0
    card = json.loads((output / export.CARD).read_text())
    assert card["input"] == {"shape": [None, 8, 12, 3], "dtype": "uint8", "meaning": "RGB"}
    semseg, depth = card["outputs"]["semseg"], card["outputs"]["depth"]
    assert semseg["shape"] == depth["shape"] == [None, 8, 12]
    assert (semseg["dtype"], semseg["meaning"]) == ("uint8", "class IDs")
    assert semseg["classes"][:2] == ["wall", "floor"]
    assert (depth["dtype"], depth["meaning"], depth["unit"]) == ("float32", "metres", "m")
    assert card["scores"] == SCORES
    assert card["source"]["dataset"] == "synthetic"
    assert card["source"]["step"] == 3
    assert card["source"]["config"]["data.test_examples"] == 5
    assert card["program"]["exported_with"]["jax"] == jax.__version__
    text = (output / export.CARD_TEXT).read_text()
    assert "| depth | float32 [b 8 12] | metres | RMSE 0.750 m (lower is better) |" in text
    assert "0 wall, 1 floor" in text
    assert "somebody" not in text + json.dumps(card), "the card contains the data folder"


def test_a_card_of_a_latest_checkpoint_has_no_scores(pixel_run, tmp_path):
    assert call_export(pixel_run, tmp_path / "artifact", "--checkpoint=latest") == 0
    assert "| not scored |" in (tmp_path / "artifact" / export.CARD_TEXT).read_text()


def test_every_kind_of_prediction_has_a_meaning():
    assert model_card.MEANINGS.keys() == VALUES.keys()
