"""The consistency decoder of Stable Diffusion's latents (github.com/openai/consistencydecoder).

A U-Net turns noise into the image in two steps (arXiv 2303.01469), given the latents.

Axes: B batch, H W pixels, h w latent grid, Z latent channels, C channels, F features of the time.
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from llamagen_jax.models.kl_vae import KLVAEConfig
from llamagen_jax.models.layers import AnyArray
from llamagen_jax.models.vqgan import Encoder

_TIMES = 1024
# Of the two steps; noise is largest at the end.
_STEPS = (1008, 512)
_SIGMA_DATA = 0.5
# Of the latents: the scale that diffusion has them at, then mean and deviation of each channel.
_SCALE = 0.18215
_MEANS = (0.38862467, 0.02253063, 0.07381133, -0.0171294)
_DEVIATIONS = (0.9654121, 1.0440036, 0.76147926, 0.77022034)


@dataclasses.dataclass(frozen=True)
class ConsistencyDecoderConfig:
    """Sizes of encoder and U-Net; the defaults are the published ones.

    Attributes:
      vae: of the encoder, that of Stable Diffusion, with 4 latent channels.
      unet_channels: at each resolution of the U-Net, the highest first.
      unet_res_blocks: at each of them on the way down; one more on the way up.

    Raises:
      ValueError: a size is impossible (the message names the field).
    """

    vae: KLVAEConfig | dict = dataclasses.field(default_factory=KLVAEConfig)
    unet_channels: tuple[int, ...] | list[int] = (320, 640, 1024, 1024)
    unet_res_blocks: int = 3
    dtype: str = "float32"

    def __post_init__(self):
        # Of JSON they are a map and a list.
        vae = KLVAEConfig(**self.vae) if isinstance(self.vae, dict) else self.vae
        object.__setattr__(self, "vae", vae)
        object.__setattr__(self, "unet_channels", tuple(self.unet_channels))
        if vae.latent_channels != len(_MEANS):
            raise ValueError(f"vae.latent_channels={vae.latent_channels} must be {len(_MEANS)}")
        if not self.unet_channels or any(c < 1 or c % 32 for c in self.unet_channels):
            raise ValueError(
                f"unet_channels={self.unet_channels} must be positive multiples of 32 "
                "(GroupNorm groups)"
            )
        if self.unet_res_blocks < 1:
            raise ValueError(f"unet_res_blocks={self.unet_res_blocks} must be positive")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype={self.dtype!r} must be 'float32' or 'bfloat16'")

    @property
    def encoder(self) -> KLVAEConfig:
        """`vae`, whatever it was given as."""
        assert isinstance(self.vae, KLVAEConfig)
        return self.vae

    @property
    def downsampling(self) -> int:
        """Side in pixels of the image patch that one latent stands for."""
        return self.encoder.downsampling

    @property
    def codebook_size(self) -> None:
        """There is no codebook."""
        return None


class ConsistencyDecoder(nn.Module):
    """Encoder of the latents, and the decoder."""

    config: ConsistencyDecoderConfig

    def setup(self):
        c = self.config
        self.encoder = Encoder(c.encoder.sides)
        self.quant_conv = nn.Conv(2 * c.encoder.latent_channels, (1, 1), dtype=jnp.dtype(c.dtype))
        self.unet = UNet(c)

    def __call__(self, images: Float[AnyArray, "B H W 3"]) -> Float[Array, "B H W 3"]:
        """Reconstructs images, float [B, H, W, 3] in [-1, 1]."""
        return self.decode(self.encode(images))

    def encode(self, images: Float[AnyArray, "B H W 3"]) -> Float[Array, "B h w Z"]:
        """Images, float [B, H, W, 3] in [-1, 1], to the mean of their latents, float32."""
        moments = self.quant_conv(self.encoder(images)).astype(jnp.float32)
        return moments[..., : self.config.encoder.latent_channels]

    def decode(self, latents: Float[AnyArray, "B h w Z"]) -> Float[Array, "B H W 3"]:
        """Latents, unscaled, to float32 images, roughly in [-1, 1].

        The noise is the same for every image and call, see `noise`.
        """
        latents = (latents * _SCALE - np.array(_MEANS)) / np.array(_DEVIATIONS)
        times = self.config.downsampling
        latents = jnp.repeat(jnp.repeat(latents, times, axis=1), times, axis=2)
        kept = _kept()
        first, second = _STEPS
        size = latents.shape[1:3]
        x = jnp.sqrt(1 - kept[first]) * noise(0, *size)
        image = self._denoise(jnp.broadcast_to(x, (*latents.shape[:3], 3)), latents, first)
        x = jnp.sqrt(kept[second]) * image + jnp.sqrt(1 - kept[second]) * noise(1, *size)
        return self._denoise(x, latents, second)

    def _denoise(self, x, latents, time: int):
        """The image that noisy `x` is of (arXiv 2303.01469, section 3, `x` of variance kept)."""
        kept = _kept()[time]
        sigma = np.sqrt(1 / kept - 1)
        scale = np.sqrt(1 / kept) / np.sqrt(sigma**2 + _SIGMA_DATA**2)
        found = self.unet(jnp.concatenate([x * scale, latents], axis=-1), time)[..., :3]
        skipped = np.sqrt(1 / kept) * _SIGMA_DATA**2 / (sigma**2 + _SIGMA_DATA**2) * x
        return sigma * _SIGMA_DATA / np.sqrt(sigma**2 + _SIGMA_DATA**2) * found + skipped


def noise(step: int, height: int, width: int) -> Float[Array, "H W 3"]:
    """Standard normal noise of a step, 0 or 1: equal latents then always give equal images."""
    return jax.random.normal(jax.random.fold_in(jax.random.key(0), step), (height, width, 3))


@functools.cache
def _kept() -> np.ndarray:
    """The share of the image's variance that is kept at each time, float32 [1024]."""

    def share(time):
        return math.cos((time / _TIMES + 0.008) / 1.008 * math.pi / 2) ** 2

    lost = [min(1 - share(time + 1) / share(time), 0.999) for time in range(_TIMES)]
    return np.cumprod(1 - np.array(lost, np.float32))


