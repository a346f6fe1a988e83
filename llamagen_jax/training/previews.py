"""Pictures that show how far a run has come."""

import functools

import jax
import numpy as np

from llamagen_jax import sampling, sharding
from llamagen_jax.images import from_uint8
from llamagen_jax.models.llama import Llama
from llamagen_jax.models.vqgan import VQGAN
from llamagen_jax.training.config import GeneratorTraining

_IMAGES = 16
# Up to this many classes or captions, each with this many images, make the samples' grid.
_ROWS = 8
_COLUMNS = 4


def reconstructions(model: VQGAN, params: dict, batch: dict) -> np.ndarray:
    """The first images of the batch over what the tokenizer makes of them, [2, n, H, W, 3]."""
    images = from_uint8(sharding.fetch(batch["image"])[:_IMAGES])
    output = jax.jit(model.apply)({"params": params}, images)
    return np.stack([images, sharding.fetch(output.reconstruction)])


def samples(
    config: GeneratorTraining, vqgan: VQGAN, vqgan_params: dict, params: dict, batch: dict
) -> np.ndarray:
    """Samples of the first classes, or of the first captions of the batch; a row for each."""
    model = Llama(config.model)
    if model.config.condition == "class":
        labels = np.arange(min(model.config.num_classes, _ROWS), dtype=np.int32)
        condition, mask = labels, None
    else:
        condition, mask = (sharding.fetch(batch[name])[:_ROWS] for name in ("features", "mask"))
    codes = sampling.generate(
        model,
        params,
        np.repeat(condition, _COLUMNS, axis=0),
        seed=config.seed,
        condition_mask=None if mask is None else np.repeat(mask, _COLUMNS, axis=0),
        guidance_scale=config.sample.guidance_scale,
        top_k=config.sample.top_k,
    )
    side = model.config.grid_size
    decode = jax.jit(functools.partial(vqgan.apply, method="decode"))
    images = sharding.fetch(decode({"params": vqgan_params}, codes.reshape(-1, side, side)))
    return images.reshape(-1, _COLUMNS, *images.shape[1:])
