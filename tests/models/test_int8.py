import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from llamagen_jax import sharding
from llamagen_jax.errors import InputError
from llamagen_jax.models import int8
from llamagen_jax.sampling.generate import generate

LABELS = jnp.arange(4)


@pytest.fixture(scope="module")
def model_and_params():
    """Of a residual stream that layers add to and do not drown, as in trained models."""
    model, params = tiny.llama(dataclasses.replace(tiny.LLAMA_CONFIG, dim=128, vocab_size=256))
    scales = {"layers": 0.4, "codes_embedding": 5, "condition_embedding": 5}
    return model, {
        name: jax.tree.map(lambda leaf, name=name: leaf * scales.get(name, 1), value)
        for name, value in params.items()
    }


def _matrix_bytes(params):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params) if leaf.ndim > 1)


def _error(model_and_params, changed):
    """RMS difference of the logits in the logits' standard deviations."""
    codes = jax.random.randint(jax.random.key(1), (4, 16), 0, 256)
    logits, others = (
        np.asarray(model.apply({"params": params}, codes, LABELS))
        for model, params in (model_and_params, changed)
    )
    return np.sqrt(np.mean((logits - others) ** 2)) / logits.std()


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_a_product_has_the_error_of_the_rounded_weights_alone(monkeypatch, platform):
    matrix = jax.random.normal(jax.random.key(0), (64, 48)) * jnp.geomspace(1e-3, 10, 48)
    # Rows of different sizes, with outliers, and one of zeros.
    x = jax.random.normal(jax.random.key(1), (2, 3, 64)) * jnp.geomspace(1e-3, 1e3, 6).reshape(
        2, 3, 1
    )
    x = x.at[:, 0, 5].mul(100).at[1, 2].set(0)
    rounded = int8.quantise(matrix)
    widened = rounded["integers"].T * rounded["scale"]
    assert np.all(abs(widened - matrix) <= 0.501 * rounded["scale"])
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    expected = np.asarray(x, np.float64) @ np.asarray(widened, np.float64)
    errors = abs(int8.product(x, rounded) - expected)
    sizes = jnp.max(abs(x), -1, keepdims=True) * jnp.max(abs(widened), 0)
    assert np.all(errors <= 2e-3 * sizes)


def test_logits_stay_near_those_of_float_weights(model_and_params):
    model, params = model_and_params
    rounded = model.for_decoding(params, "int8")
    assert _error(model_and_params, rounded) < 0.02
    assert _matrix_bytes(rounded[1]) < 0.4 * _matrix_bytes(params)
    again = rounded[0].for_decoding(rounded[1])
    assert again[1] is rounded[1]

    kernel = rounded[1]["layers_0"]["attention"]["v"]["kernel"]
    kernel["scale"] *= 1.1
    assert _error(model_and_params, rounded) > 0.02


@pytest.mark.parametrize("decoder", ["plain", "jacobi"])
def test_samples(model_and_params, decoder):
    model, params = model_and_params
    rounded = model.for_decoding(params, "int8")
    settings = {"seed": 1, "guidance_scale": 2.0}
    codes = generate(*rounded, LABELS, **settings, decoder=decoder)
    assert codes.shape == (4, 16)
    alone = generate(*rounded, LABELS[2:3], sample_ids=[2], **settings)
    np.testing.assert_array_equal(alone[0], codes[2])


def test_integers_are_split_over_a_mesh(model_and_params):
    model, params = model_and_params
    model, params = model.for_decoding(params, "int8")
    (mesh,) = tiny.meshes((2, 2, 2))
    split = jax.device_put(params, sharding.tree_shardings(params, sharding.DECODING_RULES, mesh))
    for matrix in (split["output"], split["layers_1"]["down"]["kernel"]):
        whole = matrix["integers"]
        assert whole.addressable_shards[0].data.size == whole.size // 4
    settings = {"seed": 1, "guidance_scale": 2.0}
    expected = generate(model, params, LABELS, **settings)
    np.testing.assert_array_equal(generate(model, split, LABELS, **settings), expected)


def test_wrong_weights_are_named(model_and_params):
    model, params = model_and_params
    with pytest.raises(InputError, match="no weights 'int4'; did you mean 'int8'"):
        model.for_decoding(params, "int4")
    with pytest.raises(InputError, match="for int8 give the parameters as they were loaded"):
        model.clone(scan_layers=False).for_decoding(params, "int8")
