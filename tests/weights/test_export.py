"""Export folders: exact, atomic, readable by the safetensors library, and clear when broken."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from llamagen_jax.digests import write_json
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


def test_a_card_tells_what_the_model_is_and_whom_to_credit(tmp_path):
    for credit in ("Drawn by others (CC BY 4.0).", ""):
        folder = tmp_path / f"model{len(credit)}"
        export.write(folder, Llama(LlamaConfig()), PARAMS, credit=credit)
        card = (folder / "README.md").read_text()
        assert card.startswith("---\nlibrary_name: llamagen_jax\n")
        assert f'lg.load("{folder.name}")' in card
        assert "class-conditional transformer of 3.1e-05 million" in card
        assert ("## Credit" in card) == bool(credit)
        assert credit in card


def test_tuples_in_a_config_survive_json(tmp_path):
    config = VQGANConfig(channel_multipliers=(1, 2))
    export.write(tmp_path / "tokenizer", VQGAN(config), PARAMS)
    name, fields, _, _ = export.read(tmp_path / "tokenizer")
    assert name == "VQGAN"
    assert VQGANConfig(**fields) == config


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


def test_a_configuration_that_changed_is_named(folder):
    path = folder / "config.json"
    text = path.read_text()
    path.write_text(text.replace('"dim": 64', '"dim": 68'))
    with pytest.raises(InputError, match=r"is damaged, or was edited: .* remove its entry .digest"):
        export.read(folder)
    values = json.loads(text)
    values.pop("digest")
    path.write_text(json.dumps(values | {"note": "mine"}))
    assert export.read(folder)[2]["note"] == "mine"


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_a_configuration_with_a_number_that_is_not_finite_is_named(folder, number):
    (folder / "config.json").write_text(f'{{"model": "Llama", "config": {{"norm_eps": {number}}}}}')
    with pytest.raises(InputError, match=rf"config\.json .*{number} is no finite number of JSON"):
        export.read(folder)


def test_a_number_that_could_not_be_read_back_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "config.json", {"norm_eps": math.nan})
    assert not (tmp_path / "config.json").exists()


def test_a_missing_configuration_is_named(tmp_path):
    with pytest.raises(InputError, match=r"config\.json is missing"):
        export.read(tmp_path)
