"""The plain decoder: one prefill, then one code after another in a `lax.scan`.

Axes: B samples, L codes, T condition tokens.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped

from llamagen_jax.models.layers import AnyArray
from llamagen_jax.models.llama import Llama
from llamagen_jax.sampling import draw
from llamagen_jax.sampling.draw import Numbers, Program
from llamagen_jax.sampling.settings import SamplingSettings


def decode(
    model: Llama,
    params: dict,
    condition: Shaped[AnyArray, "B ..."],
    condition_mask: Bool[AnyArray, "B T"] | None,
    keys: Shaped[AnyArray, " B"],
    settings: SamplingSettings,
) -> Int[Array, "B L"]:
    """Codes int32 [B, L]; arguments as of `generate`, with a random key per sample."""
    program, numbers = draw.split_settings(settings, model.config)
    return _decode(model, program, params, condition, condition_mask, keys, numbers)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _decode(model, program: Program, params, condition, condition_mask, keys, numbers: Numbers):
    decoder, params = model.for_decoding(params)
    apply = functools.partial(decoder.apply, {"params": params})
    B, T = condition.shape[0], model.config.condition_length
    num_guided, length = program.num_guided, model.config.code_length
    pick = functools.partial(draw.pick, program, numbers, keys)

    def step(carry, index):
        """Feeds code index - 1 and picks code `index`."""
        codes, cache = carry
        rows = draw.num_rows(cache)
        branches = rows // B
        x = apply(jnp.tile(codes, branches)[:, None], method="embed_codes")
        positions = jnp.full((rows, 1), T + index - 1)
        mask = None if condition_mask is None else jnp.tile(condition_mask, (branches, 1))
        logits, cache = apply(x, positions, mask, cache, method="extend")
        codes = pick(logits, jnp.full(B, index))
        return (codes, cache), codes

    cache = decoder.init_cache(2 * B if num_guided else B)
    logits, cache = draw.prefill(apply, cache, condition, condition_mask)
    first = pick(logits, jnp.zeros(B, int))
    carry, guided = jax.lax.scan(step, (first, cache), jnp.arange(1, max(num_guided, 1)))
    codes, cache = carry
    cache = jax.tree.map(lambda leaf: leaf[:B], cache)
    _, unguided = jax.lax.scan(step, (codes, cache), jnp.arange(max(num_guided, 1), length))
    return jnp.concatenate([first[None], guided, unguided]).T
