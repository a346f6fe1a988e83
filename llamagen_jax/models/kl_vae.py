"""The autoencoder of latent diffusion (arXiv 2112.10752): images to continuous latents and back.

Axes: B batch, H W pixels, h w latent grid, Z latent channels.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from llamagen_jax.models.layers import AnyArray
from llamagen_jax.models.vqgan import Decoder, Encoder, VQGANConfig


@dataclasses.dataclass(frozen=True)
class KLVAEConfig:
    """Sizes of a KL-regularised autoencoder; the defaults are Stable Diffusion's f8 (84M).

    Attributes:
      latent_channels: of the latents; the encoder also gives as many log variances.
      base_channels, channel_multipliers, num_res_blocks, attention, dtype: of `VQGANConfig`.

    Raises:
      ValueError: a size is impossible (the message names the field).
    """

    base_channels: int = 128
    channel_multipliers: tuple[int, ...] | list[int] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attention: str = "middle"
    latent_channels: int = 4
    dtype: str = "float32"

    def __post_init__(self):
        object.__setattr__(self, "channel_multipliers", tuple(self.channel_multipliers))
        if self.latent_channels < 1:
            raise ValueError(f"latent_channels={self.latent_channels} must be positive")
        _ = self.sides

    @property
    def sides(self) -> VQGANConfig:
        """The configuration of the encoder and the decoder, which are those of a VQGAN."""
        return VQGANConfig(
            base_channels=self.base_channels,
            channel_multipliers=self.channel_multipliers,
            num_res_blocks=self.num_res_blocks,
            attention=self.attention,
            z_channels=2 * self.latent_channels,
            dtype=self.dtype,
        )

    @property
    def downsampling(self) -> int:
        """Side in pixels of the image patch that one latent stands for."""
        return self.sides.downsampling

    @property
    def codebook_size(self) -> None:
        """There is no codebook."""
        return None


class KLVAE(nn.Module):
    """Encoder to a Gaussian over latents, and decoder."""

    config: KLVAEConfig

    def setup(self):
        c = self.config
        self.encoder = Encoder(c.sides)
        self.decoder = Decoder(c.sides)
        dtype = jnp.dtype(c.dtype)
        self.quant_conv = nn.Conv(2 * c.latent_channels, (1, 1), dtype=dtype)
        self.post_quant_conv = nn.Conv(c.latent_channels, (1, 1), dtype=dtype)

    def __call__(self, images: Float[AnyArray, "B H W 3"]) -> Float[Array, "B H W 3"]:
        """Reconstructs images, float [B, H, W, 3] in [-1, 1]."""
        return self.decode(self.encode(images))

    def encode(self, images: Float[AnyArray, "B H W 3"]) -> Float[Array, "B h w Z"]:
        """Images, float [B, H, W, 3] in [-1, 1], to the mean of their latents, float32."""
        moments = self.quant_conv(self.encoder(images)).astype(jnp.float32)
        return moments[..., : self.config.latent_channels]

    def decode(self, latents: Float[AnyArray, "B h w Z"]) -> Float[Array, "B H W 3"]:
        """Latents, unscaled, to float32 images, roughly in [-1, 1]."""
        return self.decoder(self.post_quant_conv(latents)).astype(jnp.float32)
