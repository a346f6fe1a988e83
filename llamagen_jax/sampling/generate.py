"""Samples codes with any of the decoders.

Axes: B samples, L codes, T condition tokens, C width of text features.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Integer, Shaped

from llamagen_jax import seeds
from llamagen_jax.models.layers import AnyArray
from llamagen_jax.models.llama import Llama
from llamagen_jax.sampling import plain
from llamagen_jax.sampling.settings import SamplingSettings


def generate(
    model: Llama,
    params: dict,
    condition: Shaped[AnyArray, "B ..."] | list[int],
    *,
    settings: SamplingSettings | None = None,
    condition_mask: Bool[AnyArray, "B T"] | None = None,
    sample_ids: Integer[AnyArray, "B ..."] | list[int] | None = None,
    **fields,
) -> Int[Array, "B L"]:
    """Draws one code sequence per condition with a key-value cache, in one jitted call.

    The random key of a code comes from (seed, sample id, position) alone, so a sample does not
    depend on its batch or on the devices it is drawn on, except where matrix products that round
    differently at another shape tip an almost exact tie.

    Args:
      model, params: a `Llama` and its parameters, as they are loaded; or both as
        `Llama.for_decoding` returns them, which saves laying them out in every call.
      condition: int labels [B] or text features [B, T, C].
      settings: how to draw; its fields may also, or instead, be given one by one.
      condition_mask: bool [B, T], False at padding; None for no padding.
      sample_ids: whole numbers [B] from 0 to 2^64 - 1, or their `seeds.halves`; 0 ... B-1 by
        default. Samples of equal id and condition are equal.
      **fields: of `SamplingSettings`; `seed` must be given in either way.

    Returns:
      int32 codes [B, L].

    Raises:
      InputError: a sampling setting or a sample id is out of its range (the message names it).
    """
    if settings is None:
        settings = SamplingSettings(**fields)
    else:
        settings = dataclasses.replace(settings, **fields)
    condition = jnp.asarray(condition)
    if sample_ids is None:
        sample_ids = jnp.arange(condition.shape[0])
    keys = sample_keys(settings.seed, sample_ids)
    return plain.decode(model, params, condition, condition_mask, keys, settings)


def sample_keys(seed: int, sample_ids: Integer[AnyArray, "B ..."] | list[int]) -> jax.Array:
    """Random keys [B]: that of a code is its sample's, folded with the code's position."""
    return jax.vmap(seeds.fold_in, (None, 0))(seeds.key(seed), seeds.halves(sample_ids))
