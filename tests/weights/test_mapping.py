"""The engine that maps tensors of a file to parameters, and the tables of the original's models."""

import dataclasses

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import llamagen_jax as lg
from llamagen_jax.errors import InputError
from llamagen_jax.weights.mapping import Layout, from_torch, layout_of, to_torch
from llamagen_jax.weights.names import NameTable
from llamagen_jax.weights.shapes import flat_shapes

CLASS = lg.LlamaConfig(dim=16, n_layers=2, n_heads=2, vocab_size=32, num_classes=3)
TEXT = dataclasses.replace(CLASS, condition="text", condition_length=5, caption_dim=12)
GROUPED = dataclasses.replace(CLASS, n_heads=4, n_kv_heads=2)
TOKENIZER = lg.VQGANConfig(
    base_channels=32, channel_multipliers=(1, 2), z_channels=8, codebook_size=16, codebook_dim=4
)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, strict=True, err_msg=name)


@pytest.mark.parametrize("key", golden_weights.inventory())
def test_names_and_shapes_are_those_of_the_inventory(key):
    size, *rest = key.split("/")
    config = lg.MODELS[size]
    if rest:
        condition = {"c2i": {}, "t2i": {"condition": "text", "condition_length": 120}}[rest[0]]
        config = dataclasses.replace(config, grid_size=int(rest[1]) // 16, **condition)
    tensors = golden_weights.inventory()[key]["tensors"]
    tensors.pop("quantize.codebook_used", None)
    assert layout_of(config).tensor_shapes == {name: tuple(s) for name, s in tensors.items()}


@pytest.mark.parametrize("condition", ["class", "text"])
@pytest.mark.parametrize("size", [name for name in lg.MODELS if name.startswith("GPT")])
def test_round_trip_of_every_depth_and_head_count(size, condition):
    config = dataclasses.replace(
        TEXT if condition == "text" else CLASS,
        n_layers=lg.MODELS[size].n_layers,
        n_heads=lg.MODELS[size].n_heads,
        dim=4 * lg.MODELS[size].n_heads,
        multiple_of=8,
    )
    tensors = golden_weights.state_dict(config)
    params = from_torch(tensors, config)
    assert_same(to_torch(params, config), tensors)


@pytest.mark.parametrize(
    "config",
    [
        GROUPED,
        dataclasses.replace(lg.MODELS["VQ-16"], base_channels=32),
        dataclasses.replace(lg.MODELS["VQ-8"], base_channels=32),
    ],
)
def test_round_trip(config):
    tensors = golden_weights.state_dict(config)
    assert_same(to_torch(from_torch(tensors, config), config), tensors)


def test_parameters_apply_and_keep_their_dtype():
    tensors = {n: t.astype(jnp.bfloat16) for n, t in golden_weights.state_dict(CLASS).items()}
    params = from_torch(tensors, CLASS)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(jnp.bfloat16)}
    logits = lg.Llama(CLASS).apply({"params": params}, jnp.zeros((1, 4), int), jnp.zeros(1, int))
    assert logits.dtype == jnp.float32
    back = to_torch(jax.tree.map(jnp.asarray, params), CLASS)
    assert_same(back, tensors)


def test_buffers_of_the_original_are_left_out():
    buffers = {
        CLASS: ["freqs_cis", "causal_mask", "layers.1.attention.kv_cache.k_cache"],
        TOKENIZER: ["quantize.codebook_used"],
    }
    for config, names in buffers.items():
        tensors = golden_weights.state_dict(config)
        params = from_torch(tensors | dict.fromkeys(names, np.zeros(3)), config)
        assert_same(to_torch(params, config), tensors)


