import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from llamagen_jax import sharding
from llamagen_jax.errors import InputError
from llamagen_jax.models import attention

# As GPT-3B: a head width that no kernel takes as it is, and a length that is odd.
B, S, H, K, Dh = 8, 37, 4, 2, 100


@pytest.fixture(scope="module")
def inputs():
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (
        jax.random.normal(key, (B, S, n, Dh)) for key, n in zip(keys, (H, K, K), strict=True)
    )
    valid = jnp.arange(S) >= jnp.arange(B)[:, None]
    return q, k, v, valid


def _sum_of_valid(implementation):
    def function(q, k, v, valid):
        attended = attention.causal_attention(q, k, v, valid, implementation)
        keep = True if valid is None else valid[..., None, None]
        return jnp.sum(jnp.where(keep, attended, 0) ** 2)

    return jax.jit(jax.value_and_grad(function, argnums=(0, 1, 2)))


def _assert_agree(got, expected):
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-5)
    for a, b in zip(got[1], expected[1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("masked", [False, True])
def test_tpu_kernel_agrees_with_xla(inputs, masked):
    q, k, v, valid = inputs
    arguments = q[:2], k[:2], v[:2], valid[:2] if masked else None
    with pltpu.force_tpu_interpret_mode():
        got = _sum_of_valid("flash")(*arguments)
    _assert_agree(got, _sum_of_valid("xla")(*arguments))


@pytest.mark.parametrize("masked", [False, True])
def test_tpu_kernel_runs_on_every_device(inputs, masked, monkeypatch):
    """Interpreted kernels cannot run on many devices at once: XLA stands in for it."""
    q, k, v, valid = inputs
    valid = valid if masked else None
    shapes = []

    def stand_in(q, k, v, valid, scale):
        shapes.append(q.shape)
        q, k, v = (x[..., :Dh] for x in (q, k, v))
        attended = attention.causal_attention(q, k, v, valid, "xla")
        return jnp.pad(attended, ((0, 0), (0, 0), (0, 0), (0, 28)))

    monkeypatch.setattr(attention, "_flash", stand_in)
    with jax.set_mesh(sharding.make_mesh(2, 2, 2)):
        got = _sum_of_valid("flash")(q, k, v, valid)
    assert shapes[0] == (B // 4, 128, H // 2, 128)
    _assert_agree(got, _sum_of_valid("xla")(q, k, v, valid))


def test_cudnn_gets_widths_and_lengths_it_takes(inputs, monkeypatch):
    """The kernel itself needs a GPU: XLA stands in for it here."""
    xla, shapes = jax.nn.dot_product_attention, []

    def stand_in(q, k, v, implementation=None, **options):
        if implementation == "cudnn":
            shapes.append(q.shape)
        return xla(q, k, v, **options)

    expected = _sum_of_valid("xla")(*inputs)
    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    got = _sum_of_valid("cudnn")(*inputs)
    assert shapes == [(B, S + 1, H, 104)]
    _assert_agree(got, expected)


def test_kernel_is_chosen_by_platform(monkeypatch):
    assert attention.choose("auto", "bfloat16") == "xla"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert attention.choose("auto", "bfloat16") == "cudnn"
    assert attention.choose("auto", "float32") == "xla"
    assert attention.choose("xla", "bfloat16") == "xla"
    with pytest.raises(InputError, match="needs a GPU and bfloat16, not gpu and float32"):
        attention.choose("cudnn", "float32")
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert attention.choose("auto", "float32") == "flash"
