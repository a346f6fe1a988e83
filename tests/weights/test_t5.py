"""T5 encoders from the files of Hugging Face and back."""

import json
import weakref

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax.traverse_util import flatten_dict, unflatten_dict

from llamagen_jax.errors import InputError
from llamagen_jax.models.t5 import T5Config
from llamagen_jax.weights import t5 as t5_weights
from llamagen_jax.weights import torch_files

CONFIG = tiny.T5_CONFIG


@pytest.mark.parametrize("layout", ["safetensors shards", "bin whole", "bin shards"])
def test_every_layout_of_weights_loads(layout, tmp_path):
    suffix, split = layout.split()
    tensors = tiny.t5_tensors()
    expected = dict(t5_weights.from_tensors(tensors, CONFIG))
    if split == "shards":  # whole T5s name the embedding twice, encoders once
        tensors["encoder.embed_tokens.weight"] = tensors.pop("shared.weight")
    else:
        tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"]
    tensors["decoder.block.0.layer.0.SelfAttention.q.weight"] = np.zeros((3, 3), np.float32)
    tensors["lm_head.weight"] = np.zeros((3, 3), np.float32)

    def write(name, part):
        if suffix == "safetensors":
            return tiny.write_tensors(tmp_path / name, part)
        torch = pytest.importorskip("torch")
        state = {name: torch.from_numpy(t) for name, t in part.items()}
        return torch.save(state, tmp_path / name)

    whole = "model.safetensors" if suffix == "safetensors" else "pytorch_model.bin"
    if split == "whole":
        write(whole, tensors)
    else:
        places = {name: f"{i % 2}.{suffix}" for i, name in enumerate(tensors)}
        for shard in set(places.values()):
            write(shard, {name: t for name, t in tensors.items() if places[name] == shard})
        index = {"metadata": {"total_size": 1}, "weight_map": places}
        (tmp_path / f"{whole}.index.json").write_text(json.dumps(index))
    params = dict(t5_weights.from_tensors(torch_files.open_folder(tmp_path), CONFIG))
    assert params.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(params[path], leaf)


@pytest.mark.parametrize(
    "config",
    [
        T5Config(),
        T5Config(dim=4096, n_heads=64, ffn_dim=10240),
        T5Config(dim=512, n_heads=8, ffn_dim=2048, n_layers=6, activation="relu"),
    ],
    ids=["flan-t5-xl", "t5-v1_1-xxl", "t5-small"],
)
def test_names_and_shapes_of_published_encoders(config):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = transformers.T5EncoderModel(
            transformers.T5Config(**t5_weights.config_fields(config))
        )
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    assert expected.pop("encoder.embed_tokens.weight") == expected["shared.weight"]
    assert t5_weights.layout(config).tensor_shapes == expected
    shapes = flatten_dict(t5_weights.abstract_params(config)).values()
    assert sum(leaf.size for leaf in shapes) == sum(p.numel() for p in model.parameters())


def test_parameters_come_one_at_a_time_in_the_wanted_dtype():
    leaves = t5_weights.from_tensors(tiny.t5_tensors(), CONFIG, "bfloat16")
    path, first = next(leaves)
    assert path.count("/") and first.dtype == jnp.bfloat16
    reference = weakref.ref(first)
    del first
    next(leaves)
    assert reference() is None
    assert len(list(leaves)) == len(flatten_dict(t5_weights.abstract_params(CONFIG))) - 2


def test_parameters_and_tensors_are_each_others_inverse():
    tensors = tiny.t5_tensors()
    params = unflatten_dict(dict(t5_weights.from_tensors(tensors, CONFIG)), sep="/")
    back = t5_weights.to_tensors(params, CONFIG)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor)


def test_tensors_that_do_not_fit_are_all_named():
    tensors = tiny.t5_tensors()
    del tensors["encoder.block.1.layer.0.SelfAttention.q.weight"]
    tensors["encoder.final_layer_norm.weight"] = np.ones(3, np.float32)
    tensors["encoder.block.2.layer.0.layer_norm.weight"] = np.ones(16, np.float32)
    with pytest.raises(InputError) as error:
        t5_weights.from_tensors(tensors, CONFIG)
    for problem in (
        "missing: encoder.block.1.layer.0.SelfAttention.q.weight",
        "unexpected: encoder.block.2.layer.0.layer_norm.weight",
        "encoder.final_layer_norm.weight [3] instead of [16]",
    ):
        assert problem in str(error.value)
