"""Several codes per pass, and still the plain decoder's: guess a window of codes, keep the right.

A sample's codes x_0 ... x_{L-1} are a function of its key. With g_i the Gumbel noise of position i,

    x_i = argmax_v [f(x_0 ... x_{i-1})_v + g_iv],

where f are the guided, divided and filtered logits (`draw.pick`). One pass of the model over a
window of guesses y_s ... y_{s+W-1} that follows right codes x_0 ... x_{s-1} computes

    z_i = argmax_v [f(x_0 ... x_{s-1}, y_s ... y_{i-1})_v + g_iv]    for i = s ... s+W-1.

z_s has seen right codes alone, so z_s = x_s. If y_s = z_s, then z_{s+1} has seen right codes alone
as well, and so on: by induction z_i = x_i for every i up to and including the first where y_i
differs from z_i. Those are kept, at least one in each pass. However the guesses were made, and
however often they were kept, what is returned is the plain decoder's sample itself, not another of
the same distribution, except where a matrix product that rounds differently at another shape tips
an almost exact tie. A code that is known takes the place of x_i, z_i and y_i, so it is kept.

Axes: B samples, L codes, W codes of a window, T condition tokens, V vocabulary, and F, P, D of
`Llama`; rows as in `draw`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer

from llamagen_jax.models.layers import AnyArray
from llamagen_jax.models.llama_block import Cache
from llamagen_jax.sampling import draw


class Progress(NamedTuple):
    """How far each sample is.

    Attributes:
      codes: int32 [B, L]; those after the first `done` are guesses.
      done: int32 [B], 1 to L.
      passes: int32 [B], passes of the model that the sample took, the prefill among them.
      known: int32 [B, L], codes that are kept, -1 where one is drawn; None to draw all.
    """

    codes: Array
    done: Array
    passes: Array
    known: AnyArray | None = None


def start(
    first: Integer[Array, " B"], length: int, known: Integer[AnyArray, "B L"] | None = None
) -> Progress:
    """After the prefill, which drew the first code; the guesses repeat it."""
    codes = draw.keep_known(known, jnp.broadcast_to(first[:, None], (len(first), length)))
    return Progress(codes, jnp.ones_like(first), jnp.ones_like(first), known)


def place(
    progress: Progress, width: int, lengths: Integer[AnyArray, " B"] | int | None = None
) -> Int[Array, "B W"]:
    """What the next pass computes: from the first code that is not done, if as many are left.

    Args:
      lengths: codes of each sample, at least `width`; None for all that there is room for.
    """
    lengths = progress.codes.shape[1] if lengths is None else lengths
    first = jnp.minimum(progress.done, lengths - width)
    return first[:, None] + jnp.arange(width)


def score(
    apply: Callable,
    condition_length: int,
    condition_mask: Bool[AnyArray, "B T"] | None,
    control: Float[AnyArray, "all_rows F P D"] | None,
    codes: Integer[AnyArray, "B W"],
    places: Integer[AnyArray, "B W"],
    cache: Cache,
    sizes: Integer[AnyArray, " B"] | None = None,
) -> tuple[Float[Array, "rows W V"], Cache]:
    """Logits of the codes at `places`, which are drawn after the codes before them.

    `control` is of `draw.embed_control`, for the rows of the cache and perhaps for more; `sizes` is
    that of `Llama.transform`.
    """
    branches = draw.num_rows(cache) // len(codes)
    codes = jnp.tile(codes, (branches, 1))
    positions = jnp.tile(condition_length + places - 1, (branches, 1))
    mask = None if condition_mask is None else jnp.tile(condition_mask, (branches, 1))
    x = apply(codes, method="embed_codes")
    control = None if control is None else control[: len(codes)]
    sizes = None if sizes is None else jnp.tile(sizes, branches)
    x, cache = apply(x, positions, mask, cache, control=control, sizes=sizes, method="transform")
    return apply(x, method="logits"), cache


def verify(
    score: Callable,
    pick: Callable,
    samples: Any,
    progress: Progress,
    places: Integer[AnyArray, "B W"],
    cache: Cache,
) -> tuple[Progress, Cache]:
    """One pass over the guesses at `places`.

    Args:
      score: `score` of a model and its condition.
      pick: (samples, logits, index) to codes, such as `draw.pick` with the settings.
      samples: pytree of [B] that `pick` takes of each sample: its key.
    """
    before = jnp.take_along_axis(progress.codes, places - 1, axis=1)
    logits, cache = score(before, places, cache)
    flat = logits.reshape(-1, logits.shape[-1])
    repeated = jax.tree.map(lambda leaf: jnp.repeat(leaf, places.shape[1]), samples)
    drawn = pick(repeated, flat, places.ravel()).reshape(places.shape)
    if progress.known is not None:
        drawn = draw.keep_known(jnp.take_along_axis(progress.known, places, axis=1), drawn)
    return keep(progress, places, drawn), cache


def keep(
    progress: Progress, places: Integer[AnyArray, "B W"], drawn: Integer[AnyArray, "B W"]
) -> Progress:
    """Advances over the guesses at `places` that are right and the first code after them.

    What was drawn after a wrong guess becomes the next guess there.
    """
    codes, done, passes, known = progress
    rows = jnp.arange(len(codes))[:, None]
    final = places < done[:, None]
    guesses = codes[rows, places]
    right = jnp.cumprod(final | (drawn == guesses), axis=1).sum(axis=1)
    end = jnp.minimum(places[:, 0] + right + 1, places[:, -1] + 1)
    codes = codes.at[rows, places].set(jnp.where(final, guesses, drawn))
    passes = passes + (done < codes.shape[1])
    return Progress(codes, end.astype(done.dtype), passes, known)


def repeat(step: Callable, progress: Progress, caches: Any, num_guided: int) -> Progress:
    """Takes steps until all samples are done.

    Args:
      step: (progress, caches) to the same one pass later.
      caches: pytree of 2B rows where codes are guided; the null ones are left out as soon as all
        guided codes are done.
    """
    B, L = progress.codes.shape

    def until(length, carry):
        return jax.lax.while_loop(lambda carry: jnp.any(carry[0].done < length), step, carry)

    carry = progress, caches
    if 0 < num_guided < L:
        progress, caches = until(num_guided, carry)
        carry = progress, jax.tree.map(lambda leaf: leaf[:B], caches)
    return until(L, carry)[0]