class UNet(nn.Module):
    """[B, H, W, 3 + Z] and a time to [B, H, W, 6], of which the second half is not used."""

    config: ConsistencyDecoderConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], time: int) -> Float[Array, "B H W 6"]:
        c = self.config
        dtype, last = jnp.dtype(c.dtype), len(c.unet_channels) - 1
        width = c.unet_channels[0]
        embedded = nn.Embed(_TIMES, width, dtype=dtype, name="time")(jnp.array([time]))
        embedded = nn.swish(nn.Dense(4 * width, dtype=dtype, name="time_in")(embedded))
        embedded = nn.swish(nn.Dense(4 * width, dtype=dtype, name="time_out")(embedded))

        def block(x, channels, name, resample="none"):
            return TimedResBlock(channels, resample, dtype, name=name)(x, embedded)

        x = _conv(width, dtype, "conv_in")(x)
        skips = [x]
        for level, channels in enumerate(c.unet_channels):
            for number in range(c.unet_res_blocks):
                x = block(x, channels, f"down_{level}_res_{number}")
                skips.append(x)
            if level != last:
                x = block(x, channels, f"down_{level}_downsample", "down")
                skips.append(x)
        for number in range(2):
            x = block(x, c.unet_channels[-1], f"middle_res_{number}")
        for level, channels in enumerate(reversed(c.unet_channels)):
            for number in range(c.unet_res_blocks + 1):
                x = jnp.concatenate([x, skips.pop()], axis=-1)
                x = block(x, channels, f"up_{level}_res_{number}")
            if level != last:
                x = block(x, channels, f"up_{level}_upsample", "up")
        x = nn.swish(_norm(dtype, "norm_out")(x))
        return _conv(6, dtype, "conv_out")(x).astype(jnp.float32)


class TimedResBlock(nn.Module):
    """Two convolutions around a shortcut, scaled and shifted by the time between them.

    Attributes:
      resample: "down" halves the sides before the first, "up" doubles them, "none" leaves them.
    """

    channels: int
    resample: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], time: Float[Array, "1 F"]
    ) -> Float[Array, "B _ _ _"]:
        y = nn.swish(_norm(self.dtype, "norm1")(x))
        if self.resample == "down":
            x, y = (nn.avg_pool(side, (2, 2), strides=(2, 2)) for side in (x, y))
        elif self.resample == "up":
            x, y = (jnp.repeat(jnp.repeat(side, 2, axis=1), 2, axis=2) for side in (x, y))
        y = _conv(self.channels, self.dtype, "conv1")(y)
        moved = nn.Dense(2 * self.channels, dtype=self.dtype, name="time")(time)
        scale, shift = jnp.split(moved[:, None, None], 2, axis=-1)
        y = nn.swish(_norm(self.dtype, "norm2")(y) * (1 + scale) + shift)
        y = _conv(self.channels, self.dtype, "conv2")(y)
        if x.shape[-1] != self.channels:
            x = nn.Conv(self.channels, (1, 1), dtype=self.dtype, name="shortcut")(x)
        return x + y


def _conv(channels: int, dtype: jnp.dtype, name: str) -> nn.Conv:
    return nn.Conv(channels, (3, 3), dtype=dtype, name=name)


def _norm(dtype: jnp.dtype, name: str) -> nn.GroupNorm:
    return nn.GroupNorm(32, epsilon=1e-5, dtype=dtype, name=name)
