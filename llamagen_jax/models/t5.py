"""T5 encoder: the original's ReLU and the gated GELU of T5 v1.1 and flan-T5.

Sources: arXiv 1910.10683 (T5), arXiv 2002.05202 (gated feed-forward layers); behaviour as in
Hugging Face `transformers`.

Axes: B batch, T tokens, D width, H heads, Dh head width, N layers, F hidden units, V vocabulary,
K relative-position buckets.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer, Shaped

from llamagen_jax.errors import check_finite
from llamagen_jax.models.layers import AnyArray, RMSNorm


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Sizes of an encoder; the defaults are flan-T5-XL, the text encoder of LlamaGen.

    Attributes:
      head_dim: width of a head; n_heads * head_dim need not be dim.
      relative_buckets: buckets of relative positions, half of them for keys after the query.
      relative_max_distance: farther keys share the last bucket.
      activation: "gated-gelu" (T5 v1.1, flan-T5) or "relu" (T5).
      dtype: compute dtype of the matrix products; the residual stream, norms and softmax stay
        float32.

    Raises:
      ValueError: a value is impossible (the message names the field).
    """

    vocab_size: int = 32128
    dim: int = 2048
    head_dim: int = 64
    ffn_dim: int = 5120
    n_layers: int = 24
    n_heads: int = 32
    relative_buckets: int = 32
    relative_max_distance: int = 128
    norm_eps: float = 1e-6
    activation: str = "gated-gelu"
    dtype: str = "float32"

    def __post_init__(self):
        check_finite(self)
        choices = {"activation": ("gated-gelu", "relu"), "dtype": ("float32", "bfloat16")}
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field}={getattr(self, field)!r} must be one of {allowed}")
        sizes = ("vocab_size", "dim", "head_dim", "ffn_dim", "n_layers", "n_heads")
        for field in (*sizes, "norm_eps"):
            if getattr(self, field) <= 0:
                raise ValueError(f"{field}={getattr(self, field)} must be positive")
        if self.relative_buckets < 4 or self.relative_buckets % 4:
            raise ValueError(
                f"relative_buckets={self.relative_buckets} must be a positive multiple of 4"
            )
        if self.relative_max_distance <= self.relative_buckets // 4:
            raise ValueError(
                f"relative_max_distance={self.relative_max_distance} must be over a quarter of "
                f"relative_buckets={self.relative_buckets}"
            )


class T5(nn.Module):
    """Bidirectional transformer over tokens; positions enter as a bias that all layers share."""

    config: T5Config

    @nn.compact
    def __call__(
        self, tokens: Integer[AnyArray, "B T"], mask: Shaped[AnyArray, "B T"]
    ) -> Float[Array, "B T D"]:
        """Features of every token, without dropout.

        Args:
          tokens: int [B, T].
          mask: bool [B, T], False at padding, which no token sees. The padding may be anywhere;
            only distances between tokens matter.

        Returns:
          float32 [B, T, D]; those at padding mean nothing.
        """
        c = self.config
        embed = nn.Embed(
            c.vocab_size, c.dim, embedding_init=nn.initializers.normal(1.0), name="token_embedding"
        )
        bias = self.param(
            "relative_bias", nn.initializers.normal(c.dim**-0.5), (c.relative_buckets, c.n_heads)
        )
        positions = np.arange(tokens.shape[1])
        buckets = relative_buckets(positions - positions[:, None], c)
        bias = bias.astype(jnp.float32)[buckets].transpose(2, 0, 1)[None]  # [1, H, T, T]
        layers = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=c.n_layers,
        )
        x = embed(tokens).astype(jnp.float32)
        x, _ = layers(c, name="layers")(x, bias, mask.astype(bool)[:, None, None])
        return RMSNorm(c.norm_eps, name="norm")(x)


class Block(nn.Module):
    """Pre-norm attention, without the usual division by sqrt(Dh), and feed-forward layer."""

    config: T5Config

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        bias: Float[AnyArray, "1 H T T"],
        mask: Bool[AnyArray, "B 1 1 T"],
    ) -> tuple[Float[Array, "B T D"], None]:
        c = self.config
        B, T, D = x.shape
        heads = (B, T, c.n_heads, c.head_dim)

        def dense(features, fan_in, name):
            init = nn.initializers.normal(fan_in**-0.5)
            return nn.Dense(
                features, use_bias=False, dtype=jnp.dtype(c.dtype), kernel_init=init, name=name
            )

        def project(y, name, fan_in):
            return dense(c.n_heads * c.head_dim, fan_in, name)(y).reshape(heads)

        y = RMSNorm(c.norm_eps, name="attention_norm")(x)
        q, k, v = project(y, "q", D * c.head_dim), project(y, "k", D), project(y, "v", D)
        attended = jax.nn.dot_product_attention(q, k, v, bias=bias, mask=mask, scale=1.0)
        x = x + dense(D, c.n_heads * c.head_dim, "out")(attended.reshape(B, T, -1))
        y = RMSNorm(c.norm_eps, name="ffn_norm")(x)
        hidden = dense(c.ffn_dim, D, "up")(y)
        if c.activation == "gated-gelu":
            hidden = nn.gelu(dense(c.ffn_dim, D, "gate")(y), approximate=True) * hidden
        else:
            hidden = nn.relu(hidden)
        return x + dense(D, c.ffn_dim, "down")(hidden), None


def relative_buckets(
    distance: Integer[np.ndarray, "*shape"], config: T5Config
) -> Integer[np.ndarray, "*shape"]:
    """Buckets, int in [0, K), of key position minus query position.

    The lower half is for keys up to the query, the upper half for those after it. In each half, the
    first K/4 distances have a bucket of their own, the others share buckets of logarithmic width up
    to relative_max_distance.
    """
    half = config.relative_buckets // 2
    exact = half // 2
    size = np.abs(distance)
    # float32 as in the original, which decides on which side of an edge a distance falls.
    octaves = np.log(np.maximum(size, exact).astype(np.float32) / np.float32(exact))
    steps = octaves / np.float32(np.log(config.relative_max_distance / exact)) * (half - exact)
    far = np.minimum(exact + steps.astype(int), half - 1)
    return np.where(size < exact, size, far) + half * (distance > 0)
