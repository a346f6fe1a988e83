"""Export folders: exact, atomic, readable by the safetensors library, and clear when broken."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict

from llamagen_jax.errors import InputError
from llamagen_jax.models.llama import Llama, LlamaConfig
from llamagen_jax.models.vqgan import VQGAN, VQGANConfig
from llamagen_jax.weights import export

PARAMS = {
    "layers": {"q": {"kernel": jnp.arange(24, dtype=jnp.bfloat16).reshape(2, 3, 4)}},
    "norm": {"scale": np.linspace(0, 1, 5, dtype=np.float32)},
    "odd": np.float16([1.5]),
    "scalar": np.float32(3.0),
}


def flat(params):
    return flatten_dict(params, sep="/")


@pytest.fixture
def folder(tmp_path):
    export.write(tmp_path / "model", Llama(LlamaConfig(dim=64, n_heads=4)), PARAMS, step=3)
    return tmp_path / "model"


def test_what_is_written_is_read_back(folder):
    name, config, metadata, params = export.read(folder)
    assert name == "Llama"
    assert LlamaConfig(**config) == LlamaConfig(dim=64, n_heads=4)
    assert metadata == {"step": 3}
    for path, leaf in flat(params).items():
        expected = np.asarray(flat(PARAMS)[path])
        assert leaf.dtype == expected.dtype, path
        np.testing.assert_array_equal(leaf, expected, strict=True)


def test_tuples_in_a_config_survive_json(tmp_path):
    config = VQGANConfig(channel_multipliers=(1, 2))
    export.write(tmp_path / "tokenizer", VQGAN(config), PARAMS)
    name, fields, _, _ = export.read(tmp_path / "tokenizer")
    assert name == "VQGAN"
    assert VQGANConfig(**fields) == config


def test_the_library_reads_our_file_and_we_read_its(folder, tmp_path):
    read = safetensors.numpy.load_file(folder / "params.safetensors")
    assert read.keys() == flat(PARAMS).keys()
    for path, leaf in read.items():
        np.testing.assert_array_equal(leaf, np.asarray(flat(PARAMS)[path]))
    theirs = tmp_path / "theirs.safetensors"
    safetensors.numpy.save_file(read, theirs, metadata={"format": "np"})
    ours = export.open_tensors(theirs)
    assert ours.keys() == read.keys()
    for path, leaf in ours.items():
        np.testing.assert_array_equal(leaf, read[path], strict=True)


def test_pieces_are_written_one_after_the_other(tmp_path):
    stacked = np.arange(24.0).reshape(2, 3, 4)
    pieces = [stacked[0], stacked[1]]
    tensor = export.Tensor(stacked.shape, stacked.dtype, (piece for piece in pieces))
    export.write_tensors(tmp_path / "file", {"a": tensor})
    np.testing.assert_array_equal(export.open_tensors(tmp_path / "file")["a"], stacked)


def test_non_contiguous_leaves_are_written_in_row_major_order(tmp_path):
    kernel = np.arange(6.0).reshape(2, 3).T
    export.write(tmp_path / "model", Llama(LlamaConfig()), {"kernel": kernel})
    np.testing.assert_array_equal(export.read(tmp_path / "model")[3]["kernel"], kernel)


def test_an_existing_folder_is_kept(folder):
    before = (folder / "params.safetensors").read_bytes()
    with pytest.raises(InputError, match="model exists"):
        export.write(folder, Llama(LlamaConfig()), {"a": np.zeros(2)})
    assert (folder / "params.safetensors").read_bytes() == before


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        export.write(tmp_path / "model", Llama(LlamaConfig()), PARAMS, what=object())
    assert not list(tmp_path.iterdir())


def test_hash_depends_on_names_dtypes_shapes_and_values_only(folder):
    reference = export.weights_hash(PARAMS)
    assert export.weights_hash(export.read(folder)[3]) == reference
    assert export.weights_hash(dict(reversed(PARAMS.items()))) == reference
    changes = [
        {"odd": np.float16([1.25])},
        {"odd": np.float16([[1.5]])},
        {"odd": PARAMS["odd"].view(np.int16)},
        {"other": np.float16([1.5])},
    ]
    for change in changes:
        assert export.weights_hash({**PARAMS, **change}) != reference, change


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_truncated_tensors_are_named(folder, keep):
    path = folder / "params.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"params\.safetensors is truncated"):
        export.read(folder)


def test_missing_tensors_are_named(folder):
    (folder / "params.safetensors").unlink()
    with pytest.raises(InputError, match=r"params\.safetensors cannot be read"):
        export.read(folder)


@pytest.mark.parametrize("text", ["", "[1]", '{"model": "Llama"', '{"model": "Llama"}'])
def test_a_broken_configuration_is_named(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json"):
        export.read(folder)


def test_a_missing_configuration_is_named(tmp_path):
    with pytest.raises(InputError, match=r"config\.json is missing"):
        export.read(tmp_path)


def test_unknown_dtypes_are_named(tmp_path):
    header = {"a": {"dtype": "F8_E5M2", "shape": [2], "data_offsets": [0, 2]}}
    encoded = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + b"\0\0")
    with pytest.raises(InputError, match="tensor a has dtype F8_E5M2"):
        export.open_tensors(path)