def test_one_error_lists_every_mismatch():
    tensors = golden_weights.state_dict(CLASS)
    del tensors["norm.weight"], tensors["layers.1.attention.wqkv.weight"]
    tensors["layers.2.ffn_norm.weight"] = tensors["stray"] = np.zeros(4)
    tensors["output.weight"] = np.zeros((32, 17))
    with pytest.raises(InputError) as error:
        from_torch(tensors, CLASS)
    assert str(error.value) == (
        "tensors do not fit a class-conditional transformer: "
        "missing: layers.1.attention.wqkv.weight, norm.weight; "
        "unexpected: layers.2.ffn_norm.weight, stray; "
        "wrong shape: output.weight [32, 17] instead of [32, 16]"
    )
    params = golden_weights.params(CLASS)
    params["norm"] = {"bias": np.zeros(16)}
    params["output"] = params["output"].T
    with pytest.raises(InputError) as error:
        to_torch(params, CLASS)
    assert str(error.value) == (
        "parameters do not fit a class-conditional transformer: missing: norm/scale; "
        "unexpected: norm/bias; wrong shape: output [32, 16] instead of [16, 32]"
    )


# Layers that share a tensor, a transposed matrix by another name, axes of length 1, two names of
# one tensor, and tensors that are no parameters.
TABLE = NameTable(
    names={
        r"level_(\d+)/conv": r"levels.\1",
        "layers/second": "blocks.{}.fused",
        "layers/first": "blocks.{}.fused",
        "embedding": "tokens",
        "matrix": "head",
        "scale_by": "scales",
    },
    kernels=("matrix",),
    unit_axes={"scale_by": (0, 2)},
    aliases={"tied": "tokens.weight"},
    buffers={"count": (3,)},
    ignored=r"unused\..*",
)
PARAMS = {
    "level_7": {"conv": {"kernel": np.arange(72).reshape(3, 3, 4, 2), "bias": np.arange(2)}},
    "layers": {
        "first": {"kernel": np.arange(12).reshape(2, 3, 2)},
        "second": {"kernel": np.arange(6).reshape(2, 3, 1)},
    },
    "embedding": {"embedding": np.arange(10).reshape(5, 2)},
    "matrix": np.arange(6).reshape(2, 3),
    "scale_by": np.arange(4),
}


def test_a_table_says_where_every_parameter_lies():
    layout = Layout(TABLE, flat_shapes(PARAMS))
    tensors = {n: view.array() for n, view in layout.tensor_views(PARAMS, "").items()}
    first, second = (PARAMS["layers"][name]["kernel"] for name in ("first", "second"))
    expected = {
        "levels.7.weight": PARAMS["level_7"]["conv"]["kernel"].transpose(3, 2, 0, 1),
        "levels.7.bias": np.arange(2),
        "blocks.0.fused.weight": np.concatenate([second[0].T, first[0].T]),
        "blocks.1.fused.weight": np.concatenate([second[1].T, first[1].T]),
        "tokens.weight": PARAMS["embedding"]["embedding"],
        "head": PARAMS["matrix"].T,
        "scales": np.arange(4).reshape(1, 4, 1),
    }
    assert_same(tensors, expected)
    assert layout.tensor_shapes == {name: tensor.shape for name, tensor in expected.items()}
    tensors |= {"tied": tensors.pop("tokens.weight"), "count": np.ones(3), "unused.x": np.ones(1)}
    params = {path: view.array() for path, view in layout.param_views(tensors, "").items()}
    assert_same(params, flatten_dict(PARAMS, sep="/"))


def test_views_share_the_memory_of_what_they_show():
    tensors = golden_weights.state_dict(CLASS)
    for view in layout_of(CLASS).param_views(tensors, "").values():
        for piece in view.pieces:
            assert any(np.shares_memory(piece, tensor) for tensor in tensors.values())


def test_a_parameter_that_no_row_names_is_an_error():
    with pytest.raises(KeyError, match="layers/third/kernel"):
        Layout(TABLE, {"layers/third/kernel": (2, 3, 1)})


def test_a_generator_of_several_grids_has_no_place_in_the_originals_files():
    config = dataclasses.replace(CLASS, grids=((16, 16), (12, 20)))
    with pytest.raises(InputError, match=r"no place for the sizes .*: write an export folder"):
        layout_of(config)
