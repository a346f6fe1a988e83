"""Folders that vLLM opens: `config.json` and `model.safetensors`.

The tensors are those of the original LlamaGen by their names, but for two: the rows of
`tok_embeddings.weight` are the codes, then the classes, then the null class, since a condition is a
token to vLLM; and `freqs_cis` is the rotary table, so that the model there need not compute it.
"""

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llamagen_jax.digests import write_json
from llamagen_jax.errors import InputError
from llamagen_jax.files import staged
from llamagen_jax.models.llama_config import LlamaConfig
from llamagen_jax.models.rope import rope_table
from llamagen_jax.weights.kinds import Config, describe
from llamagen_jax.weights.torch_files import Tensor, write_safetensors

# Widths of heads that vLLM's attention kernels have on every platform.
_KERNEL_WIDTHS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256)


def write(
    folder: str | os.PathLike,
    config: Config,
    tensors: Mapping[str, Tensor],
    *,
    guidance_scale: float = 1.0,
    class_names: Sequence[str] = (),
) -> None:
    """Writes the folder, which appears under its name only when it is complete.

    Args:
      folder: must not exist yet.
      config: of a class-conditional generator.
      tensors: by the original's names, of `Layout.tensor_views`.
      guidance_scale: of every image that is drawn from the folder, unless vLLM is started with
        another; at most 1 means no guidance.
      class_names: by label; () where they are not known.

    Raises:
      InputError: the model is another one or has too wide heads, the scale is not finite, or
        `folder` exists.
    """
    if not isinstance(config, LlamaConfig) or config.condition != "class":
        raise InputError(
            f"vLLM draws from class-conditional transformers alone, not from a {describe(config)}"
        )
    if config.grids:
        raise InputError("vLLM draws images of one size alone, not from a generator of several")
    if config.head_dim > _KERNEL_WIDTHS[-1]:
        raise InputError(
            f"vLLM's attention has heads of up to {_KERNEL_WIDTHS[-1]} channels, and the "
            f"generator's have {config.head_dim}"
        )
    if not math.isfinite(guidance_scale):
        raise InputError(f"guidance_scale={guidance_scale} must be finite")
    described = {**_config(config), "guidance_scale": guidance_scale}
    with staged(folder) as partial:
        partial.mkdir()
        write_json(partial / "config.json", {**described, "class_names": list(class_names)})
        write_safetensors(partial / "model.safetensors", _tensors(config, tensors))


def _config(config: LlamaConfig) -> dict[str, Any]:
    """What vLLM asks of a configuration by the names of Hugging Face, and what its model needs."""
    return {
        "architectures": ["LlamaGenForCausalLM"],
        "model_type": "llamagen",
        "dtype": config.dtype,
        "hidden_size": config.dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_dim,
        "rms_norm_eps": config.norm_eps,
        "vocab_size": config.vocab_size + config.num_classes + 1,
        "max_position_embeddings": config.condition_length + config.code_length,
        "tie_word_embeddings": False,
        # Heads between two widths get zeros.
        "kernel_width": next(width for width in _KERNEL_WIDTHS if width >= config.head_dim),
        "codebook_size": config.vocab_size,
        "num_classes": config.num_classes,
        "grid": list(config.grid),
    }


def _tensors(config: LlamaConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named = dict(tensors)
    codes = named["tok_embeddings.weight"]
    classes = named.pop("cls_embedding.embedding_table.weight")
    named["tok_embeddings.weight"] = Tensor(
        (codes.shape[0] + classes.shape[0], codes.shape[1]),
        codes.dtype,
        itertools.chain(codes.pieces, classes.pieces),
    )
    table = rope_table(
        config.grid,
        config.head_dim,
        base=config.rope_base,
        condition_length=config.condition_length,
        condition_rope=config.condition_rope,
    )
    return named | {"freqs_cis": Tensor.of(np.asarray(table))}
