import jax
import jax.numpy as jnp
import pytest

from llamagen_jax import flops
from llamagen_jax.models.llama import Llama, LlamaConfig


def test_llama_needs_two_operations_per_weight_and_code():
    config = LlamaConfig()
    model, codes = Llama(config), jax.ShapeDtypeStruct((1, 256), jnp.int32)
    labels = jax.ShapeDtypeStruct((1,), jnp.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), codes, labels)
    weights = sum(leaf.size for leaf in jax.tree.leaves(variables))
    matrices = weights - (config.vocab_size + config.num_classes + 1) * config.dim
    attention = 4 * config.n_layers * 256 * 256 * config.dim
    counted = flops.count(model.apply, variables, codes, labels)
    assert counted == pytest.approx(2 * matrices * 256 + attention, rel=1e-3)


def test_backward_pass_has_two_products_for_each_one():
    def loss(kernel, images):
        convolved = jax.lax.conv_general_dilated(images, kernel, (2, 2), "SAME")
        return jnp.sum(convolved**2)

    kernel, images = jnp.zeros((8, 4, 2, 2)), jnp.zeros((3, 4, 16, 16))
    forward = flops.count(loss, kernel, images)
    assert forward == 2 * (3 * 8 * 8 * 8) * (4 * 2 * 2)
    both = flops.count(jax.grad(loss, argnums=(0, 1)), kernel, images)
    assert both == pytest.approx(3 * forward, rel=0.2)


def test_scans_and_recomputation_count():
    def layers(x):
        return jax.lax.scan(lambda x, _: (jnp.dot(x, x), None), x, length=5)[0].sum()

    x = jnp.zeros((4, 4))
    assert flops.count(layers, x) == 5 * 2 * 4**3
    assert flops.count(jax.grad(jax.checkpoint(layers)), x) > flops.count(jax.grad(layers), x)


def test_peak_is_the_data_sheet_s_or_measured(monkeypatch):
    monkeypatch.setattr(flops, "median_seconds", lambda call, repeats: 0.5)
    assert flops.peak("float32") == 2 * 1024**3 / 0.5

    class Device:
        device_kind = "NVIDIA H200"

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert flops.peak("bfloat16") == 989e12
