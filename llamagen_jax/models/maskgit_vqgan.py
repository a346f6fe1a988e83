"""MaskGIT's VQGAN: images to a grid of codes and back (arXiv 2202.04200, section 3.1).

Unlike `VQGAN` it has no attention, halves the sides by averaging, and its shortcut does not lead
around a block that changes the number of channels but through its result.

Axes: B batch, H W pixels, h w code grid, C channels, K codebook entries.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer

from llamagen_jax.models.codebook import Codebook, check_sides, check_sizes
from llamagen_jax.models.layers import AnyArray


@dataclasses.dataclass(frozen=True)
class MaskGITVQGANConfig:
    """Sizes of a MaskGIT VQGAN; the defaults are the published ones (55M parameters).

    Raises:
      ValueError: a size is impossible (the message names the field).
    """

    base_channels: int = 128
    channel_multipliers: tuple[int, ...] | list[int] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    codebook_size: int = 1024
    codebook_dim: int = 256
    dtype: str = "float32"

    def __post_init__(self):
        # Of JSON they are a list.
        object.__setattr__(self, "channel_multipliers", tuple(self.channel_multipliers))
        check_sizes(self, "num_res_blocks", "codebook_size", "codebook_dim")

    @property
    def downsampling(self) -> int:
        """Side in pixels of the image patch that one code stands for."""
        return 2 ** (len(self.channel_multipliers) - 1)


class MaskGITVQGAN(nn.Module):
    """Encoder, codebook, decoder; the weights see pixels in [0, 1]."""

    config: MaskGITVQGANConfig

    def setup(self):
        c = self.config
        self.encoder = Encoder(c)
        self.decoder = Decoder(c)
        self.quantizer = Codebook(c.codebook_size, c.codebook_dim, l2_normalize=False)

    def __call__(self, images: Float[AnyArray, "B H W 3"]) -> Float[Array, "B H W 3"]:
        """Reconstructs `images`, as of `encode`."""
        return self.decode(self.encode(images))

    def encode(self, images: Float[AnyArray, "B H W 3"]) -> Int[Array, "B h w"]:
        """Images, float [B, H, W, 3] in [-1, 1], to int32 codes [B, h, w].

        Raises:
          ValueError: `downsampling` does not divide the sides.
        """
        check_sides(images, self.config.downsampling)
        latents = self.encoder((images + 1) / 2).astype(jnp.float32)
        return self.quantizer.nearest(latents)

    def decode(self, codes: Integer[Array, "B h w"]) -> Float[Array, "B H W 3"]:
        """Codes, int [B, h, w], to float32 images [B, H, W, 3], roughly in [-1, 1]."""
        return 2 * self.decoder(self.quantizer.embed(codes)).astype(jnp.float32) - 1


class Encoder(nn.Module):
    """Images [B, H, W, 3] in [0, 1] to latents [B, h, w, codebook_dim]."""

    config: MaskGITVQGANConfig

    @nn.compact
    def __call__(self, images: Float[AnyArray, "B H W 3"]) -> Float[Array, "B h w C"]:
        c = self.config
        x = _conv(c.base_channels, 3, c, "conv_in", bias=False)(images)
        for level, multiplier in enumerate(c.channel_multipliers):
            if level:
                x = nn.avg_pool(x, (2, 2), strides=(2, 2))
            x = _blocks(x, c.base_channels * multiplier, c, f"level_{level}")
        x = _blocks(x, x.shape[-1], c, "middle")
        x = nn.swish(_norm(c, "norm_out")(x))
        return _conv(c.codebook_dim, 1, c, "conv_out")(x)


class Decoder(nn.Module):
    """Entries [B, h, w, codebook_dim] to images [B, H, W, 3]; level 0 is the lowest resolution."""

    config: MaskGITVQGANConfig

    @nn.compact
    def __call__(self, entries: Float[AnyArray, "B h w C"]) -> Float[Array, "B H W 3"]:
        c = self.config
        x = _conv(c.base_channels * c.channel_multipliers[-1], 3, c, "conv_in")(entries)
        x = _blocks(x, x.shape[-1], c, "middle")
        for level, multiplier in enumerate(reversed(c.channel_multipliers)):
            if level:
                x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
                x = _conv(x.shape[-1], 3, c, f"level_{level}_upsample")(x)
            x = _blocks(x, c.base_channels * multiplier, c, f"level_{level}")
        x = nn.swish(_norm(c, "norm_out")(x))
        return _conv(3, 3, c, "conv_out")(x)


class ResBlock(nn.Module):
    """Two normalised 3x3 convolutions, added to the input where it has as many channels.

    Elsewhere the original adds a 1x1 convolution of their result instead, and released weights
    depend on it.
    """

    channels: int
    config: MaskGITVQGANConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W F"]:
        c = self.config
        y = nn.swish(_norm(c, "norm1")(x))
        y = _conv(self.channels, 3, c, "conv1", bias=False)(y)
        y = nn.swish(_norm(c, "norm2")(y))
        y = _conv(self.channels, 3, c, "conv2", bias=False)(y)
        if x.shape[-1] != self.channels:
            x = _conv(self.channels, 1, c, "shortcut", bias=False)(y)
        return x + y


def _blocks(x, channels, c: MaskGITVQGANConfig, name):
    for block in range(c.num_res_blocks):
        x = ResBlock(channels, c, name=f"{name}_res_{block}")(x)
    return x


def _conv(channels, kernel, c: MaskGITVQGANConfig, name, *, bias=True):
    dtype = jnp.dtype(c.dtype)
    return nn.Conv(channels, (kernel, kernel), use_bias=bias, dtype=dtype, name=name)


def _norm(c: MaskGITVQGANConfig, name: str):
    return nn.GroupNorm(32, epsilon=1e-6, dtype=jnp.dtype(c.dtype), name=name)
