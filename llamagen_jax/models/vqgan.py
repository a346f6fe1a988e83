"""VQGAN tokenizer: images to a grid of codes and back (LlamaGen, arXiv 2406.06525, section 2.1).

With other sizes it is the VQGAN of taming-transformers (arXiv 2012.09841) and that of aMUSEd.

Axes: B batch, H W pixels, h w code grid, C channels, E code width, K codebook entries.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer

from llamagen_jax.models.codebook import Codebook, check_sides, check_sizes, l2_normalize
from llamagen_jax.models.layers import AnyArray, squares

# PyTorch's default for convolutions: U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
# Temperature of the code distribution whose entropies the original regularises.
_ENTROPY_TEMPERATURE = 0.01


@dataclasses.dataclass(frozen=True)
class VQGANConfig:
    """Sizes of a VQGAN; the defaults are the published VQ-16 (72M parameters).

    Attributes:
      attention: where encoder and decoder attend over the whole grid: "lowest" after every block at
        the lowest resolution and in the middle, "middle" only there, or "none".
      norm_groups: groups of channels that are normalised together, a divisor of base_channels. With
        as many groups as channels a flat image's colour is lost.
      encode_alone: `SquareEncoder` instead of `Encoder`, which sees each square of `downsampling`
        pixels without its surroundings, so that equal squares have equal codes in all images. Else
        a white square's code tells of all around it, which a generator of few images never learns.
      unit_pixels: the weights see pixels in [0, 1]; images here are in [-1, 1] all the same.

    Raises:
      ValueError: a size is impossible (the message names the field).
    """

    base_channels: int = 128
    channel_multipliers: tuple[int, ...] | list[int] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attention: str = "lowest"
    norm_groups: int = 32
    encode_alone: bool = False
    z_channels: int = 256
    codebook_size: int = 16384
    codebook_dim: int = 8
    l2_normalize: bool = True
    unit_pixels: bool = False
    commitment_weight: float = 0.25
    entropy_weight: float = 0.0
    dtype: str = "float32"

    def __post_init__(self):
        # Of JSON they are a list.
        object.__setattr__(self, "channel_multipliers", tuple(self.channel_multipliers))
        sizes = ("num_res_blocks", "z_channels", "codebook_size", "codebook_dim", "norm_groups")
        check_sizes(self, *sizes, norm_groups=self.norm_groups)
        for field in ("commitment_weight", "entropy_weight"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field}={getattr(self, field)} must not be negative")
        if self.attention not in ("lowest", "middle", "none"):
            raise ValueError(f"attention={self.attention!r} must be 'lowest', 'middle' or 'none'")

    @property
    def downsampling(self) -> int:
        """Side in pixels of the image patch that one code stands for."""
        return 2 ** (len(self.channel_multipliers) - 1)


class VQGANOutput(NamedTuple):
    """What a forward pass computes.

    Attributes:
      reconstruction: float32 [B, H, W, 3], roughly in [-1, 1].
      codes: int32 [B, h, w].
      prequant: float32 [B, h, w, E], the latent before normalisation and look-up.
      vq_loss: scalar, mean squared distance that pulls codebook entries to latents.
      commitment_loss: scalar, the same distance pulling latents, times `commitment_weight`.
      entropy_loss: scalar, times `entropy_weight`; not computed (0) when that is 0.
    """

    reconstruction: Float[Array, "B H W 3"]
    codes: Int[Array, "B h w"]
    prequant: Float[Array, "B h w E"]
    vq_loss: Float[Array, ""]
    commitment_loss: Float[Array, ""]
    entropy_loss: Float[Array, ""]


class VQGAN(nn.Module):
    """Encoder, codebook (l2-normalised or not) with straight-through gradient, decoder."""

    config: VQGANConfig

    def setup(self):
        c = self.config
        self.encoder = SquareEncoder(c) if c.encode_alone else Encoder(c)
        self.decoder = Decoder(c)
        self.quantizer = Quantizer(
            c.codebook_size, c.codebook_dim, c.l2_normalize, c.commitment_weight, c.entropy_weight
        )
        self.quant_conv = _conv(c.codebook_dim, 1, c)
        self.post_quant_conv = _conv(c.z_channels, 1, c)

    def __call__(self, images: Float[AnyArray, "B H W 3"]) -> VQGANOutput:
        """Reconstructs `images`, float [B, H, W, 3] in [-1, 1], sides divisible by `downsampling`.

        The gradient of the reconstruction passes the look-up unchanged to the (normalised) latent.
        """
        prequant = self._latents(images)
        quantized, codes, losses = self.quantizer(prequant)
        reconstruction = self._pixels(quantized)
        return VQGANOutput(reconstruction, codes, prequant, *losses)

    def encode(self, images: Float[Array, "B H W 3"]) -> Int[Array, "B h w"]:
        """Images, float [B, H, W, 3] in [-1, 1], to int32 codes [B, h, w]."""
        return self.quantizer.nearest(self._latents(images))

    def decode(self, codes: Integer[Array, "B h w"]) -> Float[Array, "B H W 3"]:
        """Codes, int [B, h, w], to float32 images [B, H, W, 3] in [-1, 1].

        Not clipped: like any regression the decoder overshoots a little at saturated pixels.
        """
        return self._pixels(self.quantizer.embed(codes))

    def _latents(self, images):
        check_sides(images, self.config.downsampling)
        if self.config.unit_pixels:
            images = (images + 1) / 2
        return self.quant_conv(self.encoder(images)).astype(jnp.float32)

    def _pixels(self, quantized):
        images = self.decoder(self.post_quant_conv(quantized)).astype(jnp.float32)
        return 2 * images - 1 if self.config.unit_pixels else images


class Quantizer(Codebook):
    """The codebook with its losses.

    The original runs the distances in bf16 under autocast, which changes about 6 % of the codes on
    random latents; here they take the highest matmul precision.
    """

    commitment_weight: float
    entropy_weight: float

    def __call__(
        self, prequant: Float[Array, "B h w E"]
    ) -> tuple[
        Float[Array, "B h w E"],
        Int[Array, "B h w"],
        tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]],
    ]:
        """Quantizes float32 latents [B, h, w, E].

        Returns:
          quantized [B, h, w, E] with straight-through gradient, codes int32 [B, h, w], and the
          three scalar losses (vq, commitment, entropy) of `VQGANOutput`.
        """
        latents = l2_normalize(prequant) if self.l2_normalize else prequant
        scores = self.scores(latents)
        codes = jnp.argmax(scores, axis=-1).astype(jnp.int32)
        entries = self.embed(codes)
        stop = jax.lax.stop_gradient
        vq_loss = jnp.mean((entries - stop(latents)) ** 2)
        commitment_loss = self.commitment_weight * jnp.mean((stop(entries) - latents) ** 2)
        entropy_loss = jnp.zeros(())
        if self.entropy_weight:
            entropy_loss = self.entropy_weight * _entropy_loss(2 * scores)
        quantized = latents + stop(entries - latents)
        return quantized, codes, (vq_loss, commitment_loss, entropy_loss)


class Encoder(nn.Module):
    """Images [B, H, W, 3] to latents [B, h, w, z_channels]."""

    config: VQGANConfig

    @nn.compact
    def __call__(self, images: Float[AnyArray, "B H W 3"]) -> Float[Array, "B h w C"]:
        c = self.config
        last = len(c.channel_multipliers) - 1
        x = _conv(c.base_channels, 3, c, name="conv_in")(images)
        for level, multiplier in enumerate(c.channel_multipliers):
            for block in range(c.num_res_blocks):
                x = ResBlock(c.base_channels * multiplier, c, name=f"level_{level}_res_{block}")(x)
                if level == last and c.attention == "lowest":
                    x = AttentionBlock(c, name=f"level_{level}_attention_{block}")(x)
            if level != last:
                x = Downsample(c, name=f"level_{level}_downsample")(x)
        x = _middle(x, c)
        x = nn.swish(_norm(c, "norm_out")(x))
        return _conv(c.z_channels, 3, c, name="conv_out")(x)


class SquareEncoder(nn.Module):
    """Each square of `downsampling` pixels by itself, through dense layers, to its latent."""

    config: VQGANConfig

    @nn.compact
    def __call__(self, x: Float[AnyArray, "B H W 3"]) -> Float[Array, "B h w C"]:
        c, side = self.config, self.config.downsampling
        x = squares(jnp.asarray(x), side)
        for layer in range(1 + c.num_res_blocks):
            x = nn.swish(nn.Dense(4 * c.z_channels, dtype=c.dtype, name=f"dense_{layer}")(x))
        return nn.Dense(c.z_channels, dtype=c.dtype, name=f"dense_{1 + c.num_res_blocks}")(x)


class Decoder(nn.Module):
    """Latents [B, h, w, z_channels] to images [B, H, W, 3]; level 0 is the lowest resolution."""

    config: VQGANConfig

    @nn.compact
    def __call__(self, latents: Float[AnyArray, "B h w C"]) -> Float[Array, "B H W 3"]:
        c = self.config
        last = len(c.channel_multipliers) - 1
        x = _conv(c.base_channels * c.channel_multipliers[-1], 3, c, name="conv_in")(latents)
        x = _middle(x, c)
        for level, multiplier in enumerate(reversed(c.channel_multipliers)):
            for block in range(c.num_res_blocks + 1):
                x = ResBlock(c.base_channels * multiplier, c, name=f"level_{level}_res_{block}")(x)
                if level == 0 and c.attention == "lowest":
                    x = AttentionBlock(c, name=f"level_{level}_attention_{block}")(x)
            if level != last:
                x = Upsample(c, name=f"level_{level}_upsample")(x)
        x = nn.swish(_norm(c, "norm_out")(x))
        return _conv(3, 3, c, name="conv_out")(x)


class ResBlock(nn.Module):
    """Two normalised 3x3 convolutions around a shortcut."""

    channels: int
    config: VQGANConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W F"]:
        c = self.config
        y = _conv(self.channels, 3, c, name="conv1")(nn.swish(_norm(c, "norm1")(x)))
        y = _conv(self.channels, 3, c, name="conv2")(nn.swish(_norm(c, "norm2")(y)))
        if x.shape[-1] != self.channels:
            x = _conv(self.channels, 1, c, name="shortcut")(x)
        return x + y


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions of the grid."""

    config: VQGANConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        c = self.config
        B, h, w, C = x.shape
        y = _norm(c, "norm")(x)
        q, k, v = (_conv(C, 1, c, name=name)(y).reshape(B, h * w, 1, C) for name in ("q", "k", "v"))
        y = jax.nn.dot_product_attention(q, k, v).reshape(B, h, w, C)
        return x + _conv(C, 1, c, name="out")(y)


