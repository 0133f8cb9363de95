"""PyTorch weight files are converted to runs, used as initial weights, and exported again."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mtmamba_jax import config as configuration
from mtmamba_jax import convert
from mtmamba_jax.checkpoints.load import load_run
from mtmamba_jax.checkpoints.warm_start import warm_start
from mtmamba_jax.cli.main import main
from mtmamba_jax.convert.weight_files import read_weights, write_safetensors
from mtmamba_jax.export import model_card
from mtmamba_jax.models.mtmamba import abstract_build, abstract_model
from mtmamba_jax.models.swin import SWIN_SIZES, SwinSize
from mtmamba_jax.tasks.table import OFFICIAL_NAMES
from mtmamba_jax.training.train import train
from tests.convert.state_dicts import FAMILIES, TINY, assert_same_bits, swin_state_dict
from tests.models.golden import group, load, run
from tests.tiny import tiny_config

GOLDEN = SwinSize(4, (2, 2, 2, 2), (1, 1, 2, 2), 4)
OFFICIAL = {"nyudv2": "mtmamba_nyudv2", "pascal_context:plus": "mtmamba_plus_pascal"}


SLOW_PLUS = ["nyudv2", pytest.param("pascal_context:plus", marks=pytest.mark.slow)]


@pytest.fixture(autouse=True)
def golden_size(monkeypatch):
    monkeypatch.setitem(SWIN_SIZES, "swin_golden", GOLDEN)
    monkeypatch.setitem(SWIN_SIZES, "swin_random", TINY)


@functools.cache
def official_state_dict(name):
    """Returns the state dict of an official model and the golden arrays."""
    arrays = load(OFFICIAL[name])
    config = configuration.load(name, {"model.encoder": "swin_golden"})
    model = abstract_model(config.model, config.tasks.selected)
    nnx.update(model, convert.from_torch(group(arrays, "param"), model))
    return convert.to_torch(model), arrays


def write(folder, name):
    """Writes the file of an official model; returns its path and the golden arrays."""
    state_dict, arrays = official_state_dict(name)
    path = folder / "official.safetensors"
    write_safetensors(path, state_dict, {})
    return path, arrays


def random_model(config):
    """Returns the graph and weights of a configuration's model: random, but scales 1 and biases 0.

    The model's own initializers take seconds to compile.
    """
    graph, shapes = abstract_build(config.model, config.tasks.selected)
    random = np.random.default_rng(0)

    def initialize(path, x):
        constant = {"scale": 1.0, "bias": 0.0}.get(path[-1].key)
        numbers = random.normal(size=x.shape) if constant is None else np.full(x.shape, constant)
        return jnp.asarray(numbers, x.dtype)

    return graph, jax.tree_util.tree_map_with_path(initialize, shapes)


@pytest.mark.parametrize("name", SLOW_PLUS)
def test_an_official_file_becomes_a_run_that_predicts_the_official_numbers(name, tmp_path, capsys):
    path, arrays = write(tmp_path, name)
    workdir = tmp_path / "run"
    assert main(["convert", f"--from={path}", f"--to={workdir}"]) == 0
    output = capsys.readouterr().out
    assert "swin_golden (width 4, depths 2,2,2,2, heads 1,1,2,2, window 4)" in output
    assert f"predict --workdir={workdir}" in output
    found = load_run(workdir, "best")
    assert configuration.differences(found.config, configuration.load(name)) == [
        "model.encoder: swin_golden -> swin_large"
    ]
    logits = run(nnx.merge(found.graph, found.parameters), arrays["input"].transpose(0, 2, 3, 1))
    for task in found.tasks:
        wanted = arrays[f"output/{OFFICIAL_NAMES.get(task.name, task.name)}"]
        wanted = wanted.transpose(0, 2, 3, 1)
        bound = 1e-4 * np.abs(wanted).max()  # as in test_goldens.py
        np.testing.assert_allclose(logits[task.name], wanted, rtol=0, atol=bound)


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_run_is_exported_to_the_official_code_bit_for_bit(name, tmp_path, capsys):
    path, _ = write(tmp_path, name)
    files = [path, tmp_path / "converted.safetensors", tmp_path / "exported.safetensors"]
    assert main(["convert", f"--from={path}", f"--to={files[1]}"]) == 0
    assert main(["convert", f"--from={path}", f"--to={tmp_path / 'run'}"]) == 0
    export = ["export", "--format=torch", f"--workdir={tmp_path / 'run'}", f"--output={files[2]}"]
    assert main(export) == 0
    prints = {line for line in capsys.readouterr().out.splitlines() if "SHA-256" in line}
    assert len(prints) == 1, "the same weights have the same hash"
    wanted, *others = (read_weights(file) for file in files)
    for found in others:
        assert_same_bits(found, wanted)


FAST = ("timm", "huggingface")  # tests/convert/test_swin.py reads files of the other families


@pytest.mark.parametrize(
    "family",
    [f if f in FAST else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES],
)
def test_a_run_starts_from_an_encoder_of_each_family(family, tmp_path, capsys):
    tensors = swin_state_dict(family, classifier=family in ("microsoft", "timm"))
    path = tmp_path / "encoder.safetensors"
    write_safetensors(path, tensors, {})
    config = tiny_config(model__encoder="swin_random", init__encoder=str(path))
    graph, own = random_model(config)
    found = warm_start(config.init, graph, own)
    encoder = nnx.merge(graph, own).encoder
    nnx.update(encoder, convert.encoder_from_torch(tensors, encoder))
    wanted = own | {"encoder": nnx.to_pure_dict(nnx.state(encoder, nnx.Param))}
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    kernels = [tree["encoder"]["stages"][0][0]["mlp_in"]["kernel"] for tree in (found, own)]
    assert not np.array_equal(*kernels)

    for to in (tmp_path / "run", tmp_path / "again.safetensors"):
        assert main(["convert", f"--from={path}", f"--to={to}"]) == 0
        encoder = "--config.model.encoder=swin_random"
        assert f"train {encoder} --config.init.encoder={to}" in capsys.readouterr().out
        init = config.replace(init={"encoder": str(to)}).init
        jax.tree.map(np.testing.assert_array_equal, warm_start(init, graph, own), wanted)
    assert main(["eval", f"--workdir={tmp_path / 'run'}"]) == 2
    assert "--config.init.encoder=" in capsys.readouterr().err


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_sizes_of_blocks_are_found_from_shapes(name, tmp_path, capsys):
    keys = {"model.encoder": "swin_golden", "model.expansion": "1", "model.state_size": "3"}
    config = configuration.load(name, keys)
    path = tmp_path / "small.safetensors"
    write_safetensors(path, convert.to_torch(nnx.merge(*random_model(config))), {})
    assert main(["convert", f"--from={path}", f"--to={tmp_path / 'again.safetensors'}"]) == 0
    output = capsys.readouterr().out
    assert "expansion 1, state size 3" in output
    arguments = [f"--config={name}", *(f"--config.{key}={text}" for key, text in keys.items())]
    assert f"train {' '.join(arguments)} --config.init.run=" in output
    wider = config.replace(model={"expansion": 2})
    model = abstract_model(wider.model, wider.tasks.selected)
    with pytest.raises(ValueError, match=r"expansion 1, .*the model is .*expansion 2, state size"):
        convert.from_torch(read_weights(path), model)


def test_a_whole_model_below_a_prefix_is_not_mistaken_for_an_encoder(tmp_path, capsys):
    path, _ = write(tmp_path, "nyudv2")
    inside = {f"student.{name}": array for name, array in read_weights(path).items()}
    write_safetensors(path, inside, {})
    assert main(["convert", f"--from={path}", f"--to={tmp_path / 'run'}"]) == 2
    assert "a whole model, but its names have the prefix 'student.'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_file_instead_of_a_folder_is_reported_before_anything_is_read(tmp_path, capsys):
    (tmp_path / "run").write_text("mine")
    assert main(["convert", "--from=none.pth", f"--to={tmp_path / 'run'}"]) == 2
    assert "run is a file. Give a folder" in capsys.readouterr().err
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_run_starts_from_an_official_model(name, tmp_path):
    path, _ = write(tmp_path, name)
    config = configuration.load(name, {"model.encoder": "swin_golden", "init.run": str(path)})
    graph, own = random_model(config)
    found = nnx.merge(graph, warm_start(config.init, graph, own))
    assert_same_bits(convert.to_torch(found), read_weights(path))
    init = config.replace(init={"run": None, "encoder": str(path)}).init
    found = warm_start(init, graph, own)
    jax.tree.map(np.testing.assert_array_equal, found["decoder"], own["decoder"])


def test_weights_that_do_not_fit_are_refused_with_the_key(tmp_path):
    path, _ = write(tmp_path, "nyudv2")
    with pytest.raises(ValueError, match=r"config.init.run=.*: there is no such file"):
        train(tiny_config(init__run=str(tmp_path / "none.pth")), tmp_path / "run")
    config = tiny_config(init__run=str(path))
    graph, own = random_model(config)
    with pytest.raises(ValueError, match=r"config.init.run: The state dict holds swin_golden"):
        warm_start(config.init, graph, own)


def test_a_converted_run_has_its_origin_on_the_card_and_cannot_be_resumed(tmp_path, capsys):
    path, _ = write(tmp_path, "nyudv2")
    workdir = tmp_path / "run"
    assert main(["convert", f"--from={path}", f"--to={workdir}"]) == 0
    card = tmp_path / "artifact"
    arguments = [f"--workdir={workdir}", "--platform=cpu", "--size=32x64", f"--output={card}"]
    assert main(["export", *arguments]) == 0
    assert (
        "- Converted from official.safetensors, with the tasks of nyudv2"
        in (card / "model_card.md").read_text()
    )
    with pytest.raises(ValueError, match=rf"start from them: --config.init.run={workdir}"):
        train(tiny_config(), workdir)
    assert main(["convert", f"--from={path}", f"--to={workdir}"]) == 2
    assert f"--to={workdir} holds a run already" in capsys.readouterr().err


def test_an_unknown_model_is_refused_with_the_flags_to_give(tmp_path, capsys, monkeypatch):
    path, _ = write(tmp_path, "nyudv2")
    monkeypatch.delitem(SWIN_SIZES, "swin_golden")
    assert main(["convert", f"--from={path}", f"--to={tmp_path / 'run'}"]) == 2
    assert "is not in models.swin.SWIN_SIZES" in capsys.readouterr().err
    other = {name: array for name, array in read_weights(path).items() if "edge" not in name}
    write_safetensors(path, other, {})
    assert main(["convert", f"--from={path}", f"--to={tmp_path / 'run'}"]) == 2
    assert "no published configuration has those tasks" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--to=gs://bucket/x.safetensors"], "a file can only be written to a local disk"),
        (["--to=x.pth"], "PyTorch files are written by export --format=torch"),
        (["--to=x.safetensors", "--config=nyudv2"], "--config does not go with an encoder alone"),
    ],
)
def test_contradictory_flags_of_convert_are_refused(flags, message, tmp_path, capsys):
    path = tmp_path / "encoder.safetensors"
    write_safetensors(path, swin_state_dict("mmsegmentation"), {})
    assert main(["convert", f"--from={path}", *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_card_contains_no_folders(tmp_path):
    config = tiny_config(init__run="/home/somebody/runs/a", init__encoder="hf:owner/name")
    settings = model_card._settings(config)
    assert (settings["init.run"], settings["init.encoder"]) == ("a", "hf:owner/name")
    assert model_card._settings(tiny_config(init__run="3"))["init.run"] == "3"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--platform is missing"),
        (["--format=torch", "--platform=cpu"], "--platform does not go with --format=torch"),
        (
            ["--format=torch"],
            "out is not a weight file. The name must end in one of .safetensors, .pth",
        ),
    ],
)
def test_contradictory_flags_of_export_are_refused(flags, message, tmp_path, capsys):
    arguments = ["export", f"--workdir={tmp_path}", f"--output={tmp_path / 'out'}", *flags]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_pytorch_reads_an_exported_file(tmp_path):
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[convert]'")
    path, _ = write(tmp_path, "nyudv2")
    assert main(["convert", f"--from={path}", f"--to={tmp_path / 'run'}"]) == 0
    output = tmp_path / "model.pth"
    arguments = [f"--workdir={tmp_path / 'run'}", f"--output={output}"]
    assert main(["export", "--format=torch", *arguments]) == 0
    found = torch.load(output, weights_only=True)
    source = json.loads(found["model_card"])["source"]
    assert source["converted_from"] == "official.safetensors"
    assert source["config"]["tasks.set"] == "nyudv2"
    for name, array in read_weights(path).items():
        # The official code loads weights into a model in DistributedDataParallel.
        np.testing.assert_array_equal(found["model"].pop(f"module.{name}").numpy(), array)
    assert not found["model"]
