"""Llama transformer over image codes (LlamaGen, arXiv 2406.06525, section 2.2).

Axes: B batch, L codes, T condition tokens, S = T + L positions, Q queried positions, D width,
H heads, K key-value heads, Dh head width, N layers, V vocabulary.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer, Shaped

from llamagen_jax.errors import InputError, nearest
from llamagen_jax.models import int8
from llamagen_jax.models.attention import (
    attention_mask,
    cached_attention,
    causal_attention,
    key_validity,
)
from llamagen_jax.models.condition import ConditionEmbedding
from llamagen_jax.models.layers import AnyArray, RMSNorm, dense, normal_init, split_batch
from llamagen_jax.models.llama_config import LlamaConfig
from llamagen_jax.models.rope import rope_table, rotate

# What the matrices of the layers and of the output are of.
WEIGHTS = ("float", "int8")

# What a layer keeps for its backward pass, so that the rest is computed again; "none" keeps all.
REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


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
    """

    positions: AnyArray
    cos_sin: AnyArray
    valid: AnyArray | None
    mask: AnyArray | None


class Llama(nn.Module):
    """RMSNorm, SwiGLU and 2-D RoPE decoder-only transformer.

    Attributes:
      scan_layers: True stores the layers' parameters stacked under "layers" and scans over them, so
        that compile time does not depend on depth; False keeps "layers_0", "layers_1", ... apart,
        which decodes faster. `unstack_layers` turns the first kind of parameters into the second.
      attention: kernel for passes without a cache, a result of `attention.choose`.
      remat: what layers keep for the backward pass: "none" recomputes nothing, "dots" keeps the
        outputs of the projections, "full" the layers' inputs alone.
      weights: one of `WEIGHTS`; "int8" is for parameters of `for_decoding`, and for these alone.
    """

    config: LlamaConfig
    scan_layers: bool = True
    attention: str = "xla"
    remat: str = "none"
    weights: str = "float"

    def setup(self):
        c = self.config
        self.codes_embedding = nn.Embed(c.vocab_size, c.dim, embedding_init=normal_init)
        self.condition_embedding = ConditionEmbedding(c)
        self.token_dropout = nn.Dropout(c.token_dropout)
        self.code_dropout = nn.Dropout(c.code_dropout, broadcast_dims=(2,))
        block = Block
        if self.remat != "none":
            # CSE cannot undo the recomputation across a scan's iterations.
            block = nn.remat(
                Block,
                policy=REMAT_POLICIES[self.remat],
                prevent_cse=not self.scan_layers,
                static_argnums=(5,),
            )
        if self.scan_layers:
            self.layers: Any = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(0, 0, nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
                length=c.n_layers,
            )(c, self.attention, self.weights)
        else:
            self.layers = [block(c, self.attention, self.weights) for _ in range(c.n_layers)]
        self.norm = RMSNorm(c.norm_eps)
        if self.weights == "int8":
            self.output: Any = self.param("output", lambda _: int8.zeros(c.dim, c.vocab_size))
        else:
            self.output = self.param("output", nn.initializers.zeros, (c.dim, c.vocab_size))

    def __call__(
        self,
        codes: Integer[AnyArray, "B L"],
        condition: Shaped[AnyArray, "B ..."],
        condition_mask: Bool[AnyArray, "B T"] | None = None,
        train: bool = False,
    ) -> Float[Array, "B L V"]:
        """Teacher-forced logits.

        Args:
          codes: int [B, L]; the last code is never an input, so it may be anything.
          condition: int labels [B] in [0, num_classes], or text features [B, T, caption_dim].
          condition_mask: bool [B, T], False at padding; None for no padding.
          train: draw dropout of conditions, activations and paths from the "dropout" rng.

        Returns:
          float32 [B, L, V]; those at i predict code i from the condition and the codes before it.
        """
        c = self.config
        drop = None
        if train and c.condition_dropout:
            key = self.make_rng("dropout")
            drop = jax.random.bernoulli(key, c.condition_dropout, codes.shape[:1])
        x = self.embed_condition(condition, condition_mask, drop)
        before = self.code_dropout(self.embed_codes(codes[:, :-1]), deterministic=not train)
        x = jnp.concatenate([x, before], axis=1)
        x = self.token_dropout(x, deterministic=not train)
        x, _ = self.transform(x, jnp.arange(x.shape[1])[None], condition_mask, train=train)
        return self.logits(x[:, c.condition_length - 1 :])

    def embed_condition(
        self,
        condition: Shaped[AnyArray, "B ..."],
        condition_mask: Bool[AnyArray, "B T"] | None = None,
        drop: Bool[AnyArray, " B"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Condition tokens [B, T, D]; `drop`, bool [B], puts the null condition in its place."""
        return self.condition_embedding(condition, condition_mask, drop)

    def embed_codes(self, codes: Integer[AnyArray, "B Q"]) -> Float[Array, "B Q D"]:
        """Codes, int [B, Q], to embeddings [B, Q, D] in the compute dtype."""
        return self.codes_embedding(codes).astype(self.config.dtype)

    def transform(
        self,
        x: Float[Array, "B Q D"],
        positions: Integer[AnyArray, "#B Q"],
        condition_mask: Bool[AnyArray, "B T"] | None = None,
        cache: Cache | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B Q D"], Cache | None]:
        """Runs the layers on Q positions.

        Args:
          x: [B, Q, D] embeddings.
          positions: int [B or 1, Q], of every row's own, the condition first: 0 ... T + L - 1.
            Without a cache they are 0 ... Q - 1.
          condition_mask: bool [B, T], False at padding; None for no padding.
          cache: keys and values of earlier positions from `init_cache`, or None. Only what it has
            room for is attended to, and read.
          train: apply dropout.

        Returns:
          [B, Q, D] before the last norm, and the cache with these positions filled in.
        """
        c = self.config
        num_keys = x.shape[1] if cache is None else jax.tree.leaves(cache)[0].shape[-2]
        valid = key_validity(condition_mask, num_keys)
        table = rope_table(
            c.grid,
            c.head_dim,
            base=c.rope_base,
            condition_length=c.condition_length,
            condition_rope=c.condition_rope,
        )
        mask = None if cache is None else attention_mask(positions, num_keys, valid)
        queries = Queries(positions, table[positions], valid, mask)
        rates = np.linspace(0, c.drop_path, c.n_layers, dtype=np.float32)
        if self.scan_layers:
            return self.layers(x, rates, cache, queries, train)
        new_cache: list[KVCache] = []
        for i, layer in enumerate(self.layers):
            x, layer_cache = layer(x, rates[i], cache and cache[i], queries, train)
            new_cache.append(layer_cache)
        return x, None if cache is None else new_cache

    def logits(self, x: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Final norm and output layer: [..., D] to float32 [..., V]."""
        dtype = self.config.dtype
        x = self.norm(x).astype(dtype)
        if self.weights == "int8":
            return int8.product(x, self.output)
        return jnp.dot(x, self.output.astype(dtype), preferred_element_type=jnp.float32)

    def extend(
        self,
        x: Float[Array, "B Q D"],
        positions: Integer[AnyArray, "#B Q"],
        condition_mask: Bool[AnyArray, "B T"] | None,
        cache: Cache,
    ) -> tuple[Float[Array, "B V"], Cache]:
        """`transform`, then the logits [B, V] of the last position; also returns the cache."""
        x, filled = self.transform(x, positions, condition_mask, cache)
        assert filled is not None
        return self.logits(x[:, -1]), filled

    def for_decoding(self, params: dict, weights: str = "float") -> tuple["Llama", dict]:
        """The same model and parameters, laid out so that a decoding step reads each weight once.

        Its layers are apart and its matrices in the compute dtype or in int8. `generate` takes both
        in the place of the model and its parameters, which it would lay out anew in every call.

        Args:
          params: parameters with stacked layers, on the host or on devices; those that are laid out
            already are returned as they are.
          weights: one of `WEIGHTS`. In int8, rounded, the matrices of the layers and of the output
            take a quarter of the memory of float32.

        Raises:
          InputError: there are no such weights, or the layers are apart already in float.
        """
        if weights not in WEIGHTS:
            raise InputError(f"there are no weights '{weights}'; {nearest(weights, WEIGHTS)}")
        if not self.scan_layers:
            if weights not in ("float", self.weights):
                raise InputError(f"for {weights} give the parameters as they were loaded")
            return self, params

        def lay_out(path, leaf):
            first, last = path[0].key, path[-1].key
            is_matrix = first == "output" or (first.startswith("layers_") and last == "kernel")
            if weights == "int8" and is_matrix:
                return int8.quantise(leaf)
            return leaf.astype(self.config.dtype) if leaf.ndim > 1 else leaf

        params = jax.tree.map_with_path(lay_out, unstack_layers(params))
        return self.clone(scan_layers=False, weights=weights), params

    def init_cache(self, batch_size: int, num_keys: int | None = None) -> Cache:
        """An empty cache: one of stacked leaves, or one for each layer where they are apart.

        Args:
          num_keys: positions that it has room for; None for all.
        """
        c = self.config
        num_keys = num_keys or c.condition_length + c.code_length
        shape = (batch_size, c.kv_heads, num_keys, c.head_dim)

        def empty(shape):
            return KVCache(jnp.zeros(shape, c.dtype), jnp.zeros(shape, c.dtype))

        if self.scan_layers:
            return empty((c.n_layers, *shape))
        return [empty(shape) for _ in range(c.n_layers)]


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
        cache: KVCache | None,
        queries: Queries,
        train: bool,
    ) -> tuple[Float[Array, "B Q D"], KVCache | None]:
        c = self.config
        x = split_batch(x)
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


def unstack_layers(params: dict) -> dict:
    """Parameters of `Llama(config)` to those of `Llama(config, scan_layers=False)`."""
    params = dict(params)
    stacked = params.pop("layers")
    for i in range(jax.tree.leaves(stacked)[0].shape[0]):
        params[f"layers_{i}"] = jax.tree.map(lambda leaf, i=i: leaf[i], stacked)
    return params
