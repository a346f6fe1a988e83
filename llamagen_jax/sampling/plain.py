"""The plain decoder: one prefill, then one code after another in a `lax.scan`.

Axes: B samples, L codes, T condition tokens, V vocabulary.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from llamagen_jax.models.layers import AnyArray
from llamagen_jax.models.llama import Llama
from llamagen_jax.sampling.filters import filter_logits, guide
from llamagen_jax.sampling.settings import SamplingSettings


class _Program(NamedTuple):
    """What of the settings another program is compiled for."""

    num_guided: int
    top_k: int
    filter_top_p: bool
    greedy: bool


class _Numbers(NamedTuple):
    """What of the settings a program takes as it runs."""

    guidance_scale: float
    temperature: float
    top_p: float


def decode(
    model: Llama,
    params: dict,
    condition: Shaped[AnyArray, "B ..."],
    condition_mask: Bool[AnyArray, "B T"] | None,
    keys: Shaped[AnyArray, " B"],
    settings: SamplingSettings,
) -> Int[Array, "B L"]:
    """Codes int32 [B, L]; arguments as of `generate`, with a random key per sample."""
    program = _Program(
        num_guided=settings.num_guided(model.config.code_length),
        top_k=min(settings.top_k, model.config.vocab_size),
        filter_top_p=settings.top_p < 1,
        greedy=settings.greedy,
    )
    numbers = _Numbers(settings.guidance_scale, settings.temperature, settings.top_p)
    return _decode(model, program, params, condition, condition_mask, keys, numbers)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _decode(model, program: _Program, params, condition, condition_mask, keys, numbers: _Numbers):
    decoder, params = model.for_decoding(params)
    apply = functools.partial(decoder.apply, {"params": params})
    B, T = condition.shape[0], model.config.condition_length
    num_guided, length = program.num_guided, model.config.code_length
    pick = functools.partial(_pick, program, numbers, keys)

    def step(carry, index):
        """Feeds code index - 1 and picks code `index`."""
        codes, cache = carry
        rows = jax.tree.leaves(cache)[0].shape[0]
        branches = rows // B
        x = apply(jnp.tile(codes, branches)[:, None], method="embed_codes")
        positions = jnp.full((rows, 1), T + index - 1)
        mask = None if condition_mask is None else jnp.tile(condition_mask, (branches, 1))
        logits, cache = apply(x, positions, mask, cache, method="extend")
        codes = pick(logits, index)
        return (codes, cache), codes

    if num_guided:
        drop = jnp.repeat(jnp.array([False, True]), B)
        condition = jnp.concatenate([condition, condition])
        mask = None if condition_mask is None else jnp.tile(condition_mask, (2, 1))
    else:
        drop, mask = None, condition_mask
    x = apply(condition, mask, drop, method="embed_condition")
    cache = decoder.init_cache(condition.shape[0])
    logits, cache = apply(x, jnp.arange(T)[None], mask, cache, method="extend")
    first = pick(logits, 0)
    carry, guided = jax.lax.scan(step, (first, cache), jnp.arange(1, max(num_guided, 1)))
    codes, cache = carry
    cache = jax.tree.map(lambda leaf: leaf[:B], cache)
    _, unguided = jax.lax.scan(step, (codes, cache), jnp.arange(max(num_guided, 1), length))
    return jnp.concatenate([first[None], guided, unguided]).T


def _pick(
    program: _Program,
    numbers: _Numbers,
    keys: Shaped[AnyArray, " B"],
    logits: Float[AnyArray, "rows V"],
    index: jax.typing.ArrayLike,
) -> Int[Array, " B"]:
    """The codes number `index`, from logits of B rows, or of 2B: conditional, then null."""
    if logits.shape[0] > keys.shape[0]:
        cond, uncond = jnp.split(logits, 2)
        logits = guide(cond, uncond, numbers.guidance_scale)
    if program.greedy:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    top_p = numbers.top_p if program.filter_top_p else 1.0
    logits = filter_logits(logits / numbers.temperature, program.top_k, top_p)
    code_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
    return jax.vmap(jax.random.categorical)(code_keys, logits).astype(jnp.int32)
