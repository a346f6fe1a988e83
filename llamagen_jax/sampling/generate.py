"""Samples codes with any of the decoders.

Axes: B samples, L codes, T condition tokens, C width of text features.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Integer, Shaped

from llamagen_jax import seeds
from llamagen_jax.errors import InputError
from llamagen_jax.models.control import check_control
from llamagen_jax.models.layers import AnyArray
from llamagen_jax.models.llama import Llama
from llamagen_jax.models.llama_config import LlamaConfig
from llamagen_jax.sampling import jacobi, plain, speculative
from llamagen_jax.sampling.draw import Inputs
from llamagen_jax.sampling.settings import SamplingSettings

# Bytes of weights that no cache holds.
_LARGE = 2**27


def generate(
    model: Llama,
    params: dict,
    condition: Shaped[AnyArray, "B ..."] | list[int],
    *,
    settings: SamplingSettings | None = None,
    condition_mask: Bool[AnyArray, "B T"] | None = None,
    sample_ids: Integer[AnyArray, "B ..."] | list[int] | None = None,
    known: Integer[AnyArray, "B L"] | None = None,
    draft: tuple[Llama, dict] | None = None,
    control: Shaped[AnyArray, "..."] | None = None,
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
      known: int32 [B, L], codes that are kept as they are, and -1 where one is drawn. A code is
        drawn with its own random key from the codes before it, known or drawn, row by row: those
        known further on have no say in it. None draws all.
      draft: a small generator of the same codes with its parameters, for the speculative decoder.
      control: images uint8 [B, H, W, 3] of the size `LlamaConfig.control_size`, for a model that
        was trained with control; None draws without. The null branch of guidance has it where the
        settings keep it.
      **fields: of `SamplingSettings`; `seed` must be given in either way.

    Returns:
      int32 codes [B, L].

    Raises:
      InputError: a sampling setting or a sample id is out of its range (the message names it), the
        known codes are no codes of this model, the draft is missing, not used or does not fit, or
        the control does not fit.
    """
    if settings is None:
        settings = SamplingSettings(**fields)
    else:
        settings = dataclasses.replace(settings, **fields)
    condition = jnp.asarray(condition)
    if control is not None:
        control = jnp.asarray(control)
        check_control(model.config, control)
        if len(control) != len(condition):
            raise InputError(
                f"there are {len(control)} control images for {len(condition)} conditions: give "
                "one for each"
            )
    if sample_ids is None:
        sample_ids = jnp.arange(condition.shape[0])
    keys = sample_keys(settings.seed, sample_ids)
    if known is not None:
        known = _check_known(known, condition.shape[0], model.config)
    inputs = Inputs(keys, condition, condition_mask, known, control)
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    decoder = choose_decoder(settings, condition.shape[0], weights, draft is not None)
    if model.config.code_length == 1 or decoder == "plain":
        return plain.decode(model, params, inputs, settings)
    if decoder == "jacobi":
        return jacobi.decode(model, params, inputs, settings).codes
    assert draft is not None
    return speculative.decode(model, params, inputs, settings, draft).codes


def _check_known(known: Any, num_samples: int, config: LlamaConfig) -> jax.Array:
    """int32 [B, L]; values are checked where they are on the host."""
    shape, vocabulary = (num_samples, config.code_length), config.vocab_size
    if known.shape != shape:
        raise InputError(f"known has shape {known.shape}; give codes of shape {shape}")
    if isinstance(known, np.ndarray) and not np.all((known >= -1) & (known < vocabulary)):
        raise InputError(
            f"known must hold codes from 0 to {vocabulary - 1}, and -1 for those to draw"
        )
    return jnp.asarray(known, jnp.int32)


def choose_decoder(
    settings: SamplingSettings, num_samples: int, weights: int, has_draft: bool
) -> str:
    """The decoder's name; for "auto" one that guesses where that pays, else "plain".

    It pays for a single sample of a generator whose weights do not fit in a processor's caches: a
    pass is then bound by reading them, so that more codes cost it little. Larger batches are bound
    by arithmetic, which guesses multiply, and small generators by the number of operations.

    Args:
      num_samples: drawn at a time.
      weights: bytes of the parameters.
      has_draft: whether there is a small generator that guesses.

    Raises:
      InputError: the decoder needs a draft and has none, or has one that it does not use.
    """
    decoder = settings.decoder
    if decoder == "speculative" and not has_draft:
        raise InputError(
            "the speculative decoder needs a draft: name a small generator as the draft"
        )
    if has_draft and decoder not in ("speculative", "auto"):
        raise InputError(
            f"the decoder '{decoder}' uses no draft: leave the draft out, or choose 'speculative'"
        )
    if decoder != "auto":
        return decoder
    if num_samples > 1 or weights < _LARGE:
        return "plain"
    return "speculative" if has_draft else "jacobi"


def sample_keys(seed: int, sample_ids: Integer[AnyArray, "B ..."] | list[int]) -> jax.Array:
    """Random keys [B]: that of a code is its sample's, folded with the code's position."""
    return jax.vmap(seeds.fold_in, (None, 0))(seeds.key(seed), seeds.halves(sample_ids))
