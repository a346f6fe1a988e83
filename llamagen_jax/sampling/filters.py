"""What becomes of logits before a code is drawn from them.

Axes: V vocabulary.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llamagen_jax.models.layers import AnyArray


def filter_logits(
    logits: Float[AnyArray, "*rows V"], top_k: int = 0, top_p: Float[AnyArray, ""] | float = 1.0
) -> Float[Array, "*rows V"]:
    """Sets the logits outside the top-k, then those outside the top-p set, to -inf.

    As the original: ties with the k-th logit stay, and so does the first code over top_p.
    """
    logits = jnp.asarray(logits)
    if top_k:
        smallest_kept = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits < smallest_kept, -jnp.inf, logits)
    if isinstance(top_p, float) and top_p >= 1:
        return logits
    order = jnp.argsort(logits, axis=-1, descending=True)
    probs = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1))
    outside = jnp.cumsum(probs, axis=-1) - probs > top_p
    outside = jnp.put_along_axis(jnp.zeros_like(outside), order, outside, axis=-1, inplace=False)
    return jnp.where(outside, -jnp.inf, logits)


def guide(
    cond: Float[Array, "*rows V"],
    uncond: Float[Array, "*rows V"],
    scale: AnyArray | float,
) -> Float[Array, "*rows V"]:
    """Classifier-free guidance of logits (arXiv 2207.12598)."""
    return uncond + scale * (cond - uncond)
