"""The Jacobi decoder: what a pass drew is the next pass's guess, so that no other model is needed.

This is the parallel fixed-point iteration of arXiv 2305.10427, of samples by the noise that each
position keeps (`windows` derives it; arXiv 2510.24211 keeps the noise as well).

Axes: B samples, L codes, T condition tokens.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Integer

from llamagen_jax.models.layers import AnyArray
from llamagen_jax.models.llama import Llama
from llamagen_jax.models.llama_block import Cache
from llamagen_jax.sampling import draw, windows
from llamagen_jax.sampling.draw import Inputs, Numbers, Program
from llamagen_jax.sampling.settings import SamplingSettings
from llamagen_jax.sampling.windows import Progress

# On the digits, windows of 8 and 16 took 27 and 23 passes for 64 codes; at the size of GPT-B on two
# CPU cores a pass for a guided image took 1.5 and 3.2 times that of one code.
WINDOW = 8


def decode(model: Llama, params: dict, inputs: Inputs, settings: SamplingSettings) -> Progress:
    """All codes, and the passes they took; arguments as of `plain.decode`."""
    program, numbers = draw.split_settings(settings, model.config)
    return _decode(model, program, params, inputs, numbers)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _decode(model, program: Program, params, inputs: Inputs, numbers: Numbers):
    decoder, params = model.for_decoding(params)
    apply = functools.partial(decoder.apply, {"params": params})
    config, B = model.config, len(inputs.condition)
    width, num_columns = min(WINDOW, config.code_length - 1), config.grid[1]
    pick = functools.partial(draw.pick, program, numbers)
    rows = 2 * B if program.num_guided else B
    added = draw.embed_control(apply, inputs.control, numbers, rows)
    length, mask = config.condition_length, inputs.condition_mask
    score = functools.partial(windows.score, apply, length, mask, added)

    def step(carry):
        return advance(score, pick, inputs.keys, width, num_columns, *carry)

    cache = decoder.init_cache(rows)
    logits, cache = draw.prefill(apply, cache, inputs.condition, mask, added)
    first = pick(inputs.keys, logits, jnp.zeros(B, int))
    progress = windows.start(first, config.code_length, inputs.known)
    return windows.repeat(step, progress, cache, program.num_guided)


def advance(
    score: Callable,
    pick: Callable,
    samples: Any,
    width: int,
    num_columns: Integer[AnyArray, "B 1"] | int,
    progress: Progress,
    cache: Cache,
    lengths: Integer[AnyArray, " B"] | None = None,
) -> tuple[Progress, Cache]:
    """One pass over the next `width` codes of each sample; with 1 it is the plain decoder's step.

    Args:
      score, pick, samples: of `windows.verify`.
      num_columns: of the grid of codes, or of each sample's.
      lengths: of `windows.place`.
    """
    places = windows.place(progress, width, lengths)
    progress, cache = windows.verify(score, pick, samples, progress, places, cache)
    codes = _copy_above(progress.codes, places[:, -1:] + 1, num_columns)
    return progress._replace(codes=draw.keep_known(progress.known, codes)), cache


def _copy_above(codes, first, num_columns):
    """Codes [B, L] with those from `first` [B, 1] on copied from the nearest above that is earlier.

    Copying the one to the left, drawing from its distribution or a constant code took more passes.
    """
    places = jnp.arange(codes.shape[1])
    rows_up = jnp.maximum((places - first) // num_columns + 1, 0)
    above = jnp.maximum(places - num_columns * rows_up, 0)
    return jnp.take_along_axis(codes, above, axis=1)
