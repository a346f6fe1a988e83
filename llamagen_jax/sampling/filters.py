"""What becomes of logits before a code is drawn from them.

Axes: V vocabulary.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from llamagen_jax.models.layers import AnyArray


def filter_logits(
    logits: Float[AnyArray, "*rows V"], top_k: int = 0, top_p: Float[AnyArray, ""] | float = 1.0
) -> Float[Array, "*rows V"]:
    """Sets the logits outside the top-k, then those outside the top-p set, to -inf.

    As the original: ties with the k-th logit stay, and so does the first code over top_p.
    """
    logits = jnp.asarray(logits)
    if top_k:
        logits = keep_top_k(logits, top_k)
    if isinstance(top_p, float) and top_p >= 1:
        return logits
    return keep_top_p(logits, top_p)


def keep_top_k(
    logits: Float[AnyArray, "*rows V"], k: Integer[AnyArray, "*#rows 1"] | int
) -> Float[Array, "*rows V"]:
    """-inf outside the k largest of each row, 1 <= k <= V, and those tied with the last."""
    return jnp.where(logits < kth_largest(logits, k), -jnp.inf, logits)


def keep_top_p(
    logits: Float[AnyArray, "*rows V"],
    p: Float[AnyArray, ""] | Float[AnyArray, "*#rows 1"] | float,
) -> Float[Array, "*rows V"]:
    """-inf after the first code of each row that brings the probability over p."""
    order = jnp.argsort(logits, axis=-1, descending=True)
    probs = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1))
    outside = jnp.cumsum(probs, axis=-1) - probs > p
    outside = jnp.put_along_axis(jnp.zeros_like(outside), order, outside, axis=-1, inplace=False)
    return jnp.where(outside, -jnp.inf, logits)


def kth_largest(
    values: Float[AnyArray, "*rows V"], k: Integer[AnyArray, "*#rows 1"] | int
) -> Float[Array, "*rows 1"]:
    """The k-th largest float32 value of each row, 1 <= k <= V, counting equal ones apart.

    It is found bit by bit by counting, which is many times faster than a partial sort of a large
    vocabulary.
    """
    bits = jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    # Unsigned numbers in the order of the floats.
    ordered = jnp.where(bits & sign, ~bits, bits | sign)

    def set_bit(i, found):
        higher = found | sign >> i.astype(jnp.uint32)
        enough = jnp.sum(ordered >= higher, axis=-1, keepdims=True) >= k
        return jnp.where(enough, higher, found)

    nothing = jnp.zeros((*values.shape[:-1], 1), jnp.uint32)
    found = jax.lax.fori_loop(0, 32, set_bit, nothing)
    return jax.lax.bitcast_convert_type(jnp.where(found & sign, found ^ sign, ~found), jnp.float32)


def guide(
    cond: Float[Array, "*rows V"],
    uncond: Float[Array, "*rows V"],
    scale: AnyArray | float,
) -> Float[Array, "*rows V"]:
    """Classifier-free guidance of logits (arXiv 2207.12598)."""
    return uncond + scale * (cond - uncond)