class Downsample(nn.Module):
    """Halves the sides: one row and column of zeros at the far edges, then stride 2."""

    config: VQGANConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        padding = ((0, 1), (0, 1))
        return _conv(x.shape[-1], 3, self.config, name="conv", strides=2, padding=padding)(x)


class Upsample(nn.Module):
    """Doubles the sides: nearest neighbour, then a convolution."""

    config: VQGANConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B H W C"]:
        x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        return _conv(x.shape[-1], 3, self.config, name="conv")(x)


def _middle(x, c: VQGANConfig):
    x = ResBlock(x.shape[-1], c, name="middle_res_0")(x)
    if c.attention != "none":
        x = AttentionBlock(c, name="middle_attention")(x)
    return ResBlock(x.shape[-1], c, name="middle_res_1")(x)


def _conv(channels, kernel, c: VQGANConfig, *, name=None, strides=1, padding: Any = "SAME"):
    return nn.Conv(
        channels,
        (kernel, kernel),
        strides,
        padding,
        dtype=jnp.dtype(c.dtype),
        kernel_init=_kernel_init,
        name=name,
    )


class GroupNorm(nn.Module):
    """Of `norm_groups` groups of channels; the numbers and parameters are those of `nn.GroupNorm`.

    Sums over positions before those over a group's channels, and one multiplication and addition
    for each value, take XLA a third less time on CPU.
    """

    config: VQGANConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        (B, H, W, C), groups = x.shape, self.config.norm_groups
        scale = self.param("scale", nn.initializers.ones, (C,))
        bias = self.param("bias", nn.initializers.zeros, (C,))
        y = x.astype(jnp.float32)

        def mean(values):
            """Of each channel's group, [B, 1, 1, C], from values [B, H, W, C]."""
            means = values.sum((1, 2)).reshape(B, groups, -1).mean(-1) / (H * W)
            return jnp.repeat(means, C // groups, axis=1)[:, None, None]

        average = mean(y)
        variance = jnp.maximum(mean(y**2) - average**2, 0)
        scale = scale * jax.lax.rsqrt(variance + 1e-6)
        return (y * scale + (bias - average * scale)).astype(self.config.dtype)


def _norm(c: VQGANConfig, name: str):
    return GroupNorm(c, name=name)


def _entropy_loss(affinities):
    """Mean entropy of each latent's code distribution minus the entropy of their mean."""
    affinities = affinities.reshape(-1, affinities.shape[-1]) / _ENTROPY_TEMPERATURE
    log_probs = jax.nn.log_softmax(affinities)
    probs = jnp.exp(log_probs)
    mean_probs = jnp.mean(probs, axis=0)
    sample_entropy = -jnp.mean(jnp.sum(probs * log_probs, axis=-1))
    mean_entropy = -jnp.sum(mean_probs * jnp.log(mean_probs + 1e-5))
    return sample_entropy - mean_entropy
