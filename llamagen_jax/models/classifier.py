"""A small classifier, whose features stand in for Inception's where images are few and simple.

Axes: B batch, S side in pixels, h positions a side, K classes, F features.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from llamagen_jax.images import from_uint8
from llamagen_jax.models.layers import AnyArray

_GROUPS = 4


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """Sizes of a classifier.

    Attributes:
      image_size: side in pixels of the images, a multiple of 8.
      classes: how many it tells apart.
      channels: of the first of three layers, a multiple of 4; each has twice those before it.

    Raises:
      ValueError: a value is impossible (the message names the field).
    """

    image_size: int
    classes: int
    channels: int = 16

    def __post_init__(self):
        if self.image_size < 8 or self.image_size % 8:
            raise ValueError(f"image_size={self.image_size} must be a positive multiple of 8")
        if self.classes < 2:
            raise ValueError(f"classes={self.classes} must be at least 2")
        if self.channels < _GROUPS or self.channels % _GROUPS:
            raise ValueError(f"channels={self.channels} must be a positive multiple of {_GROUPS}")


class ClassifierFeatures(NamedTuple):
    """What distances between sets of images are computed from, as of `InceptionFeatures`.

    Attributes:
      pool: float32 [B, 4 * channels], the mean over the last layer's positions.
      logits: float32 [B, K], the class scores.
      spatial: float32 [B, h, h, 4], the last layer's first channels, h = S / 8.
    """

    pool: Float[Array, "B F"]
    logits: Float[Array, "B K"]
    spatial: Float[Array, "B h h 4"]


class Classifier(nn.Module):
    """Three convolutions that halve the image, in float32 and at the device's highest precision."""

    config: ClassifierConfig

    @nn.compact
    def __call__(self, images: UInt8[AnyArray, "B S S 3"]) -> ClassifierFeatures:
        """Features of uint8 images [B, S, S, 3] of the configuration's size."""
        with jax.default_matmul_precision("highest"):
            x = from_uint8(jnp.asarray(images))
            for number in range(3):
                channels = self.config.channels * 2**number
                x = nn.Conv(channels, (3, 3), 2, use_bias=False, name=f"conv_{number}")(x)
                x = nn.relu(nn.GroupNorm(_GROUPS, name=f"norm_{number}")(x))
            pool = x.mean(axis=(1, 2))
            logits = nn.Dense(self.config.classes, name="head")(pool)
        return ClassifierFeatures(pool, logits, x[..., :4])
