"""Discriminators of the tokenizer's adversarial loss: images to logits of being real.

Axes: B batch, H W pixels, C channels.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llamagen_jax.models.layers import AnyArray

KINDS = ("patchgan", "stylegan")

# PyTorch's default for convolutions and linear layers: U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
_torch_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """Sizes of a discriminator.

    Attributes:
      kind: "patchgan" or "stylegan".
      base_channels: channels of a PatchGAN's first layer; a StyleGAN's follow from the image size.
      num_layers: halvings of a PatchGAN; a StyleGAN halves down to 4x4.
      dtype: of the computation; parameters, statistics and logits are float32.

    Raises:
      ValueError: a value is impossible (the message names the field).
    """

    kind: str
    base_channels: int
    num_layers: int
    dtype: str

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r} must be one of {', '.join(KINDS)}")
        for field in ("base_channels", "num_layers"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)} must be positive")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype={self.dtype!r} must be 'float32' or 'bfloat16'")

    def check_image_size(self, size: int) -> None:
        """Raises ValueError when images of `size` pixels do not fit."""
        if self.kind == "stylegan" and (size < 8 or size & (size - 1)):
            raise ValueError(f"a stylegan discriminator needs a power of two from 8, not {size} px")
        if self.kind == "patchgan" and size < 3 * 2**self.num_layers:
            raise ValueError(
                f"a patchgan discriminator of num_layers={self.num_layers} needs images of at "
                f"least {3 * 2**self.num_layers} px, not {size}"
            )


def build(config: DiscriminatorConfig) -> nn.Module:
    """The module that `config` describes, called as `module(images, train)`."""
    return {"patchgan": PatchGAN, "stylegan": StyleGAN}[config.kind](config)


class PatchGAN(nn.Module):
    """A logit per overlapping patch (70x70 pixels for three layers), as in pix2pix.

    Batch normalisation takes its statistics over the whole batch it is given: inside one jitted
    step that is the GLOBAL batch over all devices and processes, whereas the original's are per
    GPU. The losses are therefore the same on any mesh, but differ from the original's on many GPUs.
    """

    config: DiscriminatorConfig

    @nn.compact
    def __call__(self, images: Float[AnyArray, "B H W 3"], train: bool) -> Float[Array, "B h w 1"]:
        """Float [B, H, W, 3] in [-1, 1] to float32 logits [B, h, w, 1].

        `train` normalises by the batch, and moves the running statistics ("batch_stats") when they
        are mutable; otherwise the running statistics normalise.
        """
        c = self.config

        def conv(x, channels, strides, name, use_bias=True):
            return nn.Conv(
                channels,
                (4, 4),
                strides,
                padding=1,
                use_bias=use_bias,
                dtype=jnp.dtype(c.dtype),
                kernel_init=nn.initializers.normal(0.02),
                name=name,
            )(x)

        x = nn.leaky_relu(conv(images, c.base_channels, 2, "conv_0"), 0.2)
        for layer in range(1, c.num_layers + 1):
            channels = c.base_channels * min(2**layer, 8)
            strides = 1 if layer == c.num_layers else 2
            x = conv(x, channels, strides, f"conv_{layer}", use_bias=False)
            x = nn.leaky_relu(BatchNorm(name=f"norm_{layer}")(x, train).astype(c.dtype), 0.2)
        return conv(x, 1, 1, "logits").astype(jnp.float32)


class BatchNorm(nn.Module):
    """Batch normalisation with PyTorch's running statistics, in float32.

    flax's own keeps the biased variance; PyTorch normalises by that one but keeps the unbiased.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H W C"]:
        """[B, H, W, C] to float32 of that shape; see `PatchGAN` for `train`."""
        x = x.astype(jnp.float32)
        C = x.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, C)
        running_var = self.variable("batch_stats", "var", jnp.ones, C)
        scale = self.param("scale", _scale_init, (C,))
        bias = self.param("bias", nn.initializers.zeros, (C,))
        mean, var = running_mean.value, running_var.value
        if train:
            mean, var = jnp.mean(x, axis=(0, 1, 2)), jnp.var(x, axis=(0, 1, 2))
            count = x.size // C
            if self.is_mutable_collection("batch_stats") and not self.is_initializing():
                unbiased = var * count / max(count - 1, 1)
                running_mean.value = 0.9 * running_mean.value + 0.1 * mean
                running_var.value = 0.9 * running_var.value + 0.1 * unbiased
        return (x - mean) * jax.lax.rsqrt(var + 1e-5) * scale + bias


def _scale_init(key, shape):
    return 1 + 0.02 * jax.random.normal(key, shape)


class StyleGAN(nn.Module):
    """One logit per image: residual blocks that halve it down to 4x4, as in StyleGAN2.

    Of StyleGAN2's parts the original has neither the equalised learning rate nor the minibatch
    standard deviation; it has no batch normalisation, so `train` changes nothing.
    """

    config: DiscriminatorConfig

    @nn.compact
    def __call__(self, images: Float[AnyArray, "B S S 3"], train: bool) -> Float[Array, "B 1"]:
        """Float [B, S, S, 3] in [-1, 1], S a power of two, to float32 logits [B, 1]."""
        del train
        size, dtype = images.shape[1], jnp.dtype(self.config.dtype)
        x = nn.leaky_relu(_conv3(_channels(size), dtype, "conv_in")(images), 0.2)
        while size > 4:
            size //= 2
            x = StyleGANBlock(_channels(size), dtype, name=f"block_{size}")(x)
        x = nn.leaky_relu(_conv3(_channels(4), dtype, "conv_out")(x), 0.2)
        x = x.reshape(x.shape[0], -1)
        x = nn.Dense(_channels(4), dtype=dtype, kernel_init=_torch_init, name="fc")(x)
        x = nn.Dense(1, dtype=dtype, kernel_init=_torch_init, name="logits")(nn.leaky_relu(x, 0.2))
        return x.astype(jnp.float32)


class StyleGANBlock(nn.Module):
    """Two convolutions, a blur and a strided one, around a strided shortcut."""

    channels: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B S S C"]) -> Float[Array, "B half half F"]:
        shortcut = nn.Conv(
            self.channels,
            (1, 1),
            2,
            padding=0,
            dtype=self.dtype,
            kernel_init=_torch_init,
            name="shortcut",
        )(x)
        for name in ("conv1", "conv2"):
            x = nn.leaky_relu(_conv3(self.channels, self.dtype, name)(x), 0.2)
        x = _conv3(self.channels, self.dtype, "downsample", strides=2)(_blur(x))
        return (x + shortcut) / math.sqrt(2)


def _channels(size: int) -> int:
    """Channels at a resolution of `size` pixels."""
    return min(512, 16384 // size)


def _conv3(channels: int, dtype, name: str, strides: int = 1):
    return nn.Conv(
        channels, (3, 3), strides, padding=1, dtype=dtype, kernel_init=_torch_init, name=name
    )


def _blur(x):
    """Binomial 3x3 filter with reflected edges."""
    for axis in (1, 2):
        padding = [(1, 1) if a == axis else (0, 0) for a in range(x.ndim)]
        padded = jnp.pad(x, padding, mode="reflect")
        before, here, after = (
            jax.lax.slice_in_dim(padded, start, start + x.shape[axis], axis=axis)
            for start in range(3)
        )
        x = (before + 2 * here + after) / 4
    return x
