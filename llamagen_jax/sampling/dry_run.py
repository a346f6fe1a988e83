"""What drawing a batch would take, from shapes and the compiled program alone: nothing is drawn."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from llamagen_jax.models.llama import Llama
from llamagen_jax.sampling.generate import generate
from llamagen_jax.sampling.settings import SamplingSettings
from llamagen_jax.weights.kinds import kind_of
from llamagen_jax.weights.shapes import abstract_params

_GIB = 2**30


def report(
    model: Llama, batch_size: int, settings: SamplingSettings, weights: str = "float"
) -> str:
    """Memory of one device that draws the codes of `batch_size` samples, as text.

    `weights` is of `Llama.for_decoding`.
    The rest is what the compiler needs for the platform at hand beside weights and cache. On CPU it
    comes out too high for bfloat16 models, since XLA widens their products there.
    """
    memory = analyse(model, batch_size, settings, weights)
    needed = memory["weights"] + memory["cache"]
    lines = {name: f"{size / _GIB:.2f}" for name, size in memory.items()}
    lines |= {"peak, of weights and cache": f"{memory['peak'] / needed:.2f} times"}
    return "\n".join(f"{name:32}{value:>12}" for name, value in {"": "GiB", **lines}.items())


def analyse(
    model: Llama, batch_size: int, settings: SamplingSettings, weights: str = "float"
) -> dict[str, int]:
    """Bytes of weights, cache, the rest and all together ("peak"); of `report`."""
    c = model.config
    stacked = abstract_params(model, *kind_of(c).inputs(c))
    params: Any = jax.eval_shape(lambda params: model.for_decoding(params, weights)[1], stacked)
    decoder = model.clone(scan_layers=False, weights=weights)
    shape = jax.ShapeDtypeStruct
    condition, mask = shape((batch_size,), jnp.int32), None
    if c.condition == "text":
        size = batch_size, c.condition_length
        condition, mask = shape((*size, c.caption_dim), jnp.bfloat16), shape(size, bool)

    def draw(params: Any, condition: Any, mask: Any) -> jax.Array:
        return generate(decoder, params, condition, settings=settings, condition_mask=mask)

    compiled = jax.jit(draw).lower(params, condition, mask).compile()
    found: Any = compiled.memory_analysis()
    rows = batch_size * (2 if settings.num_guided(c.code_length) else 1)
    needed = {
        "weights": _bytes(params),
        "cache": _bytes(jax.eval_shape(functools.partial(decoder.init_cache, rows))),
    }
    peak = found.argument_size_in_bytes + found.temp_size_in_bytes + found.output_size_in_bytes
    return {**needed, "the rest": peak - sum(needed.values()), "peak": peak}


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
