"""A batch whose samples begin and end apart: the engine's part on the devices.

Each slot holds one sample with its own condition, settings and pace. A sample's codes depend on the
others in no way, and are those of `generate` for its settings and sample id, except where a matrix
product that rounds differently at another shape tips an almost exact tie.

Axes: S slots, P samples that enter, L codes, T condition tokens, V vocabulary; rows of the cache
are 2S or 2P: conditional, then null. F, P, D of what control adds are those of `Llama`.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer, Shaped, UInt8

from llamagen_jax.models.layers import AnyArray
from llamagen_jax.models.llama import Llama
from llamagen_jax.models.llama_block import Cache
from llamagen_jax.models.llama_config import LlamaConfig
from llamagen_jax.sampling import draw, jacobi, windows
from llamagen_jax.sampling.filters import guide, keep_top_k, keep_top_p
from llamagen_jax.sampling.generate import sample_keys
from llamagen_jax.sampling.settings import SamplingSettings
from llamagen_jax.sampling.windows import Progress
from llamagen_jax.sharding import Rules

# Slots over the ways that a batch is split, heads over those that parameters are.
RULES: Rules = ((r"^cache/", (("data", "fsdp"), "tensor")), (r"", (("data", "fsdp"),)))


class Samples(NamedTuple):
    """How the sample of each slot is drawn: its key and `SamplingSettings`, as arrays [S].

    Attributes:
      size: which of the model's `trained_grids` the codes are on.
      num_guided: how many codes are guided; they come first.
      top_k: 1 to V.
      control_scale: 0 for a sample without control.
    """

    keys: AnyArray
    size: AnyArray
    num_guided: AnyArray
    guidance_scale: AnyArray
    temperature: AnyArray
    top_k: AnyArray
    top_p: AnyArray
    greedy: AnyArray
    control_scale: AnyArray
    keep_control: AnyArray


class Slots(NamedTuple):
    """The state of all slots; one that is free holds a sample that nobody waits for.

    Attributes:
      progress: codes [S, L], with room for the largest grid, how many of each are done, and which
        are known.
      cache: of 2S rows.
      condition_mask: bool [S, T], False at padding; None for a condition without padding.
      samples: [S].
      control: [S, F, P, D] of `Llama.embed_control`; None for a model without control.
    """

    progress: Progress
    cache: Cache
    condition_mask: AnyArray | None
    samples: Samples
    control: AnyArray | None


def sample_of(
    settings: SamplingSettings, sample_id: int, config: LlamaConfig, has_control: bool = False
) -> Samples:
    """One sample on the grid of `config`, as host arrays [1]; its key as numbers [1, 2]."""
    vocabulary = config.vocab_size
    return Samples(
        keys=np.asarray(jax.random.key_data(sample_keys(settings.seed, [sample_id]))),
        size=np.array([config.size_index(config.grid)], np.int32),
        num_guided=np.array([settings.num_guided(config.code_length)], np.int32),
        guidance_scale=np.array([settings.guidance_scale], np.float32),
        temperature=np.array([settings.temperature], np.float32),
        top_k=np.array([min(settings.top_k, vocabulary) or vocabulary], np.int32),
        top_p=np.array([settings.top_p], np.float32),
        greedy=np.array([settings.greedy]),
        control_scale=np.array([settings.control_scale * has_control], np.float32),
        keep_control=np.array([settings.keep_control]),
    )


def empty(model: Llama, num_slots: int) -> Slots:
    """Free slots of a model laid out by `Llama.for_decoding`."""
    config = model.config
    # No weak type, which would make these other arguments than those that `enter` returns.
    done = jnp.full(num_slots, config.code_length, jnp.int32)
    room = max(map(math.prod, config.trained_grids))
    codes = jnp.zeros((num_slots, room), jnp.int32)
    known = jnp.full_like(codes, -1)
    mask = None
    if config.condition == "text":
        mask = jnp.ones((num_slots, config.condition_length), bool)
    with jax.ensure_compile_time_eval():
        sample = _with_keys(sample_of(SamplingSettings(seed=0), 0, config))
    samples = jax.tree.map(lambda leaf: jnp.repeat(leaf, num_slots), sample)
    cache = model.init_cache(2 * num_slots, config.condition_length + room)
    control = None
    if config.control_layers:
        positions = config.condition_length + room - 1
        shape = num_slots, len(config.control_depths), positions, config.dim
        control = jnp.zeros(shape, config.dtype)
    return Slots(Progress(codes, done, done, known), cache, mask, samples, control)


def _with_keys(samples: Samples) -> Samples:
    return samples._replace(keys=jax.random.wrap_key_data(jnp.asarray(samples.keys)))


def enter(
    model: Llama,
    params: dict,
    slots: Slots,
    places: Int[AnyArray, " P"],
    condition: Shaped[AnyArray, "P ..."],
    condition_mask: Bool[AnyArray, "P T"] | None,
    samples: Samples,
    known: Int[AnyArray, "P L"] | None = None,
    controls: Sequence[UInt8[AnyArray, "P H W 3"]] | None = None,
) -> Slots:
    """Prefills new samples, draws their first code, and puts them in the slots `places`.

    Args:
      places: different numbers of slots; a sample whose place is S or more goes nowhere.
      samples: [P], of `sample_of`.
      known: of `generate`.
      controls: images of the size of each of the model's `trained_grids`, of any pixels where a
        sample has none of that size; None for a model without control.
    """
    samples = _with_keys(samples)
    P, (S, room) = len(places), slots.progress.codes.shape
    sizes = samples.size if model.config.grids else None
    apply = functools.partial(model.apply, {"params": params})
    cache = model.init_cache(2 * P, model.config.condition_length)
    added = rows = None
    if controls is not None:
        added = _embed_controls(model, params, controls, samples, room)
        rows = draw.with_null_rows(added, samples.keep_control)
    logits, cache = draw.prefill(apply, cache, condition, condition_mask, rows, sizes)
    if known is None:
        known = jnp.full((P, room), -1, jnp.int32)
    first = draw.keep_known(known[:, 0], pick(samples, logits, jnp.zeros(P, int)))
    progress = windows.start(first, room, known)

    def put(old, new):
        return old.at[places].set(new, mode="drop")

    # A place that is none is no row of the null branch either.
    branches = jnp.concatenate([places, places + S])
    branches = jnp.where(jnp.tile(places < S, 2), branches, 2 * S)

    def put_keys(old, new):
        return old.at[branches, :, : new.shape[2]].set(new, mode="drop")

    mask = slots.condition_mask
    return Slots(
        jax.tree.map(put, slots.progress, progress),
        jax.tree.map(put_keys, slots.cache, cache),
        None if mask is None else put(mask, condition_mask),
        jax.tree.map(put, slots.samples, samples),
        None if added is None else put(slots.control, added),
    )


def _embed_controls(model, params, controls, samples: Samples, room: int):
    """[P, F, P', D] of `Llama.embed_control`, with zeros after the codes of smaller grids."""
    added = []
    for index, (grid, images) in enumerate(zip(model.config.trained_grids, controls, strict=True)):
        on_grid, scale = model.for_grid(grid), samples.control_scale * (samples.size == index)
        own = _embed_control(on_grid, params, images, scale)
        after = room - on_grid.config.code_length
        added.append(jnp.pad(own, ((0, 0), (0, 0), (0, after), (0, 0))))
    # Of other grids than a sample's own it is zero.
    return functools.reduce(jnp.add, added)


def _embed_control(model, params, images, scale):
    """`Llama.embed_control`; its encoder runs only where it counts for one of the samples."""
    embed = functools.partial(model.apply, {"params": params}, method="embed_control")
    zeros = jnp.zeros_like(jax.eval_shape(embed, images, scale))
    return jax.lax.cond(jnp.any(scale > 0), embed, lambda *_: zeros, images, scale)


def advance(
    model: Llama, params: dict, slots: Slots, *, passes: int, width: int, guided: bool, size: int
) -> Slots:
    """Takes several passes over the next codes of the first slots; done samples stay as they are.

    Args:
      width: codes in a pass, of which one or more are right; 1 draws plainly.
      guided: whether a sample has guided codes left, so that the null branch has to be computed.
      size: how many slots are computed; nobody waits for those after.
    """
    branches = 2 if guided else 1
    progress, condition_mask, samples, control = jax.tree.map(
        lambda leaf: leaf[:size],
        (slots.progress, slots.condition_mask, slots.samples, slots.control),
    )
    if control is not None:
        control = draw.with_null_rows(control, samples.keep_control)
    apply, config = functools.partial(model.apply, {"params": params}), model.config
    score = functools.partial(
        windows.score, apply, config.condition_length, condition_mask, control
    )
    columns, lengths = config.grid[1], None
    if config.grids:
        score = functools.partial(score, sizes=samples.size)
        columns = jnp.array([columns for _, columns in config.grids])[samples.size, None]
        lengths = jnp.array([math.prod(grid) for grid in config.grids])[samples.size]

    def step(carry, _):
        return jacobi.advance(score, pick, samples, width, columns, *carry, lengths=lengths), None

    def by_branch(leaf):
        return leaf.reshape(2, -1, *leaf.shape[1:])

    def read(leaf):
        return by_branch(leaf)[:branches, :size].reshape(-1, *leaf.shape[1:])

    def write(leaf, new):
        new = new.reshape(branches, size, *leaf.shape[1:])
        return by_branch(leaf).at[:branches, :size].set(new).reshape(leaf.shape)

    cache = jax.tree.map(read, slots.cache)
    (progress, cache), _ = jax.lax.scan(step, (progress, cache), length=passes)
    return slots._replace(
        progress=jax.tree.map(lambda old, new: old.at[:size].set(new), slots.progress, progress),
        cache=jax.tree.map(write, slots.cache, cache),
    )


def pick(
    samples: Samples, logits: Float[AnyArray, "rows V"], index: Integer[AnyArray, " B"]
) -> Int[Array, " B"]:
    """`draw.pick` where each sample [B] has settings of its own; rows are B or 2B."""
    if logits.shape[0] > len(index):
        cond, uncond = jnp.split(logits, 2)
        guided = guide(cond, uncond, samples.guidance_scale[:, None])
        logits = jnp.where((index < samples.num_guided)[:, None], guided, cond)
    scaled = logits / samples.temperature[:, None]
    vocabulary, top_p = logits.shape[1], samples.top_p[:, None]

    def kept_by_p(logits: Any) -> Any:
        return jnp.where(top_p < 1, keep_top_p(logits, top_p), logits)

    filtered = jax.lax.cond(
        jnp.any(samples.top_k < vocabulary),
        lambda logits: keep_top_k(logits, samples.top_k[:, None]),
        lambda logits: logits,
        scaled,
    )
    # It sorts the vocabulary.
    filtered = jax.lax.cond(jnp.any(top_p < 1), kept_by_p, lambda logits: logits, filtered)
    drawn = draw.categorical(samples.keys, filtered, index)
    return jnp.where(samples.greedy, jnp.argmax(logits, axis=-1).astype(jnp.int32), drawn)
