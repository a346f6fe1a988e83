"""Files of PyTorch and safetensors, right and wrong."""

import argparse
import json
import pathlib
import sys
import zipfile

import golden_weights
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny

import llamagen_jax as lg
from llamagen_jax.errors import InputError
from llamagen_jax.weights.torch_files import (
    Tensor,
    open_safetensors,
    read_torch,
    write_safetensors,
)

CLASS = lg.LlamaConfig(dim=16, n_layers=2, n_heads=2, vocab_size=32, num_classes=3)
ARRAYS = {
    "layers/q/kernel": np.arange(24).reshape(2, 3, 4).astype(jnp.bfloat16),
    "norm/scale": np.linspace(0, 1, 5, dtype=np.float32),
    "odd": np.float16([1.5]),
    "scalar": np.array(3.0, np.float32),
}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, strict=True, err_msg=name)


def test_the_library_reads_our_file_and_we_read_its(tmp_path):
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    write_safetensors(ours, {name: Tensor.of(array) for name, array in ARRAYS.items()})
    read = safetensors.numpy.load_file(ours)
    assert_same(read, ARRAYS)
    safetensors.numpy.save_file(read, theirs, metadata={"format": "np"})
    assert_same(open_safetensors(theirs), ARRAYS)


def test_pieces_are_written_one_after_the_other(tmp_path):
    stacked = np.arange(24.0).reshape(2, 3, 4)
    pieces = [stacked[0], stacked[1]]
    tensor = Tensor(stacked.shape, stacked.dtype, (piece for piece in pieces))
    write_safetensors(tmp_path / "file", {"a": tensor})
    np.testing.assert_array_equal(open_safetensors(tmp_path / "file")["a"], stacked)


def test_a_tensor_that_changed_is_named(tmp_path):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {name: Tensor.of(array) for name, array in ARRAYS.items()})
    whole = path.read_bytes()
    tiny.flip_bit(path, 8 * (len(whole) - 6))
    with pytest.raises(InputError, match="the tensor odd has changed since it was written; copy"):
        open_safetensors(path)
    # Of the same size, and as sound to the library.
    path.write_bytes(whole.replace(b'"dtype": "BF16"', b'"dtype": "F16" '))
    with pytest.raises(InputError, match="the tensor layers/q/kernel has changed"):
        open_safetensors(path)
    path.write_bytes(whole.replace(b"xxh3_128 odd", b"xxh3_128 ood"))
    with pytest.raises(InputError, match="its digests are of other tensors"):
        open_safetensors(path)


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_a_member_of_an_archive_that_changed_is_named(tmp_path, suffix):
    path = golden_weights.save_torch(tmp_path / f"a{suffix}", CLASS)
    tiny.flip_bit(path)
    with pytest.raises(InputError, match=r"its member \S+ has changed since it was written; copy"):
        read_torch(path)


def test_archives_without_sums_are_read(tmp_path):
    torch = pytest.importorskip("torch")
    torch.serialization.set_crc32_options(False)
    try:
        path = golden_weights.save_torch(tmp_path / "a.pt", CLASS)
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(read_torch(path)[0], golden_weights.state_dict(CLASS))


def test_unknown_dtypes_are_named(tmp_path):
    header = {"a": {"dtype": "F8_E5M2", "shape": [2], "data_offsets": [0, 2]}}
    encoded = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + b"\0\0")
    with pytest.raises(InputError, match="tensor a has dtype F8_E5M2"):
        open_safetensors(path)


@pytest.mark.parametrize("key", [None, "model", "module", "state_dict", "ema"])
def test_checkpoints_of_every_layout(tmp_path, key):
    torch = pytest.importorskip("torch")

    def wrap(state):
        state["output.weight"] = torch.nn.Parameter(state["output.weight"])
        if key is None:
            return state
        return {key: state, "steps": 3, "args": argparse.Namespace(lr=1e-4, model="GPT-B")}

    tensors, taken = read_torch(golden_weights.save_torch(tmp_path / "a.pt", CLASS, wrap))
    assert taken == key
    assert_same(tensors, golden_weights.state_dict(CLASS))


@pytest.mark.parametrize(
    ("prefix", "inside"),
    [("module.", ""), ("module._orig_mod.", ""), ("model.", ""), ("", "_fsdp_wrapped_module.")],
)
def test_names_are_read_without_wrappers(tmp_path, caplog, prefix, inside):
    def wrap(state):
        return {
            "model": {f"{prefix}{n.replace('.0.', f'.0.{inside}')}": t for n, t in state.items()}
        }

    tensors, _ = read_torch(golden_weights.save_torch(tmp_path / "a.pt", CLASS, wrap))
    assert_same(tensors, golden_weights.state_dict(CLASS))
    assert "is read as" in caplog.text
    mixed = {"a": Tensor.of(ARRAYS["odd"]), f"_orig_mod.{'a'}": Tensor.of(ARRAYS["odd"])}
    write_safetensors(tmp_path / "a.safetensors", mixed)
    with pytest.raises(InputError, match="holds tensors twice, with and without a wrapper"):
        read_torch(tmp_path / "a.safetensors")


@pytest.mark.parametrize("numpy_1", [False, True])
def test_plain_records_beside_the_tensors_are_read_over(tmp_path, numpy_1):
    def wrap(state):
        numbers = {"best": np.float64(3.5), "step": np.int64(4), "curve": np.arange(3.0)}
        return {"model": state, **numbers, "folder": pathlib.Path("runs"), "done": np.bool_(True)}

    path = golden_weights.save_torch(tmp_path / "a.pt", CLASS, wrap)
    if numpy_1:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data.replace(b"numpy._core", b"numpy.core"))
    assert_same(read_torch(path)[0], golden_weights.state_dict(CLASS))


def test_the_moving_average_is_taken_when_asked_for(tmp_path, caplog):
    def wrap(state):
        return {"model": state, "ema": {name: tensor + 1 for name, tensor in state.items()}}

    path = golden_weights.save_torch(tmp_path / "a.pth", CLASS, wrap)
    weights = golden_weights.state_dict(CLASS)
    for ema, expected in ((False, "model"), (True, "ema")):
        tensors, taken = read_torch(path, ema)
        assert taken == expected
        told = (
            f"{path}: taking its weights and not their moving average (ema), which" in caplog.text
        )
        assert told != ema
        caplog.clear()
        assert_same(tensors, {name: weight + np.float32(ema) for name, weight in weights.items()})
    tensors, taken = read_torch(golden_weights.save_torch(tmp_path / "b.pt", CLASS), ema=True)
    assert taken is None


def test_without_torch_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r"pip install \"llamagen_jax\[convert\]\""):
        read_torch(tmp_path / "a.pt")
