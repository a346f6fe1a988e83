"""Layers that the transformers share.

Axes: B batch, D width, F features.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from llamagen_jax.models.int8 import Int8Dense

# What users hand to models may be of either kind.
AnyArray = jax.Array | np.ndarray

normal_init = nn.initializers.normal(0.02)


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, computed in float32, returned in x's dtype."""

    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y**2, axis=-1, keepdims=True) + self.epsilon)
        return (y * scale).astype(x.dtype)


def dense(features: int, dtype: str, name: str, weights: str = "float") -> nn.Dense | Int8Dense:
    """x [..., D] to [..., F] in the compute dtype, without bias; `weights` as of `Llama`."""
    if weights == "int8":
        return Int8Dense(features, dtype, name=name)
    on_cpu = jax.default_backend() == "cpu"
    return nn.Dense(
        features,
        use_bias=False,
        dtype=jnp.dtype(dtype),
        kernel_init=normal_init,
        dot_general=(lambda x, kernel, *_, **__: _product(x, kernel)) if on_cpu else None,
        name=name,
    )


def squares(images: Shaped[Array, "B H W C"], side: int) -> Shaped[Array, "B h w values"]:
    """The values of each square of side x side pixels, row by row; `side` divides H and W."""
    B, H, W, C = images.shape
    h, w = H // side, W // side
    cut = images.reshape(B, h, side, w, side, C).swapaxes(2, 3)
    return cut.reshape(B, h, w, side * side * C)


def split_batch(x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    """Keeps the examples of x [B, ...] split over the mesh that is set, where they divide over it.

    Left to itself the partitioner may rather split x like the embedding table, along D, and copy
    all examples to every device.
    """
    ways = jax.sharding.get_abstract_mesh().shape
    if "data" not in ways or x.shape[0] % (ways["data"] * ways["fsdp"]):
        return x
    return jax.lax.with_sharding_constraint(x, jax.P(("data", "fsdp")))


@jax.custom_vjp
def _product(x, kernel):
    """x [..., D] times kernel [D, F]."""
    return jnp.dot(x, kernel)


def _product_forward(x, kernel):
    return _product(x, kernel), (x, kernel)


def _product_backward(saved, dy):
    x, kernel = saved
    leading = tuple(range(x.ndim - 1))
    # JAX's own rule asks for dy transposed; on CPU, XLA then computes the SwiGLU's gradients twice,
    # once element by element inside that copy.
    return jnp.dot(dy, kernel.T), jnp.tensordot(x, dy, (leading, leading))


_product.defvjp(_product_forward, _product_backward)
