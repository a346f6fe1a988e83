import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llamagen_jax.models import layers


def gradients(x):
    model = layers.dense(6, "float32", "dense")
    params = model.init(jax.random.key(0), x)
    return jax.grad(lambda x, params: jnp.sum(model.apply(params, x) ** 2), (0, 1))(x, params)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_the_gradient_for_cpus_is_theirs_alone(monkeypatch, platform):
    x = jax.random.normal(jax.random.key(1), (2, 3, 4))
    on_cpu = gradients(x)

    def refuse(x, kernel):
        raise AssertionError

    monkeypatch.setattr(layers, "_product", refuse)
    with pytest.raises(AssertionError):
        gradients(x)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), on_cpu, gradients(x))
