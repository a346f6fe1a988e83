"""The known formats of weight files, and the configuration that the tensors of a file tell."""

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from llamagen_jax.errors import InputError
from llamagen_jax.weights import diffusers, llamagen, maskgit, taming, vit_vqgan
from llamagen_jax.weights.formats import Format, Hints
from llamagen_jax.weights.kinds import Config
from llamagen_jax.weights.published import PUBLISHED, check_published

# The first of a kind is the one that its models are written in.
FORMATS = (
    llamagen.LLAMA,
    llamagen.VQGAN,
    taming.VQGAN,
    maskgit.VQGAN,
    vit_vqgan.VQGAN,
    diffusers.VQGAN,
    diffusers.CONSISTENCY_DECODER,
    diffusers.KL_VAE,
)


def infer_config(
    tensors: Mapping[str, np.ndarray],
    source: Path,
    name: str | None = None,
    grid_size: int | None = None,
    n_heads: int | None = None,
) -> Config:
    """The configuration of the model whose state dict, in one of `FORMATS`, is `tensors`.

    Args:
      source: the file they come from. When it is called like a published model, or `name` is given,
        the grid size comes from there and all sizes must agree.
      grid_size: side of the code grid, which most files do not store.
      n_heads: attention heads, which tensors do not show; known for the published sizes.

    Raises:
      InputError: the tensors are of no known format, do not tell enough, or contradict the name.
    """
    if name is None and source.stem in PUBLISHED:
        name = source.stem
    if grid_size is None and name is not None:
        # A tokenizer has none; that the file is no tokenizer is then found below.
        grid_size = vars(PUBLISHED[name].config).get("grid_size", 16)
    file_format = next((f for f in FORMATS if f.holds(tensors)), None)
    if file_format is None:
        origins = ", ".join(dict.fromkeys(f.origin for f in FORMATS))
        raise InputError(
            f"{source} holds neither a tokenizer nor a transformer of {origins} but tensors such "
            f"as {', '.join(list(tensors)[:3])}"
        )
    shapes = {tensor_name: tensor.shape for tensor_name, tensor in tensors.items()}
    try:
        config = file_format.infer(shapes, Hints(source, grid_size, n_heads))
    except KeyError as error:
        raise InputError(f"{source} is incomplete: it has no tensor {error}") from None
    if name is not None:
        check_published(name, config, source)
    return config


def format_of(config: Config, tensors: Collection[str] = ()) -> Format:
    """The format of a model of this configuration whose tensors have these names.

    Where none is recognised, it is the one that such models are written in.
    """
    formats = [f for f in FORMATS if f.config is type(config)]
    return next((f for f in formats if f.holds(tensors)), formats[0])
