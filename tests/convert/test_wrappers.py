"""What training code wraps a model in is removed; what is ambiguous is refused with a remedy."""

import os

import numpy as np
import pytest

from mtmamba_jax.convert.weight_files import is_weight_file, read_weights, write_safetensors

torch = pytest.importorskip("torch", reason='reads .pth files: pip install -e ".[convert]"')

NAMES = ("layers.0.weight", "norm.bias")


def state(prefix="", value=1.0):
    return {prefix + name: torch.full((2,), value) for name in NAMES}


@pytest.mark.parametrize(
    "wrapper",
    [
        None,
        "model",
        "state_dict",
        "params",
        "model_state_dict",
        "model_ema",
        "net",
        "params_ema",
        "ema/module",
        "model/state_dict",
    ],
)
@pytest.mark.parametrize("prefix", ["", "module.", "module.module.", "model._orig_mod."])
def test_a_state_dict_in_a_wrapper_is_found(wrapper, prefix, tmp_path):
    others = {
        "epoch": 3,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
        "hyper_parameters": {"lr": 0.1},
        "best_score": torch.tensor(0.5),
        "best": {"miou": torch.tensor(0.5)},
        "rng": {"cpu": torch.ones(2), "cuda": torch.ones(2)},
        "scaler": {"scale": torch.tensor(2.0), "growth": torch.tensor(2.0)},
    }
    held = state(prefix)
    for key in reversed(wrapper.split("/") if wrapper else ()):
        held = {key: held}
    torch.save(held | others if wrapper else held, tmp_path / "w.ckpt")
    assert set(read_weights(tmp_path / "w.ckpt")) == set(NAMES)


@pytest.mark.parametrize(
    "prefix",
    ["_orig_mod.", "model.", "net.", "network.", "module._orig_mod.", "_orig_mod.module.",
     "model.net.", "_forward_module.model.", "_fsdp_wrapped_module."],
)  # fmt: skip
def test_prefixes_of_wrappers_are_removed_from_every_format(prefix, tmp_path):
    arrays = {name: np.ones(2, np.float32) for name in state(prefix)}
    write_safetensors(tmp_path / "w.safetensors", arrays, {})
    assert set(read_weights(tmp_path / "w.safetensors")) == set(NAMES)


def test_a_compiled_part_of_a_model_has_the_names_of_the_part(tmp_path):
    torch.save({"a._orig_mod.w": torch.ones(2), "not_orig_mod.b": torch.ones(2)}, tmp_path / "w.pt")
    assert set(read_weights(tmp_path / "w.pt")) == {"a.w", "not_orig_mod.b"}


def test_a_prefix_of_only_some_names_is_kept(tmp_path):
    torch.save({"module.a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "w.pth")
    assert set(read_weights(tmp_path / "w.pth")) == {"module.a", "b"}


def test_of_several_state_dicts_none_is_chosen(tmp_path):
    torch.save({"model": state(), "model_ema": state(value=2.0)}, tmp_path / "w.pth")
    with pytest.raises(
        ValueError, match=r"several state dicts: model, model_ema\. Save"
    ) as refused:
        read_weights(tmp_path / "w.pth")
    assert f"torch.load({str(tmp_path / 'w.pth')!r})['model_ema']" in str(refused.value)


def test_the_largest_state_dict_is_suggested(tmp_path):
    small = {"loss.weight": torch.ones(2)}
    torch.save({"ema": {"module": state()}, "criterion": small}, tmp_path / "w.pth")
    with pytest.raises(
        ValueError, match=r"dicts: ema\.module, criterion\. .*\['ema'\]\['module'\]"
    ):
        read_weights(tmp_path / "w.pth")


def test_names_that_only_a_wrapper_tells_apart_are_refused(tmp_path):
    torch.save(state() | state("_orig_mod.", 2.0), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"are both layers\.0\.weight without the wrapper"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["W.PTH", "w.Pth.Tar", "W.CKPT", "w.BIN", "w.SafeTensors"])
def test_endings_may_be_in_upper_case(name, tmp_path):
    if name.endswith("SafeTensors"):
        write_safetensors(tmp_path / name, {n: np.ones(2, np.float32) for n in NAMES}, {})
    else:
        torch.save(state(), tmp_path / name)
    assert is_weight_file(str(tmp_path / name))
    assert set(read_weights(tmp_path / name)) == set(NAMES)


@pytest.mark.parametrize(
    ("prefix", "beside"),
    [
        ("module.", "n_averaged"),
        ("model.", "criterion.weight"),
        ("model.", "optimizer.state.0.exp_avg"),
        ("network.", "metric.total"),
        ("module.model.", "model.loss_weights"),
        ("model._orig_mod.", "criterion.log_variance"),
    ],
)
def test_entries_beside_a_wrapped_model_are_ignored_with_a_warning(
    prefix, beside, tmp_path, caplog
):
    torch.save({"state_dict": state(prefix) | {beside: torch.tensor(3.0)}}, tmp_path / "w.ckpt")
    assert set(read_weights(tmp_path / "w.ckpt")) == set(NAMES)
    (record,) = caplog.records
    assert f"w.ckpt: ignored {beside}: not of the model" in record.getMessage()


@pytest.mark.parametrize("ending", ["ckpt", "safetensors"])
@pytest.mark.parametrize("average", ["model_ema.", "ema.module.", "model_ema.module."])
def test_a_model_beside_its_average_is_refused_with_the_code_that_saves_one(
    average, ending, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    both = state("model.") | state(average, 2.0) | {"n_averaged": torch.tensor(3)}
    path = tmp_path / f"w.{ending}"
    if ending == "ckpt":
        torch.save({"state_dict": both}, path)
    else:
        write_safetensors(path, {name: value.numpy() for name, value in both.items()}, {})
    prefixes = sorted(["model.", average])
    with pytest.raises(ValueError, match="names of a model 2 times, with the prefixes") as refused:
        read_weights(path)
    message = str(refused.value)
    assert ", ".join(map(repr, prefixes)) in message
    import safetensors.torch

    code = message.partition("of its own: ")[2].removesuffix(".")
    exec(code, {"torch": torch, "safetensors": safetensors})
    saved = read_weights("weights.pth")
    assert {name: value[0] for name, value in saved.items()} == dict.fromkeys(
        NAMES, 2.0 if prefixes[-1] == average else 1.0
    )


def test_an_optimizer_with_names_of_parameters_is_not_a_state_dict(tmp_path):
    torch.save({"model": state(), "optimizer": state(value=2.0)}, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth")["norm.bias"][0] == 1.0


@pytest.mark.parametrize("ending", ["pth", "safetensors", "safetensors.index.json"])
def test_a_pipe_is_refused_at_once(ending, tmp_path):
    os.mkfifo(tmp_path / f"w.{ending}")
    with pytest.raises(ValueError, match=r"is not a file\. Give a weight file"):
        read_weights(tmp_path / f"w.{ending}")
