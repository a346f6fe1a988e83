"""Sampling codes from a transformer: logit filters, guidance, one prefill and one `lax.scan`.

Axes: B samples, L codes, T condition tokens, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp

from llamagen_jax.errors import InputError


def generate(
    model,
    params,
    condition,
    *,
    seed: int,
    condition_mask=None,
    sample_ids=None,
    guidance_scale: float = 1.0,
    guidance_interval: int | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    greedy: bool = False,
) -> jax.Array:
    """Draws one code sequence per condition with a key-value cache, in one jitted call.

    The random key of a code comes from (seed, sample id, position) alone, so a sample does not
    depend on its batch or on the devices it is drawn on, except where matrix products that round
    differently at another shape tip an almost exact tie.

    Args:
      model: a `Llama`.
      params: its parameters, layers stacked.
      condition: int labels [B] or text features [B, T, caption_dim].
      seed: any int.
      condition_mask: bool [B, T], False at padding; None for no padding.
      sample_ids: int [B], 0 ... B-1 by default; samples of equal id and condition are equal.
      guidance_scale: logits are uncond + scale * (cond - uncond); at most 1 means no guidance and
        computes no unconditional branch.
      guidance_interval: None to guide every code; n to guide the first n + 2 only (the count of
        the original's `cfg_interval=n`), after which the unconditional branch is not computed.
      temperature: > 0, divides the logits before the filters.
      top_k: keep the k most probable codes and those tied with the last; 0 keeps all.
      top_p: keep the most probable codes up to and including the one that brings their
        probability over top_p; 1 keeps all.
      greedy: take the most probable code; temperature and filters then change nothing.

    Returns:
      int32 codes [B, L].

    Raises:
      InputError: a sampling setting is out of its range (the message names it).
    """
    if temperature <= 0:
        raise InputError(f"temperature={temperature} must be positive; use greedy for the limit")
    if not 0 < top_p <= 1:
        raise InputError(f"top_p={top_p} must be in (0, 1]")
    if top_k < 0:
        raise InputError(f"top_k={top_k} must not be negative")
    if guidance_interval is not None and guidance_interval < 0:
        raise InputError(f"guidance_interval={guidance_interval} must not be negative")
    length = model.config.code_length
    if guidance_scale <= 1:
        num_guided = 0
    else:
        num_guided = length if guidance_interval is None else min(length, guidance_interval + 2)
    condition = jnp.asarray(condition)
    if sample_ids is None:
        sample_ids = jnp.arange(condition.shape[0])
    return _generate(
        model,
        num_guided,
        min(top_k, model.config.vocab_size),
        top_p < 1,
        greedy,
        params,
        condition,
        condition_mask,
        _sample_keys(seed, sample_ids),
        guidance_scale,
        temperature,
        top_p,
    )


def filter_logits(logits: jax.Array, top_k: int = 0, top_p: jax.Array | float = 1.0) -> jax.Array:
    """Sets the logits [..., V] outside the top-k, then those outside the top-p set, to -inf.

    As the original: ties with the k-th logit stay, and so does the first code over top_p.
    """
    if top_k:
        smallest_kept = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits < smallest_kept, -jnp.inf, logits)
    if isinstance(top_p, float) and top_p >= 1:
        return logits
    order = jnp.argsort(logits, axis=-1, descending=True)
    probs = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1))
    outside = jnp.cumsum(probs, axis=-1) - probs > top_p
    outside = jnp.put_along_axis(jnp.zeros_like(outside), order, outside, axis=-1, inplace=False)
    return jnp.where(outside, -jnp.inf, logits)


def _sample_keys(seed, sample_ids):
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.asarray(sample_ids))


@functools.partial(jax.jit, static_argnums=range(5))
def _generate(
    model,
    num_guided,
    top_k,
    filter_top_p,
    greedy,
    params,
    condition,
    condition_mask,
    keys,
    guidance_scale,
    temperature,
    top_p,
):
    decoder, variables = model.for_decoding(params)
    apply = functools.partial(decoder.apply, variables)
    B, T = condition.shape[0], model.config.condition_length
    length = model.config.code_length

    def pick(logits, index):
        """Next codes [B] from the logits [B, V], or [2B, V] where guided (cond, then uncond)."""
        if logits.shape[0] > B:
            cond, uncond = jnp.split(logits, 2)
            logits = uncond + guidance_scale * (cond - uncond)
        if greedy:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        logits = filter_logits(logits / temperature, top_k, top_p if filter_top_p else 1.0)
        code_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
        return jax.vmap(jax.random.categorical)(code_keys, logits).astype(jnp.int32)

    def decode(carry, index):
        """Feeds code index - 1 and picks code `index`."""
        codes, cache = carry
        branches = jax.tree.leaves(cache)[0].shape[0] // B
        x = apply(jnp.tile(codes, branches)[:, None], method="embed_codes")
        positions = T + index[None] - 1
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
    logits, cache = apply(x, jnp.arange(T), mask, cache, method="extend")
    first = pick(logits, 0)
    carry, guided = jax.lax.scan(decode, (first, cache), jnp.arange(1, max(num_guided, 1)))
    codes, cache = carry
    cache = jax.tree.map(lambda leaf: leaf[:B], cache)
    _, unguided = jax.lax.scan(decode, (codes, cache), jnp.arange(max(num_guided, 1), length))
    return jnp.concatenate([first[None], guided, unguided]).T
