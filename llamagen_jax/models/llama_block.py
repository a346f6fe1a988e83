"""The layers of `Llama`, and the cache that they fill.

Axes: B batch, S positions that the cache has room for, Q queried positions, D width, K key-value
heads, Dh head width, N layers, F depths where control is added.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from llamagen_jax.models.attention import cached_attention, causal_attention
from llamagen_jax.models.layers import AnyArray, RMSNorm, dense, split_batch
from llamagen_jax.models.llama_config import LlamaConfig
from llamagen_jax.models.rope import rotate


class KVCache(NamedTuple):
    """Keys and values of the positions so far, in the compute dtype; others are zero.

    Leaves are [B, K, S, Dh] for one layer, [N, B, K, S, Dh] for stacked ones.
    """

    k: AnyArray
    v: AnyArray


# Of all layers: stacked, or one for each where they are apart.
Cache = KVCache | list[KVCache]


class Queries(NamedTuple):
    """Where the positions that a pass runs on stand, and what they may attend to.

    Attributes:
      positions: int [B or 1, Q], of every row's own.
      cos_sin: float32 [B or 1, Q, Dh/2, 2], their rotation.
      valid: bool [B, S], False at keys that are padding; None for no padding.
      mask: bool [B or 1, 1, Q, S] of `attention_mask`; None without a cache.
      control: [F + 1, B, Q, D], what is added at each depth, and zeros; None without control.
    """

    positions: AnyArray
    cos_sin: AnyArray
    valid: AnyArray | None
    mask: AnyArray | None
    control: AnyArray | None


class Block(nn.Module):
    """Pre-norm attention and SwiGLU, each with dropout or drop-path on its residual branch."""

    config: LlamaConfig
    implementation: str
    weights: str

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B Q D"],
        drop_path_rate: jax.typing.ArrayLike,
        depth: AnyArray | np.integer,
        cache: KVCache | None,
        queries: Queries,
        train: bool,
    ) -> tuple[Float[Array, "B Q D"], KVCache | None]:
        c = self.config
        x = split_batch(x)
        if queries.control is not None:
            x = x + queries.control[depth]
        project = functools.partial(dense, dtype=c.dtype, weights=self.weights)

        def residual(branch, dropout):
            if c.drop_path:
                return self._drop_path(branch, drop_path_rate, train)
            return nn.Dropout(dropout)(branch, deterministic=not train)

        attended, cache = Attention(c, self.implementation, self.weights, name="attention")(
            RMSNorm(c.norm_eps, name="attention_norm")(x), cache, queries
        )
        x = x + residual(attended, c.residual_dropout)
        y = RMSNorm(c.norm_eps, name="ffn_norm")(x)
        hidden = nn.silu(project(c.ffn_dim, name="gate")(y)) * project(c.ffn_dim, name="up")(y)
        x = x + residual(project(c.dim, name="down")(hidden), c.ffn_dropout)
        return x, cache

    def _drop_path(self, branch, rate, train):
        if not train:
            return branch
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, (branch.shape[0], 1, 1))
        return jnp.where(keep, branch / (1 - rate).astype(branch.dtype), 0)


class Attention(nn.Module):
    """Causal self-attention with rotary positions, grouped key-value heads and optional cache."""

    config: LlamaConfig
    implementation: str
    weights: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "B Q D"], cache: KVCache | None, queries: Queries
    ) -> tuple[Float[Array, "B Q D"], KVCache | None]:
        c = self.config
        B, Q, D = x.shape
        project = functools.partial(dense, dtype=c.dtype, weights=self.weights)
        q = project(c.n_heads * c.head_dim, name="q")(x).reshape(B, Q, c.n_heads, c.head_dim)
        k = project(c.kv_heads * c.head_dim, name="k")(x).reshape(B, Q, c.kv_heads, c.head_dim)
        v = project(c.kv_heads * c.head_dim, name="v")(x).reshape(B, Q, c.kv_heads, c.head_dim)
        q, k = rotate(q, queries.cos_sin), rotate(k, queries.cos_sin)
        if cache is None:
            attended = causal_attention(q, k, v, queries.valid, self.implementation)
        else:
            cache = fill(cache, KVCache(k, v), queries.positions)
            assert queries.mask is not None
            attended = cached_attention(q, cache.k, cache.v, queries.mask)
        return project(D, name="out")(attended.reshape(B, Q, -1)), cache


def fill(cache: KVCache, new: KVCache, positions: Integer[AnyArray, "#B Q"]) -> KVCache:
    """A layer's cache with the keys and values `new` [B, Q, K, Dh] at every row's positions."""

    def put(old, values):
        rows = jnp.arange(len(old))[:, None]
        return old.at[rows, :, positions].set(values, unique_indices=True)

    return jax.tree.map(put, cache, new)
