"""What only a GPU can show: `pytest -m gpu` on a machine with one; skipped elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from llamagen_jax.models import attention
from llamagen_jax.sampling.generate import generate
from llamagen_jax.training.config import from_mapping

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("length", "width"), [(256, 64), (377, 100)])
def test_cudnn_attention_agrees_with_the_plain_one(masked, length, width):
    """At widths and lengths that it takes as they are, and at those of GPT-3B, which are padded."""
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (
        jax.random.normal(key, (2, length, heads, width), jnp.bfloat16)
        for key, heads in zip(keys, (8, 4, 4), strict=True)
    )
    valid = jnp.arange(length) >= jnp.array([[3], [0]]) if masked else None

    def value_and_grads(implementation, *inputs):
        def function(q, k, v):
            attended = attention.causal_attention(q, k, v, valid, implementation)
            keep = True if valid is None else valid[..., None, None]
            return jnp.mean(jnp.where(keep, attended, 0).astype(jnp.float32) ** 2)

        return jax.jit(jax.value_and_grad(function, argnums=(0, 1, 2)))(*inputs)

    exact = value_and_grads("xla", *(x.astype(jnp.float32) for x in (q, k, v)))
    fast = value_and_grads("cudnn", q, k, v)
    np.testing.assert_allclose(fast[0], exact[0], rtol=1e-2)
    for got, expected in zip(fast[1], exact[1], strict=True):
        scale = jnp.abs(expected).max()
        np.testing.assert_allclose(got.astype(jnp.float32), expected, atol=3e-2 * scale)


def test_training_in_bfloat16_follows_float32(tmp_path):
    codes = tiny.write_codes(tmp_path / "codes")
    (mesh,) = tiny.meshes((1, 1, 1))
    exact, fast = (
        tiny.losses(from_mapping(tiny.generator_config(codes, model__dtype=dtype)), mesh)
        for dtype in ("float32", "bfloat16")
    )
    np.testing.assert_allclose(fast, exact, rtol=2e-2)


@pytest.mark.parametrize("config", [tiny.LLAMA_CONFIG, tiny.TEXT_CONFIG])
def test_cached_decoding_says_what_the_whole_sequence_does(config):
    model, params = tiny.llama(config)
    condition = jnp.arange(4)
    if config.condition == "text":
        condition = jax.random.normal(jax.random.key(1), (4, 5, 16))
    with jax.default_matmul_precision("highest"):
        codes = generate(model, params, condition, seed=0, greedy=True)
        logits = model.apply({"params": params}, codes, condition)
    np.testing.assert_array_equal(logits.argmax(-1), codes)
