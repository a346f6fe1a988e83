"""The configuration of a model of the original LlamaGen, from the tensors of its file."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llamagen_jax.errors import InputError
from llamagen_jax.models.llama import LlamaConfig
from llamagen_jax.models.vqgan import VQGANConfig
from llamagen_jax.weights.kinds import Config, make_config
from llamagen_jax.weights.published import MODELS, PUBLISHED, check_published
from llamagen_jax.weights.shapes import Shapes


def infer_config(
    tensors: Mapping[str, np.ndarray],
    source: Path,
    name: str | None = None,
    grid_size: int | None = None,
    n_heads: int | None = None,
) -> Config:
    """The configuration of the model whose state dict in the original's names is `tensors`.

    Args:
      source: the file they come from. When it is called like a published model, or `name` is given,
        the grid size comes from there and all sizes must agree.
      grid_size: side of the code grid, which most files do not store.
      n_heads: attention heads, which tensors do not show; known for the published sizes.

    Raises:
      InputError: the tensors are of neither model, do not tell enough, or contradict the name.
    """
    if name is None and source.stem in PUBLISHED:
        name = source.stem
    if grid_size is None and name is not None:
        # A tokenizer has none; that the file is no tokenizer is then found below.
        grid_size = vars(PUBLISHED[name].config).get("grid_size", 16)
    shapes = {tensor_name: tensor.shape for tensor_name, tensor in tensors.items()}
    try:
        if "quantize.embedding.weight" in shapes:
            config = _infer_vqgan(shapes, source)
        elif "tok_embeddings.weight" in shapes:
            config = _infer_llama(shapes, source, grid_size, n_heads)
        else:
            raise InputError(
                f"{source} holds neither a tokenizer nor a transformer of LlamaGen but tensors "
                f"such as {', '.join(list(shapes)[:3])}"
            )
    except KeyError as error:
        raise InputError(f"{source} is incomplete: it has no tensor {error}") from None
    if name is not None:
        check_published(name, config, source)
    return config


def _infer_vqgan(shapes: Shapes, source: Path) -> VQGANConfig:
    base_channels = shapes["encoder.conv_in.weight"][0]
    outputs = [
        shapes[f"encoder.conv_blocks.{level}.res.0.conv1.weight"][0]
        for level in range(_count(shapes, "encoder.conv_blocks."))
    ]
    codebook_size, codebook_dim = shapes["quantize.embedding.weight"]
    fields = {
        "base_channels": base_channels,
        "channel_multipliers": [channels // base_channels for channels in outputs],
        "num_res_blocks": _count(shapes, "encoder.conv_blocks.0.res."),
        "z_channels": shapes["encoder.conv_out.weight"][0],
        "codebook_size": codebook_size,
        "codebook_dim": codebook_dim,
    }
    return make_config(VQGANConfig, fields, source)


def _infer_llama(
    shapes: Shapes, source: Path, grid_size: int | None, n_heads: int | None
) -> LlamaConfig:
    vocab_size, dim = shapes["tok_embeddings.weight"]
    fields: dict[str, Any] = {
        "vocab_size": vocab_size,
        "dim": dim,
        "n_layers": _count(shapes, "layers."),
    }
    if "cls_embedding.uncond_embedding" in shapes:
        length, caption_dim = shapes["cls_embedding.uncond_embedding"]
        fields |= {"condition": "text", "condition_length": length, "caption_dim": caption_dim}
    else:
        length = 1
        fields["num_classes"] = shapes["cls_embedding.embedding_table.weight"][0] - 1
    fields["grid_size"] = _grid_size(shapes, length, source, grid_size)
    fields["n_heads"] = n_heads or _published_heads(dim, fields["n_layers"], source)
    qkv_heads = shapes["layers.0.attention.wqkv.weight"][0] * fields["n_heads"] // dim
    if qkv_heads != 3 * fields["n_heads"]:
        fields["n_kv_heads"] = (qkv_heads - fields["n_heads"]) // 2
    config = make_config(LlamaConfig, fields, source)
    ffn_dim = shapes["layers.0.feed_forward.w1.weight"][0]
    return config if config.ffn_dim == ffn_dim else dataclasses.replace(config, multiple_of=ffn_dim)


def _published_heads(dim: int, n_layers: int, source: Path) -> int:
    for config in MODELS.values():
        if isinstance(config, LlamaConfig) and (config.dim, config.n_layers) == (dim, n_layers):
            return config.n_heads
    raise InputError(
        f"{source} is a transformer of an unpublished size (dim={dim}, n_layers={n_layers}): "
        "convert it with --n-heads"
    )


def _grid_size(shapes: Shapes, condition_length: int, source: Path, wanted: int | None) -> int:
    if "freqs_cis" in shapes:
        stored = math.isqrt(shapes["freqs_cis"][0] - condition_length)
        if wanted not in (None, stored):
            raise InputError(
                f"{source} has codes on a {stored}x{stored} grid; expected {wanted}x{wanted}"
            )
        return stored
    if wanted is None:
        raise InputError(
            f"{source} does not tell its image size: load it under its published name, such as "
            "c2i_L_384, or convert it with --grid-size"
        )
    return wanted


def _count(shapes: Shapes, prefix: str) -> int:
    """Number of modules in the list whose names start with `prefix`."""
    indices = [int(n.removeprefix(prefix).split(".")[0]) for n in shapes if n.startswith(prefix)]
    return 1 + max(indices, default=-1)
