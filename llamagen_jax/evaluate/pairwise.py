"""Every feature vector against every other, in blocks that bound the memory.

Axes: M reference, N samples, D features.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from llamagen_jax.errors import InputError

# Large enough that a block's product hides its transfer; its distances are 64 MiB.
_BLOCK = 4096


def blocks(count: int) -> Iterator[slice]:
    """Slices of 0..`count`, each of `_BLOCK` but for the last."""
    return (slice(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK))


def squared_distances(u: jax.Array, v: jax.Array) -> jax.Array:
    """Squared Euclidean distances [B, C] of [B, D] and [C, D], in their dtype; not to be jitted."""
    # In one program with the norms, XLA multiplies several times slower on CPUs.
    return _expand(u, v, _squared_norms(u), _squared_norms(v))


@jax.jit
def _squared_norms(u: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(u), axis=1)


@jax.jit
def _expand(u: jax.Array, v: jax.Array, norms_u: jax.Array, norms_v: jax.Array) -> jax.Array:
    products = jnp.matmul(u, v.T, precision="highest")
    return jnp.maximum(norms_u[:, None] - 2 * products + norms_v, 0)


def check_features(reference: np.ndarray, samples: np.ndarray) -> None:
    """Raises InputError unless they are finite and real, [M, D] and [N, D], M and N positive."""
    shapes = (reference.shape, samples.shape)
    if any(len(shape) != 2 or 0 in shape for shape in shapes) or shapes[0][1] != shapes[1][1]:
        raise InputError(
            f"features of reference and samples are [M, D] and [N, D], not {shapes[0]} and "
            f"{shapes[1]}; were they made by the same network?"
        )
    for name, features in (("the reference", reference), ("the samples", samples)):
        if not all(np.isfinite(features[rows]).all() for rows in blocks(len(features))):
            raise InputError(
                f"features of {name} hold NaN or infinity; check the images and the network"
            )
