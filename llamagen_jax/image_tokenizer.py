"""Opens image tokenizers, and runs them in batches over all devices."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from llamagen_jax import sharding, zoo
from llamagen_jax.errors import InputError
from llamagen_jax.images import from_uint8
from llamagen_jax.models.vqgan import VQGAN
from llamagen_jax.weights import kinds


def open_tokenizer(
    name: str, *, batch_size: int, image_size: int | None = None
) -> tuple[VQGAN, dict]:
    """`zoo.load` for tokenizers; also raises InputError where these sizes are impossible."""
    if batch_size < 1:
        raise InputError(f"batch size {batch_size} must be at least 1")
    model, params = zoo.load(name)
    if kinds.kind_of(model.config).role != "tokenizer":
        raise InputError(f"{name} is a {kinds.describe(model.config)}; expected a tokenizer")
    c = model.config
    if image_size is not None and (image_size < 1 or image_size % c.downsampling):
        raise InputError(
            f"image size {image_size} must be a positive multiple of the tokenizer's downsampling "
            f"{c.downsampling}"
        )
    if c.codebook_size > 2**16:
        raise InputError(f"{name} has {c.codebook_size} codes; at most {2**16} can be stored")
    return model, params


def encoder(model: VQGAN) -> Callable[[Any, jax.Array], jax.Array]:
    """(params, uint8 images [B, H, W, 3]) -> int32 codes [B, h, w]."""
    return lambda params, images: model.apply(
        {"params": params}, from_uint8(images), method="encode"
    )


def on_all_devices(
    function: Callable[[Any, jax.Array], jax.Array], params: Any
) -> Callable[[np.ndarray], jax.Array]:
    """`function(params, batch)` as a function of batches that the number of devices divides."""
    mesh = sharding.make_mesh(data=-1, fsdp=1, tensor=1)
    params = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))
    jitted = jax.jit(function)
    return lambda batch: jitted(params, sharding.put_batch({"batch": batch}, mesh)["batch"])
