"""Weight files are read bit for bit; malicious and broken files are refused by name."""

import builtins
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile

import huggingface_hub
import ml_dtypes
import numpy as np
import pytest
from huggingface_hub import errors

from mtmamba_jax.convert import weight_files
from mtmamba_jax.convert.weight_files import read_weights, write_safetensors

WEIGHTS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.half": np.linspace(0, 1, 4).astype(np.float16),
    "a.brain": np.linspace(0, 1, 4).astype(ml_dtypes.bfloat16),
    "a.count": np.array(7, np.int64),
}


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason='reads .pth files: pip install -e ".[convert]"')


def assert_same(found, expected=WEIGHTS):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


def tensors(torch, prefix=""):
    """Returns `WEIGHTS` as torch tensors."""
    as_torch = {
        name: torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
        if array.dtype == ml_dtypes.bfloat16
        else torch.from_numpy(array)
        for name, array in WEIGHTS.items()
    }
    return {prefix + name: tensor for name, tensor in as_torch.items()}


class Bomb:
    """An object that runs a command when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_safetensors_are_read_back_bit_for_bit_with_their_metadata(tmp_path):
    path = tmp_path / "deep" / "weights.safetensors"
    write_safetensors(path, WEIGHTS, {"source": "a test"})
    assert_same(read_weights(path))
    with weight_files.safetensors.safe_open(path, framework="np") as file:
        assert file.metadata() == {"source": "a test"}
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_arrays_that_are_not_contiguous_are_written_correctly(tmp_path):
    strided = {"transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T}
    strided["slice"] = np.arange(9)[::2]
    write_safetensors(tmp_path / "w.safetensors", strided, {})
    assert_same(read_weights(tmp_path / "w.safetensors"), strided)


def test_a_failed_write_leaves_the_existing_file(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    write_safetensors(path, WEIGHTS, {})

    def full(arrays, new, metadata):
        new.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(weight_files.safetensors.numpy, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        write_safetensors(path, {"other": np.zeros(3)}, {})
    assert_same(read_weights(path))
    assert list(tmp_path.iterdir()) == [path]


def write_parts(folder, places=None):
    names = list(WEIGHTS)
    parts = {"model-1-of-2.safetensors": names[:2], "model-2-of-2.safetensors": names[2:]}
    for part, held in parts.items():
        write_safetensors(folder / part, {name: WEIGHTS[name] for name in held}, {})
    places = places or {name: part for part, held in parts.items() for name in held}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


def test_all_parts_in_an_index_are_read(tmp_path):
    assert_same(read_weights(write_parts(tmp_path)))


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"a": "../model-1-of-2.safetensors"}, "not a safetensors file in the same folder"),
        ({"a": "/etc/passwd"}, "not a safetensors file in the same folder"),
        ({"a": "model-3-of-3.safetensors"}, "which does not exist in its folder"),
        ({"a": "model-1-of-2.safetensors"}, "do not contain a\\."),
        (["a"], "not an index of safetensors files"),
    ],
)
def test_an_index_with_missing_or_foreign_files_is_refused(places, message, tmp_path):
    index = write_parts(tmp_path, places)
    with pytest.raises(ValueError, match=message) as caught:
        read_weights(index)
    assert str(index) in str(caught.value)


def safetensors_bytes(header, data=bytes(24)):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape, start, stop, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


GOOD = safetensors_bytes({"a": entry([6], 0, 24)})
BROKEN_SAFETENSORS = {
    "empty": b"",
    "truncated in its arrays": GOOD[:-5],
    "truncated in its header": GOOD[:20],
    "a web page": b"<!DOCTYPE html><html>Not found</html>" * 9,
    "a header of 2**63 bytes": struct.pack("<Q", 2**63) + GOOD[8:],
    "arrays that overlap": safetensors_bytes({"a": entry([4], 0, 16), "b": entry([4], 8, 24)}),
    "a shape larger than the file": safetensors_bytes({"a": entry([10**12], 0, 24)}),
    "a shape that overflows": safetensors_bytes({"a": entry([2**40, 2**40], 0, 24)}),
    "a negative size": safetensors_bytes({"a": entry([-6], 0, 24)}),
    "a dtype that NumPy does not have": safetensors_bytes({"a": entry([24], 0, 24, "F8_E5M2")}),
    "no arrays": safetensors_bytes({}, b""),
}


@pytest.mark.parametrize("kind", BROKEN_SAFETENSORS)
def test_a_broken_safetensors_file_is_reported_in_one_line(kind, tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(BROKEN_SAFETENSORS[kind])
    with pytest.raises(
        ValueError, match=r"w\.safetensors (is not a safetensors file|holds)"
    ) as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"", "It is empty"),
        (b"\n<!DOCTYPE html><html>", "It is a web page"),
        (b"PK\x03\x04", "a name that ends in .pth"),
    ],
)
def test_the_format_of_an_unreadable_file_is_guessed_from_its_first_bytes(start, message, tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(start + bytes(64) if start else start)
    with pytest.raises(ValueError, match=message):
        read_weights(path)


def test_folders_missing_files_and_unknown_suffixes_are_refused(tmp_path):
    (tmp_path / "weights.npz").write_bytes(b"")
    for name, message in (
        ("", r"is a folder. Give the weight file in it, or the index of a file in several parts"),
        ("none.safetensors", "does not exist"),
        ("weights.npz", "The name must end in one of .safetensors,"),
    ):
        with pytest.raises(ValueError, match=message):
            read_weights(tmp_path / name)


@pytest.mark.parametrize("suffix", weight_files.TORCH)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_a_torch_file_is_read_back_bit_for_bit(suffix, zipped, torch, tmp_path):
    path = tmp_path / f"weights{suffix}"
    torch.save(tensors(torch), path, _use_new_zipfile_serialization=zipped)
    assert_same(read_weights(path))


def test_parameters_and_transposed_tensors_are_read(torch, tmp_path):
    weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    torch.save({"weight": weight, "turned": weight.detach().T}, tmp_path / "w.pth")
    found = read_weights(tmp_path / "w.pth")
    np.testing.assert_array_equal(found["turned"], found["weight"].T)


def test_a_state_dict_with_other_entries_is_refused_with_their_names(torch, tmp_path):
    torch.save({"a": torch.ones(2), "epoch": 3, "best": None}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="holds more than arrays: epoch, best"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("kind", ["to_sparse", "meta", "list"])
def test_sparse_and_meta_tensors_and_lists_are_refused(kind, torch, tmp_path):
    saved = {
        "to_sparse": {"a": torch.eye(3).to_sparse()},
        "meta": {"a": torch.empty(3, device="meta")},
        "list": [torch.ones(3)],
    }[kind]
    torch.save(saved, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"a is not a dense array|holds a list, not a state dict"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("format", ["zip", "before torch 1.6", "plain pickle", "in a wrapper"])
def test_pickled_code_is_not_executed(format, torch, tmp_path):
    path, marker = tmp_path / "w.pth", tmp_path / "marker"
    bomb = Bomb(marker)
    if format == "plain pickle":
        path.write_bytes(pickle.dumps({"a": bomb}, protocol=2))
    elif format == "in a wrapper":
        torch.save({"model": tensors(torch), "optimizer": bomb}, path)
    else:
        torch.save({"a": bomb}, path, _use_new_zipfile_serialization=format == "zip")
    with pytest.raises(ValueError, match=r"w\.pth holds an object of posix\.system") as caught:
        read_weights(path)
    assert not marker.exists()
    assert "\n" not in str(caught.value)
    pickle.loads(pickle.dumps(bomb))  # executed, it does create the marker
    assert marker.exists()


@pytest.mark.parametrize(
    "kind", ["empty", "web page", "zip of something else", "half", "without its end", "bytes"]
)
def test_a_broken_torch_file_is_reported_in_one_line(kind, torch, tmp_path):
    path = tmp_path / "w.pth"
    torch.save(tensors(torch), path)
    whole = path.read_bytes()
    if kind == "zip of something else":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("notes.txt", "hello")
    else:
        content = {
            "empty": b"",
            "web page": b"<!DOCTYPE html><html>Not found</html>",
            "half": whole[: len(whole) // 2],
            "without its end": whole[:-30],
            "bytes": bytes(range(256)) * 8,
        }
        path.write_bytes(content[kind])
    with pytest.raises(
        ValueError, match=r"w\.pth is not a PyTorch checkpoint.*fetch (it again|the file)"
    ) as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def refuse_import(monkeypatch, package):
    real = builtins.__import__

    def importing(name, *args, **kwargs):
        if name.split(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {package!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", importing)


def test_missing_pytorch_is_reported_with_the_command_to_install_it(tmp_path, monkeypatch):
    (tmp_path / "w.pth").write_bytes(b"")
    refuse_import(monkeypatch, "torch")
    with pytest.raises(RuntimeError, match=r'pip install -e "\.\[convert\]"'):
        read_weights(tmp_path / "w.pth")


def test_safetensors_are_read_without_torch(tmp_path, monkeypatch):
    write_safetensors(tmp_path / "w.safetensors", WEIGHTS, {})
    refuse_import(monkeypatch, "torch")
    assert_same(read_weights(tmp_path / "w.safetensors"))


def serve(monkeypatch, folder, asked):
    """Makes huggingface_hub serve the files of a folder that match the requested patterns."""

    def snapshot_download(repo, *, revision, allow_patterns):
        asked.append((repo, revision))
        snapshot = folder.parent / f"snapshot{len(asked)}"
        snapshot.mkdir()
        for pattern in allow_patterns:
            for path in folder.glob(pattern):
                (snapshot / path.name).symlink_to(path)  # as in the cache of huggingface_hub
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)


def test_safetensors_of_a_repository_are_preferred_to_parts_and_parts_to_a_pickle(
    torch, tmp_path, monkeypatch
):
    repo, asked = tmp_path / "repo", []
    repo.mkdir()
    serve(monkeypatch, repo, asked)
    torch.save(tensors(torch), repo / "pytorch_model.bin")
    assert_same(read_weights("hf:owner/name"))
    write_parts(repo)
    (repo / "pytorch_model.bin").write_bytes(b"not read")
    assert_same(read_weights("hf:owner/name@v1.0"))
    other = {"b": np.ones(3, np.float32)}
    write_safetensors(repo / "model.safetensors", other, {})
    assert_same(read_weights("hf:owner/name"), other)
    # The first download needs two requests.
    assert asked == [("owner/name", revision) for revision in (None, None, "v1.0", None)]


def test_a_repository_without_weights_is_refused(tmp_path, monkeypatch):
    (tmp_path / "repo").mkdir()
    serve(monkeypatch, tmp_path / "repo", [])
    with pytest.raises(ValueError, match=r"hf:a/b has none of model\.safetensors, .*_model\.bin"):
        read_weights("hf:a/b")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (errors.RepositoryNotFoundError, "no such repository, or it is private"),
        (errors.RevisionNotFoundError, "no such revision"),
        (errors.GatedRepoError, "requires accepting its owner's conditions"),
        (errors.HFValidationError, "expected hf:OWNER/NAME or"),
    ],
)
def test_errors_of_the_hub_are_reported_with_a_remedy(kind, message, monkeypatch):
    def refuse(*args, **kwargs):
        raise kind.__new__(kind, "Long\ntext")  # its constructor needs an HTTP response

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ValueError, match=message):
        read_weights("hf:a/b@v1")


@pytest.mark.parametrize(
    "environment",
    [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}],
    ids=["offline mode", "host that does not answer"],
)
def test_an_unreachable_hub_is_reported_with_an_alternative(environment, tmp_path):
    code = "from mtmamba_jax.convert.weight_files import read_weights; read_weights('hf:a/b')"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"HF_HOME": str(tmp_path)} | environment,
        capture_output=True,
        text=True,
    )
    last = ran.stderr.strip().splitlines()[-1]
    assert last.startswith("OSError: hf:a/b could not be downloaded (LocalEntryNotFoundError: ")
    assert "give its path" in last
