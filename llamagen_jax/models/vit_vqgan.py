"""ViT-VQGAN: images to a grid of codes and back by two transformers (arXiv 2110.04627).

Sizes and details are those of the public weights (github.com/thuanz123/enhancing-transformers).

Axes: B batch, H W pixels, h w code grid, N patches, D width.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from llamagen_jax.errors import check_finite
from llamagen_jax.models.codebook import Codebook, check_sides
from llamagen_jax.models.layers import AnyArray

# Wavelengths of positions reach from 2 pi to this many times as much.
_LONGEST = 10_000


@dataclasses.dataclass(frozen=True)
class ViTVQGANConfig:
    """Sizes of a ViT-VQGAN; the defaults are the published base (172M parameters).

    Attributes:
      dim, n_layers, n_heads, head_dim, ffn_dim: of the encoder and of the decoder alike.

    Raises:
      ValueError: a size is impossible (the message names the field).
    """

    patch_size: int = 8
    dim: int = 768
    n_layers: int = 12
    n_heads: int = 12
    head_dim: int = 64
    ffn_dim: int = 3072
    codebook_size: int = 8192
    codebook_dim: int = 32
    dtype: str = "float32"

    def __post_init__(self):
        check_finite(self)
        for field, value in vars(self).items():
            if field != "dtype" and value < 1:
                raise ValueError(f"{field}={value} must be positive")
        if self.dim % 4:
            raise ValueError(
                f"dim={self.dim} must be a multiple of 4, for sines of rows and columns"
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype={self.dtype!r} must be 'float32' or 'bfloat16'")

    @property
    def downsampling(self) -> int:
        """Side in pixels of the image patch that one code stands for."""
        return self.patch_size


class ViTVQGAN(nn.Module):
    """Encoder, l2-normalised codebook, decoder; the weights see pixels in [0, 1].

    Positions are sines of any grid, so that other image sizes than that of training work, the worse
    the farther they are from it.
    """

    config: ViTVQGANConfig

    def setup(self):
        c = self.config
        self.patches = nn.Conv(
            c.dim,
            (c.patch_size, c.patch_size),
            (c.patch_size, c.patch_size),
            "VALID",
            dtype=jnp.dtype(c.dtype),
        )
        self.encoder = Transformer(c)
        self.decoder = Transformer(c)
        self.pixels = Pixels(c)
        self.quantizer = Codebook(c.codebook_size, c.codebook_dim, l2_normalize=True)
        self.pre_quant = nn.Dense(c.codebook_dim, dtype=jnp.dtype(c.dtype))
        self.post_quant = nn.Dense(c.dim, dtype=jnp.dtype(c.dtype))

    def __call__(self, images: Float[AnyArray, "B H W 3"]) -> Float[Array, "B H W 3"]:
        """Reconstructs images, float [B, H, W, 3] in [-1, 1]."""
        return self.decode(self.encode(images))

    def encode(self, images: Float[AnyArray, "B H W 3"]) -> Int[Array, "B h w"]:
        """Images, float [B, H, W, 3] in [-1, 1], to int32 codes [B, h, w].

        Raises:
          ValueError: `downsampling` does not divide the sides.
        """
        check_sides(images, self.config.downsampling)
        latents = self.pre_quant(self.encoder(self.patches((images + 1) / 2)))
        return self.quantizer.nearest(latents.astype(jnp.float32))

    def decode(self, codes: Integer[Array, "B h w"]) -> Float[Array, "B H W 3"]:
        """Codes, int [B, h, w], to float32 images [B, H, W, 3], roughly in [-1, 1]."""
        x = self.decoder(self.post_quant(self.quantizer.embed(codes)))
        return 2 * self.pixels(x).astype(jnp.float32) - 1


class Transformer(nn.Module):
    """Pre-norm blocks over a grid whose positions are added first, and a last norm."""

    config: ViTVQGANConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B h w D"]) -> Float[Array, "B h w D"]:
        c = self.config
        B, h, w, D = x.shape
        x = (x + positions(h, w, D).astype(x.dtype)).reshape(B, h * w, D)
        for layer in range(c.n_layers):
            x = x + Attention(c, name=f"layer_{layer}_attention")(
                _norm(c, f"layer_{layer}_attention_norm")(x)
            )
            y = _norm(c, f"layer_{layer}_ffn_norm")(x)
            y = nn.tanh(nn.Dense(c.ffn_dim, dtype=jnp.dtype(c.dtype), name=f"layer_{layer}_up")(y))
            x = x + nn.Dense(D, dtype=jnp.dtype(c.dtype), name=f"layer_{layer}_down")(y)
        return _norm(c, "norm")(x).reshape(B, h, w, D)


class Attention(nn.Module):
    """Every patch attends to all."""

    config: ViTVQGANConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        c = self.config
        inner = c.n_heads * c.head_dim
        q, k, v = (
            nn.Dense(inner, use_bias=False, dtype=jnp.dtype(c.dtype), name=name)(x).reshape(
                *x.shape[:2], c.n_heads, c.head_dim
            )
            for name in ("q", "k", "v")
        )
        attended = jax.nn.dot_product_attention(q, k, v).reshape(*x.shape[:2], inner)
        return nn.Dense(x.shape[-1], dtype=jnp.dtype(c.dtype), name="out")(attended)


class Pixels(nn.Module):
    """Each patch's pixels, a linear function of its features."""

    config: ViTVQGANConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B h w D"]) -> Float[Array, "B H W 3"]:
        c = self.config
        B, h, w, D = x.shape
        p = c.patch_size
        init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform", in_axis=-1, out_axis=-2)
        kernel = self.param("kernel", init, (p, p, 3, D))
        bias = self.param("bias", nn.initializers.zeros, (3,))
        pixels = jnp.einsum("bhwd,ijcd->bhiwjc", x, kernel.astype(c.dtype))
        return pixels.reshape(B, h * p, w * p, 3) + bias.astype(c.dtype)


def positions(rows: int, columns: int, width: int) -> Float[Array, "h w D"]:
    """Sines and cosines of each patch's column, then of its row, float32."""
    frequencies = _LONGEST ** -(np.arange(width // 4) / (width / 4))
    y, x = (np.outer(np.arange(n), frequencies) for n in (rows, columns))
    y, x = (np.concatenate([np.sin(a), np.cos(a)], axis=1) for a in (y, x))
    shape = rows, columns, width // 2
    both = np.broadcast_to(x[None], shape), np.broadcast_to(y[:, None], shape)
    return jnp.asarray(np.concatenate(both, axis=-1), jnp.float32)


def _norm(c: ViTVQGANConfig, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(1e-5, dtype=jnp.dtype(c.dtype), use_fast_variance=False, name=name)
