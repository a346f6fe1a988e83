"""The plain decoder: one prefill, then one code after another in a `lax.scan`.

Axes: B samples, L codes, T condition tokens.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from llamagen_jax.models.layers import AnyArray
from llamagen_jax.models.llama import Llama
from llamagen_jax.sampling import draw
from llamagen_jax.sampling.draw import Inputs, Numbers, Program
from llamagen_jax.sampling.settings import SamplingSettings


def decode(
    model: Llama, params: dict, inputs: Inputs, settings: SamplingSettings
) -> Int[Array, "B L"]:
    """Codes int32 [B, L]; model, parameters and settings as of `generate`."""
    program, numbers = draw.split_settings(settings, model.config)
    return _decode(model, program, params, inputs, numbers)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _decode(model, program: Program, params, inputs: Inputs, numbers: Numbers):
    decoder, params = model.for_decoding(params)
    apply = functools.partial(decoder.apply, {"params": params})
    keys, condition, condition_mask, known, control = inputs
    B, T = len(condition), model.config.condition_length
    num_guided = program.num_guided
    pick = functools.partial(draw.pick, program, numbers, keys)

    def step(carry, place):
        """Feeds the code before a place and picks its own."""
        index, known_code = place
        codes, cache = carry
        rows = draw.num_rows(cache)
        branches = rows // B
        x = apply(jnp.tile(codes, branches)[:, None], method="embed_codes")
        positions = jnp.full((rows, 1), T + index - 1)
        mask = None if condition_mask is None else jnp.tile(condition_mask, (branches, 1))
        added = None if control is None else control[:rows]
        logits, cache = apply(x, positions, mask, cache, added, method="extend")
        codes = draw.keep_known(known_code, pick(logits, jnp.full(B, index)))
        return (codes, cache), codes

    rows = 2 * B if num_guided else B
    first, *rest = _parts(decoder, params, rows, num_guided)
    cache = decoder.init_cache(rows, T + first)
    control = draw.embed_control(apply, control, numbers, rows)
    logits, cache = draw.prefill(apply, cache, condition, condition_mask, control)
    known = None if known is None else known.T
    codes = draw.keep_known(_at(known, 0), pick(logits, jnp.zeros(B, int)))
    drawn, start = [codes[None]], 1
    for stop in (first, *rest):
        cache = jax.tree.map(functools.partial(_grow, num_keys=T + stop), cache)
        if start >= num_guided:
            cache = jax.tree.map(lambda leaf: leaf[:B], cache)
        places = jnp.arange(start, stop), _at(known, slice(start, stop))
        (codes, cache), part = jax.lax.scan(step, (codes, cache), places)
        drawn.append(part)
        start = stop
    return jnp.concatenate(drawn).T


def _at(known: AnyArray | None, places: int | slice) -> AnyArray | None:
    return None if known is None else known[places]


def _parts(decoder: Llama, params: dict, rows: int, num_guided: int) -> list[int]:
    """Where the loops over the codes end, each with a cache that has room for its own codes.

    A step reads the whole cache, filled or not. Where that is more than the weights, it grows from
    one loop to the next, which leaves three eighths of it unread for the price of compiling more.
    """
    length = decoder.config.code_length
    sizes = [
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        for tree in (jax.eval_shape(lambda: decoder.init_cache(rows)), params)
    ]
    quarters = 4 if sizes[0] > sizes[1] else 1
    ends = {-(-length * (part + 1) // quarters) for part in range(quarters)}
    return sorted(ends | ({num_guided} if 1 < num_guided < length else set()))


def _grow(leaf: jax.Array, num_keys: int) -> jax.Array:
    """A leaf of the cache [B, K, S, Dh] with room for `num_keys` positions."""
    return jnp.pad(leaf, ((0, 0), (0, 0), (0, num_keys - leaf.shape[2]), (0, 0)))
