"""T5 encoders in the folders of Hugging Face `transformers`: config.json, weights, tokenizer."""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from llamagen_jax.errors import InputError
from llamagen_jax.models.t5 import T5, T5Config
from llamagen_jax.weights import export, shapes
from llamagen_jax.weights.mapping import Layout
from llamagen_jax.weights.names import NameTable
from llamagen_jax.weights.torch_files import Tensor, write_safetensors

_CONFIG_FIELDS = {
    "vocab_size": "vocab_size",
    "dim": "d_model",
    "head_dim": "d_kv",
    "ffn_dim": "d_ff",
    "n_layers": "num_layers",
    "n_heads": "num_heads",
    "relative_buckets": "relative_attention_num_buckets",
    "relative_max_distance": "relative_attention_max_distance",
    "norm_eps": "layer_norm_epsilon",
    "activation": "feed_forward_proj",
}
# Fields that older folders leave out.
_CONFIG_DEFAULTS = {"relative_attention_max_distance": 128, "feed_forward_proj": "relu"}

# Of T5 v1.1 and flan-T5.
_GATED = NameTable(
    names={
        "token_embedding": "shared",
        "relative_bias": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "layers/attention_norm": "encoder.block.{}.layer.0.layer_norm",
        "layers/q": "encoder.block.{}.layer.0.SelfAttention.q",
        "layers/k": "encoder.block.{}.layer.0.SelfAttention.k",
        "layers/v": "encoder.block.{}.layer.0.SelfAttention.v",
        "layers/out": "encoder.block.{}.layer.0.SelfAttention.o",
        "layers/ffn_norm": "encoder.block.{}.layer.1.layer_norm",
        "layers/gate": "encoder.block.{}.layer.1.DenseReluDense.wi_0",
        "layers/up": "encoder.block.{}.layer.1.DenseReluDense.wi_1",
        "layers/down": "encoder.block.{}.layer.1.DenseReluDense.wo",
        "norm": "encoder.final_layer_norm",
    },
    aliases={"encoder.embed_tokens.weight": "shared.weight"},
    # The rest of a whole T5, which also writes text.
    ignored=r"(decoder|lm_head)\..*",
)
_RELU = dataclasses.replace(
    _GATED, names={**_GATED.names, "layers/up": "encoder.block.{}.layer.1.DenseReluDense.wi"}
)
_TABLES = {"gated-gelu": _GATED, "relu": _RELU}


def read_config(folder: str | os.PathLike, dtype: str = "float32") -> T5Config:
    """The encoder that `folder`/config.json describes, computing in `dtype`.

    Raises:
      InputError: the file is missing, broken or of another kind of model (the message says which).
    """
    path = Path(folder) / "config.json"
    fields = _CONFIG_DEFAULTS | export.read_config(folder)
    if fields.get("model_type") != "t5":
        raise InputError(
            f"{path} describes a model {fields.get('model_type')!r}; expected 't5', such as "
            "flan-t5-xl or t5-v1_1-xxl"
        )
    try:
        sizes = {ours: fields[theirs] for ours, theirs in _CONFIG_FIELDS.items()}
        return T5Config(**sizes, dtype=dtype)
    except KeyError as error:
        raise InputError(f"{path} has no entry {error}") from None
    except (TypeError, ValueError) as error:
        raise InputError(f"{path} describes an impossible encoder: {error}") from error


def config_fields(config: T5Config) -> dict[str, Any]:
    """The entries of a folder's config.json; the inverse of `read_config`."""
    fields = {theirs: getattr(config, ours) for ours, theirs in _CONFIG_FIELDS.items()}
    return {"model_type": "t5"} | fields


def abstract_params(config: T5Config) -> dict[str, Any]:
    """Parameters of `T5(config)` as nested ShapeDtypeStructs; nothing is computed."""
    tokens = jnp.zeros((1, 1), int)
    return shapes.abstract_params(T5(config), tokens, tokens)


def layout(config: T5Config) -> Layout:
    """The files of `transformers` for `T5(config)`."""
    return Layout(_TABLES[config.activation], shapes.flat_shapes(abstract_params(config)))


def from_tensors(
    tensors: Mapping[str, np.ndarray],
    config: T5Config,
    dtype: str = "float32",
    what: str = "tensors do not fit the T5 encoder",
) -> Iterator[tuple[str, np.ndarray]]:
    """Parameters of `T5(config)` from the tensors of `transformers`, one at a time.

    Args:
      tensors: of `torch_files.open_folder`; those of a decoder may be among them and are left out.
      dtype: "float32" or "bfloat16", of the parameters.
      what: begins the message of the error.

    Returns:
      An iterator of '/'-joined paths and arrays, layers stacked, that holds no more than one array.

    Raises:
      InputError: tensors are missing, unexpected or of the wrong shape; it lists them all.
    """
    views = layout(config).param_views(tensors, what)
    return ((path, view.array(jnp.dtype(dtype))) for path, view in views.items())


def to_tensors(params: Mapping[str, Any], config: T5Config) -> dict[str, np.ndarray]:
    """The inverse of `from_tensors`: nested parameters to the tensors of `transformers`.

    Raises:
      InputError: parameters are missing, unexpected or of the wrong shape; it lists them all.
    """
    views = layout(config).tensor_views(params, "parameters do not fit the T5 encoder")
    return {name: view.array() for name, view in views.items()}


def write_folder(
    folder: str | os.PathLike, config: T5Config, tensors: Mapping[str, np.ndarray], spiece: bytes
) -> None:
    """Makes a folder that `read_config` and `torch_files.open_folder` read.

    Args:
      folder: must not exist yet.
      tensors: by their names in `transformers`.
      spiece: the sentencepiece model.
    """
    folder = Path(folder)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_fields(config), indent=2) + "\n")
    (folder / "spiece.model").write_bytes(spiece)
    entries = {name: Tensor.of(tensor) for name, tensor in tensors.items()}
    write_safetensors(folder / "model.safetensors", entries)
