"""What every decoder does in the same way: the prefill, and drawing codes from logits.

Axes: B samples, L codes, T condition tokens, C width of text features, H W pixels, V vocabulary,
and F, P, D of `Llama`; rows are B, or 2B with guidance: conditional, then null.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer, Shaped, UInt8

from llamagen_jax.models.layers import AnyArray
from llamagen_jax.models.llama_block import Cache
from llamagen_jax.models.llama_config import LlamaConfig
from llamagen_jax.sampling.filters import filter_logits, guide
from llamagen_jax.sampling.settings import SamplingSettings


class Inputs(NamedTuple):
    """What each sample of a batch is drawn from; all but the keys are as `generate` takes them.

    Attributes:
      keys: random keys [B], of `generate.sample_keys`.
      condition: int labels [B] or text features [B, T, C].
      condition_mask: bool [B, T], False at padding; None for no padding.
      known: int32 [B, L], codes that are kept, -1 where one is drawn; None to draw all.
      control: uint8 images [B, H, W, 3]; None for none.
    """

    keys: Shaped[AnyArray, " B"]
    condition: Shaped[AnyArray, "B ..."]
    condition_mask: Bool[AnyArray, "B T"] | None = None
    known: Integer[AnyArray, "B L"] | None = None
    control: UInt8[AnyArray, "B H W 3"] | None = None


class Program(NamedTuple):
    """What of the settings another program is compiled for."""

    num_guided: int
    top_k: int
    filter_top_p: bool
    greedy: bool


class Numbers(NamedTuple):
    """What of the settings a program takes as it runs."""

    guidance_scale: float
    temperature: float
    top_p: float
    control_scale: float
    keep_control: bool


def split_settings(settings: SamplingSettings, config: LlamaConfig) -> tuple[Program, Numbers]:
    """The settings for a model, by when they are needed."""
    program = Program(
        num_guided=settings.num_guided(config.code_length),
        top_k=min(settings.top_k, config.vocab_size),
        filter_top_p=settings.top_p < 1,
        greedy=settings.greedy,
    )
    numbers = Numbers(**{name: getattr(settings, name) for name in Numbers._fields})
    return program, numbers


def embed_control(
    apply: Callable,
    control: UInt8[AnyArray, "B H W 3"] | None,
    numbers: Numbers,
    num_rows: int,
) -> Float[Array, "rows F P D"] | None:
    """What control images add in every row.

    Args:
      apply: of the model with its variables.
      control: of `Llama.embed_control`; None for none.
    """
    if control is None:
        return None
    added = apply(control, numbers.control_scale, method="embed_control")
    return with_null_rows(added, numbers.keep_control)[:num_rows]


def with_null_rows(
    control: Float[AnyArray, "B F P D"], keep: Bool[AnyArray, "*B"] | bool
) -> Float[Array, "2*B F P D"]:
    """What control adds to the conditional rows and to the null rows below, where `keep` says."""
    null = jnp.where(jnp.reshape(keep, (-1, 1, 1, 1)), control, 0)
    return jnp.concatenate([control, null])


def prefill(
    apply: Callable,
    cache: Cache,
    condition: Shaped[AnyArray, "B ..."],
    condition_mask: Bool[AnyArray, "B T"] | None,
    control: Float[AnyArray, "rows F P D"] | None = None,
    sizes: Integer[AnyArray, " B"] | None = None,
) -> tuple[Float[Array, "rows V"], Cache]:
    """Feeds the condition, and below it the null condition where the empty cache has 2B rows.

    Args:
      apply: of the model with its variables.
      control: of `embed_control`.
      sizes: of `Llama.transform`.

    Returns:
      float32 logits of the first code [rows, V], and the cache with the condition's positions.
    """
    B, drop, mask = condition.shape[0], None, condition_mask
    if num_rows(cache) > B:
        drop = jnp.repeat(jnp.array([False, True]), B)
        condition = jnp.concatenate([condition, condition])
        mask = None if mask is None else jnp.tile(mask, (2, 1))
        sizes = None if sizes is None else jnp.tile(sizes, 2)
    x = apply(condition, mask, drop, sizes, method="embed_condition")
    positions = jnp.arange(x.shape[1])[None]
    return apply(x, positions, mask, cache, control, sizes, method="extend")


def num_rows(cache: Cache) -> int:
    """Rows of the cache of a model whose layers are apart."""
    return jax.tree.leaves(cache)[0].shape[0]


def pick(
    program: Program,
    numbers: Numbers,
    keys: Shaped[AnyArray, " B"],
    logits: Float[AnyArray, "rows V"],
    index: Integer[AnyArray, " B"],
) -> Int[Array, " B"]:
    """Draws code number `index` of each sample.

    It is the greatest of the filtered logits plus Gumbel noise that (key, index) alone decide, so
    equal logits give an equal code in whichever pass of whichever decoder.
    """
    if logits.shape[0] > keys.shape[0]:
        cond, uncond = jnp.split(logits, 2)
        guided = guide(cond, uncond, numbers.guidance_scale)
        logits = jnp.where((index < program.num_guided)[:, None], guided, cond)
    if program.greedy:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    top_p = numbers.top_p if program.filter_top_p else 1.0
    logits = filter_logits(logits / numbers.temperature, program.top_k, top_p)
    return categorical(keys, logits, index)


def keep_known(
    known: Integer[AnyArray, "*shape"] | None, codes: Integer[AnyArray, "*shape"]
) -> Int[Array, "*shape"]:
    """The known code wherever that is not -1, else the one in `codes`; None knows none."""
    return jnp.asarray(codes) if known is None else jnp.where(known >= 0, known, codes)


def categorical(
    keys: Shaped[AnyArray, " B"],
    logits: Float[AnyArray, "B V"],
    index: Integer[AnyArray, " B"],
) -> Int[Array, " B"]:
    """The greatest of the logits plus the Gumbel noise of each sample's code number `index`."""
    code_keys = jax.vmap(jax.random.fold_in)(keys, index)
    return jax.vmap(jax.random.categorical)(code_keys, logits).astype(jnp.int32)
