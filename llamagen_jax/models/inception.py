"""Inception v3 of 2015, whose features FID, sFID and the Inception Score are made of.

Source: arXiv 1512.00567. Later versions have 1000 classes, average pools that count padding, and no
max pool in the last block. Modules are called as in PyTorch's ports of it. The weights are not
trained here: see `weights.inception`.

Axes: B batch, H W pixels, h w positions, C channels.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped, UInt8

from llamagen_jax.models.layers import AnyArray

IMAGE_SIZE = 299
# sFID's share of the positions' channels.
_SPATIAL_CHANNELS = 7


class InceptionFeatures(NamedTuple):
    """What distances between sets of images are computed from.

    Attributes:
      pool: float32 [B, 2048], the mean over the last block's positions.
      logits_unbiased: float32 [B, 1008], the class scores without the bias, of the Inception Score.
      spatial: float32 [B, 17, 17, 7], the first channels of the 1x1 branch of the block that
        TensorFlow calls mixed_6, of sFID.
    """

    pool: Float[Array, "B 2048"]
    logits_unbiased: Float[Array, "B 1008"]
    spatial: Float[Array, "B 17 17 7"]


class Inception(nn.Module):
    """Features of images, in float32 and at the highest precision of the device.

    On accelerators the default precision makes features depend on the batch size.
    """

    def __call__(self, images: Shaped[AnyArray, "B H W 3"]) -> InceptionFeatures:
        """Features of uint8 images [B, H, W, 3] of any size, resized as TensorFlow's graph does.

        Raises:
          ValueError: the images are not uint8.
        """
        if images.dtype != np.uint8:
            raise ValueError(f"images are {images.dtype}; expected uint8")
        return self.features((resize(images, IMAGE_SIZE) - 128) / 128)

    @nn.compact
    def features(self, images: Float[AnyArray, "B 299 299 3"]) -> InceptionFeatures:
        """Features of images that the caller has resized, float [B, 299, 299, 3] in [-1, 1]."""
        with jax.default_matmul_precision("highest"):
            x = jnp.asarray(images, jnp.float32)
            x = ConvNorm(32, (3, 3), 2, "VALID", name="Conv2d_1a_3x3")(x)
            x = ConvNorm(32, (3, 3), 1, "VALID", name="Conv2d_2a_3x3")(x)
            x = ConvNorm(64, (3, 3), name="Conv2d_2b_3x3")(x)
            x = nn.max_pool(x, (3, 3), (2, 2))
            x = ConvNorm(80, (1, 1), name="Conv2d_3b_1x1")(x)
            x = ConvNorm(192, (3, 3), 1, "VALID", name="Conv2d_4a_3x3")(x)
            x = nn.max_pool(x, (3, 3), (2, 2))
            x = Block35(32, name="Mixed_5b")(x)
            x = Block35(64, name="Mixed_5c")(x)
            x = Block35(64, name="Mixed_5d")(x)
            x = Reduction17(name="Mixed_6a")(x)
            x = Block17(128, name="Mixed_6b")(x)
            x = Block17(160, name="Mixed_6c")(x)
            x = Block17(160, name="Mixed_6d")(x)
            # The block's first channels are those of its 1x1 branch.
            spatial = x[..., :_SPATIAL_CHANNELS]
            x = Block17(192, name="Mixed_6e")(x)
            x = Reduction8(name="Mixed_7a")(x)
            x = Block8(_average, name="Mixed_7b")(x)
            x = Block8(_maximum, name="Mixed_7c")(x)
            pool = x.mean(axis=(1, 2))
            logits = nn.Dense(1008, use_bias=False, name="fc")(pool)
        return InceptionFeatures(pool, logits, spatial)


def resize(images: UInt8[AnyArray, "B H W 3"], size: int) -> Float[Array, "B size size 3"]:
    """Bilinear as TensorFlow 1 resizes: pixel i is at i * H / size, without antialias.

    That is without half-pixel centres, so that images shift towards the upper left.

    Returns:
      float32 [B, size, size, 3] in [0, 255].
    """
    x = jnp.asarray(images).astype(jnp.float32)
    for axis in (2, 1):
        old = x.shape[axis]
        positions = np.arange(size, dtype=np.float32) * np.float32(old / size)
        low = positions.astype(int)
        shape = [size if a == axis else 1 for a in range(x.ndim)]
        weight = (positions - low.astype(np.float32)).reshape(shape)
        before, after = (x.take(i, axis) for i in (low, np.minimum(low + 1, old - 1)))
        x = before + (after - before) * weight
    return x


class ConvNorm(nn.Module):
    """Convolution without bias, batch normalisation by the stored statistics, ReLU."""

    channels: int
    kernel: tuple[int, int]
    strides: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B _ _ F"]:
        x = nn.Conv(
            self.channels,
            self.kernel,
            self.strides,
            padding=self.padding,
            use_bias=False,
            name="conv",
        )(x)
        return nn.relu(nn.BatchNorm(use_running_average=True, epsilon=1e-3, name="bn")(x))


class Block35(nn.Module):
    """Branches at 35x35 positions: 1x1, 5x5, 3x3 twice, and a pool."""

    pool_channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w F"]:
        point = ConvNorm(64, (1, 1), name="branch1x1")(x)
        five = ConvNorm(48, (1, 1), name="branch5x5_1")(x)
        five = ConvNorm(64, (5, 5), name="branch5x5_2")(five)
        double = ConvNorm(64, (1, 1), name="branch3x3dbl_1")(x)
        double = ConvNorm(96, (3, 3), name="branch3x3dbl_2")(double)
        double = ConvNorm(96, (3, 3), name="branch3x3dbl_3")(double)
        pool = ConvNorm(self.pool_channels, (1, 1), name="branch_pool")(_average(x))
        return jnp.concatenate([point, five, double, pool], axis=-1)


class Reduction17(nn.Module):
    """From 35x35 positions to 17x17."""

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B _ _ F"]:
        single = ConvNorm(384, (3, 3), 2, "VALID", name="branch3x3")(x)
        double = ConvNorm(64, (1, 1), name="branch3x3dbl_1")(x)
        double = ConvNorm(96, (3, 3), name="branch3x3dbl_2")(double)
        double = ConvNorm(96, (3, 3), 2, "VALID", name="branch3x3dbl_3")(double)
        return jnp.concatenate([single, double, nn.max_pool(x, (3, 3), (2, 2))], axis=-1)


class Block17(nn.Module):
    """Branches at 17x17 positions: 1x1, 7x7 once and twice in rows and columns, and a pool."""

    inner_channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w F"]:
        inner = self.inner_channels
        point = ConvNorm(192, (1, 1), name="branch1x1")(x)
        single = ConvNorm(inner, (1, 1), name="branch7x7_1")(x)
        single = ConvNorm(inner, (1, 7), name="branch7x7_2")(single)
        single = ConvNorm(192, (7, 1), name="branch7x7_3")(single)
        double = ConvNorm(inner, (1, 1), name="branch7x7dbl_1")(x)
        double = ConvNorm(inner, (7, 1), name="branch7x7dbl_2")(double)
        double = ConvNorm(inner, (1, 7), name="branch7x7dbl_3")(double)
        double = ConvNorm(inner, (7, 1), name="branch7x7dbl_4")(double)
        double = ConvNorm(192, (1, 7), name="branch7x7dbl_5")(double)
        pool = ConvNorm(192, (1, 1), name="branch_pool")(_average(x))
        return jnp.concatenate([point, single, double, pool], axis=-1)


class Reduction8(nn.Module):
    """From 17x17 positions to 8x8."""

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B _ _ F"]:
        three = ConvNorm(192, (1, 1), name="branch3x3_1")(x)
        three = ConvNorm(320, (3, 3), 2, "VALID", name="branch3x3_2")(three)
        seven = ConvNorm(192, (1, 1), name="branch7x7x3_1")(x)
        seven = ConvNorm(192, (1, 7), name="branch7x7x3_2")(seven)
        seven = ConvNorm(192, (7, 1), name="branch7x7x3_3")(seven)
        seven = ConvNorm(192, (3, 3), 2, "VALID", name="branch7x7x3_4")(seven)
        return jnp.concatenate([three, seven, nn.max_pool(x, (3, 3), (2, 2))], axis=-1)


class Block8(nn.Module):
    """Branches at 8x8 positions: 1x1, 3x3 once and twice in rows beside columns, and a pool."""

    pool: Callable[[Array], Array]

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w 2048"]:
        point = ConvNorm(320, (1, 1), name="branch1x1")(x)
        single = ConvNorm(384, (1, 1), name="branch3x3_1")(x)
        single_row = ConvNorm(384, (1, 3), name="branch3x3_2a")(single)
        single_column = ConvNorm(384, (3, 1), name="branch3x3_2b")(single)
        double = ConvNorm(448, (1, 1), name="branch3x3dbl_1")(x)
        double = ConvNorm(384, (3, 3), name="branch3x3dbl_2")(double)
        double_row = ConvNorm(384, (1, 3), name="branch3x3dbl_3a")(double)
        double_column = ConvNorm(384, (3, 1), name="branch3x3dbl_3b")(double)
        pool = ConvNorm(192, (1, 1), name="branch_pool")(self.pool(x))
        branches = [point, single_row, single_column, double_row, double_column, pool]
        return jnp.concatenate(branches, axis=-1)


def _average(x):
    """Means of 3x3 positions; those outside do not count."""
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _maximum(x):
    return nn.max_pool(x, (3, 3), padding="SAME")
