"""Llama transformer over image codes (LlamaGen, arXiv 2406.06525, section 2.2).

Axes: B batch, L codes, T condition tokens, Q queried positions, D width, V vocabulary, H W pixels,
C width of control tokens, F depths where control is added, P = T + L - 1 positions of inputs.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer, Shaped, UInt8

from llamagen_jax.errors import InputError, nearest
from llamagen_jax.models import int8
from llamagen_jax.models.attention import attention_mask, key_validity
from llamagen_jax.models.condition import ConditionEmbedding
from llamagen_jax.models.control import ControlEncoder, check_control
from llamagen_jax.models.layers import AnyArray, RMSNorm, normal_init
from llamagen_jax.models.llama_block import Block, Cache, KVCache, Queries
from llamagen_jax.models.llama_config import LlamaConfig
from llamagen_jax.models.rope import rope_table, stack_tables

# What the matrices of the layers and of the output are of.
WEIGHTS = ("float", "int8")

# What a layer keeps for its backward pass, so that the rest is computed again; "none" keeps all.
REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


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
      position_grid: of `for_grid`; None where the model is trained for its grid.
    """

    config: LlamaConfig
    scan_layers: bool = True
    attention: str = "xla"
    remat: str = "none"
    weights: str = "float"
    position_grid: tuple[int, int] | None = None

    def setup(self):
        c = self.config
        self.codes_embedding = nn.Embed(c.vocab_size, c.dim, embedding_init=normal_init)
        self.condition_embedding = ConditionEmbedding(c)
        if c.control_layers:
            self.control_encoder = ControlEncoder(c, self.position_grid)
            # From zero, so that training begins with the model as it is without control.
            shape = len(c.control_depths), c.control_dim, c.dim
            self.control_fusion = self.param("control_fusion", nn.initializers.zeros, shape)
        self.token_dropout = nn.Dropout(c.token_dropout)
        if c.code_dropout:
            self.left_out = self.param("left_out", normal_init, (c.dim,))
        block = Block
        if self.remat != "none":
            # CSE cannot undo the recomputation across a scan's iterations.
            block = nn.remat(
                Block,
                policy=REMAT_POLICIES[self.remat],
                prevent_cse=not self.scan_layers,
                static_argnums=(6,),
            )
        if self.scan_layers:
            self.layers: Any = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(0, 0, 0, nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
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
        control: UInt8[AnyArray, "B H W 3"] | None = None,
    ) -> Float[Array, "B L V"]:
        """Teacher-forced logits.

        Args:
          codes: int [B, L]; the last code is never an input, so it may be anything.
          condition: int labels [B] in [0, num_classes], or text features [B, T, caption_dim].
          condition_mask: bool [B, T], False at padding; None for no padding.
          train: draw dropout of conditions, controls, activations and paths from the "dropout" rng.
          control: uint8 [B, H, W, 3] of the size `LlamaConfig.control_size`; None for none.

        Returns:
          float32 [B, L, V]; those at i predict code i from the condition, the codes before it and
          all of the control.

        Raises:
          InputError: the model takes no control, or none of this size.
        """
        c = self.config
        drop = None
        if train and c.condition_dropout:
            key = self.make_rng("dropout")
            drop = jax.random.bernoulli(key, c.condition_dropout, codes.shape[:1])
        if control is None and c.control_layers and self.is_initializing():
            control = jnp.zeros((len(codes), *c.control_size, 3), jnp.uint8)
        added = None if control is None else self.embed_control(control)
        if added is not None and train and c.control_dropout:
            key = self.make_rng("dropout")
            kept = jax.random.bernoulli(key, 1 - c.control_dropout, (len(added), 1, 1, 1))
            added = jnp.where(kept, added, 0)
        x = self.embed_condition(condition, condition_mask, drop)
        before = self.embed_codes(codes[:, :-1])
        if train and c.code_dropout:
            share_key, key = jax.random.split(self.make_rng("dropout"))
            share = jax.random.uniform(share_key, (len(codes), 1), maxval=c.code_dropout)
            left_out = jax.random.uniform(key, before.shape[:2]) < share
            before = jnp.where(left_out[..., None], self.left_out.astype(c.dtype), before)
        x = jnp.concatenate([x, before], axis=1)
        x = self.token_dropout(x, deterministic=not train)
        positions = jnp.arange(x.shape[1])[None]
        x, _ = self.transform(x, positions, condition_mask, train=train, control=added)
        return self.logits(x[:, c.condition_length - 1 :])

    def embed_condition(
        self,
        condition: Shaped[AnyArray, "B ..."],
        condition_mask: Bool[AnyArray, "B T"] | None = None,
        drop: Bool[AnyArray, " B"] | None = None,
        sizes: Integer[AnyArray, " B"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Condition tokens [B, T, D]; `drop`, bool [B], puts the null condition in its place.

        `sizes` is that of `transform`.
        """
        c, size = self.config, sizes
        if c.grids and sizes is None:
            size = c.size_index(self.position_grid or c.grid)
        return self.condition_embedding(condition, condition_mask, drop, size)

    def embed_control(
        self, control: UInt8[AnyArray, "B H W 3"], scale: AnyArray | float = 1.0
    ) -> Float[Array, "B F P D"]:
        """What control images add to the layers' inputs.

        At the position where a code is predicted that is what the image shows where the code lies;
        at earlier positions of the condition it is zero.

        Args:
          control: uint8 [B, H, W, 3] of the size `LlamaConfig.control_size`.
          scale: multiplies it; a number, or one for each image [B].

        Returns:
          [B, F, P, D] in the compute dtype, for the layers `LlamaConfig.control_depths`.

        Raises:
          InputError: the model takes no control, or none of this size.
        """
        c = self.config
        check_control(c, control)
        tokens = self.control_encoder(control) * jnp.reshape(scale, (-1, 1, 1))
        dtype = jnp.dtype(c.dtype)
        fusion = self.control_fusion.astype(dtype)
        added = jnp.einsum("BLC,FCD->BFLD", tokens.astype(dtype), fusion)
        return jnp.pad(added, ((0, 0), (0, 0), (c.condition_length - 1, 0), (0, 0)))

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
        control: Float[AnyArray, "B F P D"] | None = None,
        sizes: Integer[AnyArray, " B"] | None = None,
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
          control: of `embed_control`; None for none.
          sizes: int [B], which of `config.trained_grids` each row's codes are on; None for the grid
            of the model.

        Returns:
          [B, Q, D] before the last norm, and the cache with these positions filled in.
        """
        c = self.config
        num_keys = x.shape[1] if cache is None else jax.tree.leaves(cache)[0].shape[-2]
        valid = key_validity(condition_mask, num_keys)
        if sizes is None:
            cos_sin = self._rope_table(c.grid, self.position_grid)[positions]
        else:
            tables = stack_tables(map(self._rope_table, c.trained_grids))
            cos_sin = tables[sizes[:, None], positions]
        mask = None if cache is None else attention_mask(positions, num_keys, valid)
        if control is not None:
            control = _at_positions(control, positions, cache is not None)
        queries = Queries(positions, cos_sin, valid, mask, control)
        rates = np.linspace(0, c.drop_path, c.n_layers, dtype=np.float32)
        depths = np.full(c.n_layers, len(c.control_depths))
        depths[list(c.control_depths)] = np.arange(len(c.control_depths))
        if self.scan_layers:
            return self.layers(x, rates, depths, cache, queries, train)
        new_cache: list[KVCache] = []
        for i, layer in enumerate(self.layers):
            x, layer_cache = layer(x, rates[i], depths[i], cache and cache[i], queries, train)
            new_cache.append(layer_cache)
        return x, None if cache is None else new_cache

    def _rope_table(self, grid, position_grid=None):
        c = self.config
        return rope_table(
            grid,
            c.head_dim,
            position_grid=position_grid,
            base=c.rope_base,
            condition_length=c.condition_length,
            condition_rope=c.condition_rope,
        )

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
        control: Float[AnyArray, "B F P D"] | None = None,
        sizes: Integer[AnyArray, " B"] | None = None,
    ) -> tuple[Float[Array, "B V"], Cache]:
        """`transform`, then the logits [B, V] of the last position; also returns the cache."""
        x, filled = self.transform(
            x, positions, condition_mask, cache, control=control, sizes=sizes
        )
        assert filled is not None
        return self.logits(x[:, -1]), filled

    def for_grid(self, grid: tuple[int, int], *, extrapolate: bool = False) -> "Llama":
        """The model that draws another grid of codes with the same parameters.

        Args:
          grid: rows and columns.
          extrapolate: let a grid that the model is not trained for take the positions and the size
            of the trained one that is nearest in aspect ratio: positions are scaled to span its
            rows and columns (arXiv 2306.15595). Images are then worse than those of trained grids.

        Raises:
          InputError: the model is not trained for the grid, and is not to extrapolate.
        """
        position_grid = None
        if extrapolate and grid not in self.config.trained_grids:
            position_grid = self.config.nearest_grid(grid)
        else:
            self.config.size_index(grid)
        config = dataclasses.replace(self.config, grid_size=grid)
        return self.clone(config=config, position_grid=position_grid)

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


def _at_positions(control, positions, cached: bool):
    """What control [B, F, P, D] adds at positions [B or 1, Q], then zeros: [F + 1, B, Q, D]."""
    if cached:
        control = jnp.take_along_axis(control, positions[:, None, :, None], axis=2)
    else:
        control = control[:, :, : positions.shape[1]]
    return jnp.pad(jnp.swapaxes(control, 0, 1), ((0, 1), (0, 0), (0, 0), (0, 0)))


def unstack_layers(params: dict) -> dict:
    """Parameters of `Llama(config)` to those of `Llama(config, scan_layers=False)`."""
    params = dict(params)
    stacked = params.pop("layers")
    for i in range(jax.tree.leaves(stacked)[0].shape[0]):
        params[f"layers_{i}"] = jax.tree.map(lambda leaf, i=i: leaf[i], stacked)
    return params
