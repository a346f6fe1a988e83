"""Matrices of int8 with a float32 scale for each output, for decoding.

Axes: D width, F features.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# The largest magnitude that is used, so that an integer's negative is one too.
_LARGEST = 127

# {"integers": int8 [F, D], which XLA multiplies as it lies, "scale": float32 [F]}.
Int8Matrix = Mapping[str, jax.Array]


def quantise(matrix: Float[jax.Array | np.ndarray, "D F"]) -> Int8Matrix:
    """A float matrix [D, F] rounded, each output's greatest weight to 127 or -127."""
    matrix = jnp.asarray(matrix, jnp.float32).T
    scale = _scale(matrix)
    return {"integers": jnp.round(matrix / scale).astype(jnp.int8), "scale": scale[:, 0]}


def zeros(width: int, features: int) -> Int8Matrix:
    """A matrix [D, F] of zeros."""
    return {"integers": jnp.zeros((features, width), jnp.int8), "scale": jnp.ones(features)}


def product(
    x: Float[jax.Array | np.ndarray, "*rows D"], matrix: Int8Matrix
) -> Float[Array, "*rows F"]:
    """x [..., D] times a matrix [D, F] of `quantise`, float32."""
    if jax.default_backend() == "cpu":
        return _integer_product(x, matrix["integers"]) * matrix["scale"]
    return _dot(x, matrix["integers"].astype(x.dtype), jnp.float32) * matrix["scale"]


class Int8Dense(nn.Module):
    """x [..., D] to [..., F] in the compute dtype, without bias."""

    features: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[jax.Array | np.ndarray, "*rows D"]) -> Float[Array, "*rows F"]:
        kernel = self.param("kernel", lambda _: zeros(x.shape[-1], self.features))
        return product(x, kernel).astype(self.dtype)


def _integer_product(x, integers):
    """x [..., D] times integers [F, D], where products of int8 are fast and widening is slow.

    x is split into two terms of int8 with a scale for each row, together as fine as 15 bits. Both
    are multiplied at once.
    """
    x = x.astype(jnp.float32)
    scale = _scale(x)
    finer = scale / (2 * _LARGEST)
    coarse = jnp.round(x / scale)
    fine = jnp.round((x - coarse * scale) / finer)
    coarse, fine = _dot(jnp.stack([coarse, fine]).astype(jnp.int8), integers, jnp.int32)
    return coarse * scale + fine * finer


def _dot(x, matrix, dtype):
    """x [..., D] times matrix [F, D]."""
    axes = ((x.ndim - 1,), (1,)), ((), ())
    return jax.lax.dot_general(x, matrix, axes, preferred_element_type=dtype)


def _scale(x):
    """What to divide each row of x [..., D] by so that its largest magnitude becomes 127."""
    return jnp.maximum(jnp.max(jnp.abs(x), -1, keepdims=True), 1e-30) / _LARGEST
