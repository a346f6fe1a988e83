"""Pictures that show how far a run has come."""

import jax
import numpy as np

from llamagen_jax import sharding
from llamagen_jax.generation import generate_images
from llamagen_jax.image_tokenizer import ImageTokenizer
from llamagen_jax.images import from_uint8, on_one_size, to_uint8
from llamagen_jax.models.llama import Llama
from llamagen_jax.models.vqgan import VQGAN
from llamagen_jax.sampling.settings import SamplingSettings
from llamagen_jax.training.config import GeneratorTraining

_IMAGES = 16
# Up to this many classes or captions, each with this many images, make the samples' grid.
_ROWS = 8
_COLUMNS = 4


def reconstructions(model: VQGAN, params: dict, batch: dict) -> np.ndarray:
    """The batch's first images over what the tokenizer makes of them, uint8 [2, n, H, W, 3]."""
    images = from_uint8(sharding.fetch(batch["image"])[:_IMAGES])
    output = jax.jit(model.apply)({"params": params}, images)
    return to_uint8(np.stack([images, sharding.fetch(output.reconstruction)]))


def samples(
    config: GeneratorTraining, tokenizer: ImageTokenizer, params: dict, batch: dict
) -> np.ndarray:
    """Samples of the first classes, or of the first captions of the batch; a row for each.

    They take turns at the grids that the model is trained for, all in cells of one size. With
    control they are of the batch's first controls and their classes or captions, on their grid,
    each row after its control.
    """
    model = Llama(config.model)
    first = {name: sharding.fetch(rows)[:_ROWS] for name, rows in batch.items() if name != "codes"}
    control, mask = first.get("control"), first.get("mask")
    if model.config.condition == "text":
        condition = first["features"]
    elif control is not None:
        condition = first["label"]
    else:
        condition = np.arange(min(model.config.num_classes, _ROWS), dtype=np.int32)
    grids, of_grids = model.config.trained_grids, []
    if control is not None:
        height, width = (side // model.config.control_patch for side in control.shape[1:3])
        grids, of_grids = ((height, width),), [control[:, None]]
    columns = -(-_COLUMNS // len(grids))
    settings = SamplingSettings(
        config.seed, config.sample.guidance_scale, top_k=config.sample.top_k
    )
    for grid in grids:
        _, images = generate_images(
            model.for_grid(grid),
            params,
            tokenizer,
            np.repeat(condition, columns, axis=0),
            settings,
            condition_mask=None if mask is None else np.repeat(mask, columns, axis=0),
            control=None if control is None else np.repeat(control, columns, axis=0),
        )
        of_grids.append(images.reshape(-1, columns, *images.shape[1:]))
    return np.concatenate(on_one_size(of_grids), axis=1)
