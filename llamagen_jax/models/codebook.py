"""What image tokenizers share: the codebook, which sides of images they take, and sizes.

Axes: B batch, H W pixels, E code width, K codebook entries.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer

from llamagen_jax.errors import check_finite
from llamagen_jax.models.layers import AnyArray


class Codebook(nn.Module):
    """Nearest-neighbour look-up among learned entries, in float32 whatever the compute dtype.

    Attributes:
      size: K, how many entries there are.
      width: E, of an entry.
      l2_normalize: latents and entries are compared, and looked up, at length 1.
    """

    size: int
    width: int
    l2_normalize: bool

    def setup(self):
        def init(key, shape):
            codebook = jax.random.uniform(key, shape, minval=-1 / shape[0], maxval=1 / shape[0])
            return l2_normalize(codebook) if self.l2_normalize else codebook

        self.codebook = self.param("codebook", init, (self.size, self.width))

    def _entries(self):
        return l2_normalize(self.codebook) if self.l2_normalize else self.codebook

    def scores(self, latents: Float[AnyArray, "*place E"]) -> Float[Array, "*place K"]:
        """Minus half the squared distance to each entry, up to a constant of each latent.

        The latents are normalised already where entries are.
        """
        entries = self._entries()
        products = jnp.dot(latents, entries.T, precision=jax.lax.Precision.HIGHEST)
        return products - 0.5 * jnp.sum(entries**2, axis=-1)

    def nearest(self, prequant: Float[AnyArray, "*place E"]) -> Int[Array, "*place"]:
        """Latents, float [..., E], to the int32 index [...] of the nearest entry."""
        latents = l2_normalize(prequant) if self.l2_normalize else prequant
        return jnp.argmax(self.scores(latents), axis=-1).astype(jnp.int32)

    def embed(self, codes: Integer[Array, "*place"]) -> Float[Array, "*place E"]:
        """Codes, int [...], to float32 (normalised) entries [..., E]."""
        return self._entries()[codes]


def l2_normalize(x: Float[AnyArray, "*place E"]) -> Float[Array, "*place E"]:
    """x at length 1 along the last axis; zeros stay zeros."""
    return jnp.asarray(x) * jax.lax.rsqrt(jnp.maximum(jnp.sum(x**2, axis=-1, keepdims=True), 1e-24))


def check_sides(images: Float[AnyArray, "B H W 3"], downsampling: int) -> None:
    """Raises ValueError where `downsampling` does not divide the sides of the images."""
    for side in images.shape[1:3]:
        if side % downsampling:
            raise ValueError(
                f"image side {side} is not divisible by the tokenizer's downsampling "
                f"of {downsampling}"
            )


def check_sizes(config: Any, *positive: str, norm_groups: int = 32) -> None:
    """Raises ValueError unless a tokenizer's configuration describes a possible model.

    It names the field that is wrong.

    Args:
      config: with base_channels, channel_multipliers and dtype.
      positive: its fields that must be above 0.
      norm_groups: groups that GroupNorm splits the channels into.
    """
    check_finite(config)
    for field in positive:
        if getattr(config, field) < 1:
            raise ValueError(f"{field}={getattr(config, field)} must be positive")
    if config.base_channels < 1 or config.base_channels % norm_groups:
        raise ValueError(
            f"base_channels={config.base_channels} must be a positive multiple of {norm_groups} "
            "(GroupNorm groups)"
        )
    if not config.channel_multipliers or min(config.channel_multipliers) < 1:
        raise ValueError(f"channel_multipliers={config.channel_multipliers} must be positive")
    if config.dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype={config.dtype!r} must be 'float32' or 'bfloat16'")
