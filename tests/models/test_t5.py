import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from golden_weights import load, tensor

from llamagen_jax import sharding
from llamagen_jax.models.t5 import T5, T5Config, relative_buckets
from llamagen_jax.weights import t5 as t5_weights

TINY = T5Config(vocab_size=64, dim=16, head_dim=4, ffn_dim=32, n_layers=2, n_heads=4)


def golden_model(name):
    golden, entries = load(name)
    c = entries["config"]
    config = T5Config(
        vocab_size=c["vocab_size"],
        dim=c["d_model"],
        head_dim=c["d_kv"],
        ffn_dim=c["d_ff"],
        n_layers=c["num_layers"],
        n_heads=c["num_heads"],
        activation=c["feed_forward_proj"],
    )
    tensors = {key: tensor(key, shape) for key, shape in entries["inventory"].items()}
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"]
    params = unflatten_dict(dict(t5_weights.from_tensors(tensors, config)), sep="/")
    return golden, config, params


def apply(config, params, tokens, mask):
    return np.asarray(jax.jit(T5(config).apply)({"params": params}, tokens, mask))


@pytest.mark.parametrize("name", ["t5_gated", "t5_relu"])
def test_encoder(name):
    golden, config, params = golden_model(name)
    inputs = golden["input_ids"], golden["attention_mask"]
    hidden = apply(config, params, *inputs)
    assert hidden.dtype == np.float32
    np.testing.assert_allclose(hidden, golden["hidden"], rtol=0, atol=1e-4)
    half = apply(dataclasses.replace(config, dtype="bfloat16"), params, *inputs)
    error = np.sqrt(np.mean((half - golden["hidden"]) ** 2))
    assert 0 < error < 0.02 * golden["hidden"].std()


def test_features_depend_on_distances_and_not_on_padding():
    golden, config, params = golden_model("t5_gated")
    tokens = golden["input_ids"][:1, :10]
    alone = apply(config, params, tokens, np.ones((1, 10), bool))
    for left in (0, 5, 30):
        padding = ((0, 0), (left, 30 - left))
        mask = np.pad(np.ones((1, 10), bool), padding)
        padded = apply(config, params, np.pad(tokens, padding, constant_values=7), mask)
        np.testing.assert_allclose(padded[:, left : left + 10], alone, rtol=0, atol=1e-5)


def test_buckets_are_exact_when_near_and_logarithmic_when_far():
    distance = np.array([-1000, -128, -64, -16, -8, -7, -1, 0, 1, 7, 8, 16, 64, 128, 1000])
    expected = [15, 15, 14, 10, 8, 7, 1, 0, 17, 23, 24, 26, 30, 31, 31]
    np.testing.assert_array_equal(relative_buckets(distance, T5Config()), expected)


def test_buckets_are_those_of_transformers():
    torch = pytest.importorskip("torch")
    modeling = pytest.importorskip("transformers.models.t5.modeling_t5")
    distance = np.arange(-700, 701)
    for buckets, farthest in ((32, 128), (16, 40), (64, 600)):
        config = T5Config(relative_buckets=buckets, relative_max_distance=farthest)
        expected = modeling.T5Attention._relative_position_bucket(
            torch.from_numpy(distance), True, buckets, farthest
        )
        np.testing.assert_array_equal(relative_buckets(distance, config), expected)


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)])
def test_output_does_not_depend_on_the_mesh(shape):
    tokens = jax.random.randint(jax.random.key(1), (8, 12), 0, 64)
    mask = jnp.arange(12) >= jnp.arange(8)[:, None]
    model = T5(TINY)

    def init():
        return model.init(jax.random.key(0), tokens, mask)["params"]

    expected = apply(TINY, jax.jit(init)(), tokens, mask)
    mesh = sharding.make_mesh(*shape)
    params = sharding.sharded_init(init, sharding.T5_RULES, mesh)
    ways = shape[1] * shape[2]
    for name in ("q", "out", "gate", "up", "down"):
        kernel = params["layers"][name]["kernel"]
        assert kernel.addressable_shards[0].data.size == kernel.size // ways
    assert params["token_embedding"]["embedding"].addressable_shards[0].data.size == 64 * 16 // ways
    batch = sharding.put_batch({"tokens": np.asarray(tokens), "mask": np.asarray(mask)}, mesh)
    hidden = apply(TINY, params, **batch)
    np.testing.assert_allclose(hidden, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"activation": "gelu"},
        {"dtype": "float16"},
        {"dim": 0},
        {"relative_buckets": 6},
        {"relative_max_distance": 8},
    ],
)
def test_impossible_configs_name_the_field(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(TINY, **change)
