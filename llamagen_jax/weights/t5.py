"""Model folders in the layout of Hugging Face `transformers`: config.json and weight files."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from llamagen_jax import convert, zoo
from llamagen_jax.errors import InputError
from llamagen_jax.models.t5 import T5, T5Config
from llamagen_jax.weights import export

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
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
_EMBEDDING = "shared.weight"
_EMBEDDING_ALIAS = "encoder.embed_tokens.weight"
_NAMES = {
    "token_embedding/embedding": _EMBEDDING,
    "relative_bias": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    "layers/attention_norm/scale": "encoder.block.{}.layer.0.layer_norm.weight",
    "layers/q/kernel": "encoder.block.{}.layer.0.SelfAttention.q.weight",
    "layers/k/kernel": "encoder.block.{}.layer.0.SelfAttention.k.weight",
    "layers/v/kernel": "encoder.block.{}.layer.0.SelfAttention.v.weight",
    "layers/out/kernel": "encoder.block.{}.layer.0.SelfAttention.o.weight",
    "layers/ffn_norm/scale": "encoder.block.{}.layer.1.layer_norm.weight",
    "layers/gate/kernel": "encoder.block.{}.layer.1.DenseReluDense.wi_0.weight",
    "layers/up/kernel": "encoder.block.{}.layer.1.DenseReluDense.wi_1.weight",
    "layers/down/kernel": "encoder.block.{}.layer.1.DenseReluDense.wo.weight",
    "norm/scale": "encoder.final_layer_norm.weight",
}
# The rest of a whole T5, which also writes text.
_DECODER = ("decoder.", "lm_head.")


def read_t5_config(folder: str | os.PathLike, dtype: str = "float32") -> T5Config:
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


def t5_config_fields(config: T5Config) -> dict[str, Any]:
    """The entries of a folder's config.json; the inverse of `read_t5_config`."""
    fields = {theirs: getattr(config, ours) for ours, theirs in _CONFIG_FIELDS.items()}
    return {"model_type": "t5"} | fields


def open_weights(folder: str | os.PathLike) -> dict[str, np.ndarray]:
    """All tensors of a folder by name, mapped from its files and read only where they are used.

    Takes the first of model.safetensors, pytorch_model.bin and the shards that
    model.safetensors.index.json or pytorch_model.bin.index.json lists.

    Raises:
      InputError: none is there, a shard is missing or damaged, or a shard does not hold the tensors
        that the index places in it.
    """
    folder = Path(folder)
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return convert.read_torch(folder / name)[0]
    for name in _WEIGHTS:
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _open_shards(index)
    raise InputError(
        f"{folder} holds no weights; expected {' or '.join(_WEIGHTS)}, whole or in shards with an "
        ".index.json"
    )


def t5_tensor_shapes(config: T5Config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the encoder's tensors in `transformers`, the embedding named once."""
    shapes = {}
    for path, leaf in flatten_dict(t5_shapes(config), sep="/").items():
        layers = range(config.n_layers) if path.startswith("layers/") else [None]
        shape = leaf.shape if layers == [None] else leaf.shape[1:]
        for layer in layers:
            name = _tensor_name(path, config).format(layer)
            shapes[name] = shape[::-1] if path.endswith("kernel") else shape
    return shapes


def t5_shapes(config: T5Config) -> dict:
    """Shapes of the parameters of `T5(config)`, nested; nothing is computed."""
    tokens = jnp.zeros((1, 1), int)
    return jax.eval_shape(T5(config).init, jax.random.key(0), tokens, tokens)["params"]


def t5_params(
    tensors: Mapping[str, np.ndarray],
    config: T5Config,
    dtype: str = "float32",
    what: str = "tensors do not fit the T5 encoder",
) -> Iterator[tuple[str, np.ndarray]]:
    """Parameters of `T5(config)` from the tensors of `transformers`, one at a time.

    Args:
      tensors: of `open_weights`; those of a decoder may be among them and are left out.
      dtype: "float32" or "bfloat16", of the parameters.
      what: begins the message of the error.

    Returns:
      An iterator of '/'-joined paths and arrays, layers stacked, that holds no more than one array.

    Raises:
      InputError: tensors are missing, unexpected or of the wrong shape; it lists them all.
    """
    tensors = {name: t for name, t in tensors.items() if not name.startswith(_DECODER)}
    # Files hold the embedding under either name, or under both.
    alias = tensors.pop(_EMBEDDING_ALIAS, None)
    if alias is not None:
        tensors.setdefault(_EMBEDDING, alias)
    found = {name: tensor.shape for name, tensor in tensors.items()}
    zoo.check_shapes(found, t5_tensor_shapes(config), what)
    shapes = flatten_dict(t5_shapes(config), sep="/")

    def stack(path, shape):
        name = _tensor_name(path, config)
        array = np.empty(shape, jnp.dtype(dtype))
        for layer in range(config.n_layers) if "{}" in name else [...]:
            tensor = tensors[name.format(layer)]
            array[layer] = tensor.T if path.endswith("kernel") else tensor
        return array

    return ((path, stack(path, leaf.shape)) for path, leaf in shapes.items())


def t5_tensors(params: Mapping, config: T5Config) -> dict[str, np.ndarray]:
    """The inverse of `t5_params`: nested parameters to the tensors of `transformers`."""
    tensors = {}
    for path, leaf in flatten_dict(params, sep="/").items():
        name = _tensor_name(path, config)
        layers = np.asarray(leaf) if "{}" in name else [np.asarray(leaf)]
        for number, layer in enumerate(layers):
            tensors[name.format(number)] = layer.T if path.endswith("kernel") else layer
    return tensors


def write_t5(
    folder: str | os.PathLike, config: T5Config, tensors: Mapping[str, np.ndarray], spiece: bytes
) -> None:
    """Makes a folder that `read_t5_config` and `open_weights` read.

    Args:
      folder: must not exist yet.
      tensors: by their names in `transformers`.
      spiece: the sentencepiece model.
    """
    folder = Path(folder)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(t5_config_fields(config), indent=2) + "\n")
    (folder / "spiece.model").write_bytes(spiece)
    entries = {name: export.Tensor(t.shape, t.dtype, [t]) for name, t in tensors.items()}
    export.write_tensors(folder / "model.safetensors", entries)


def _tensor_name(path: str, config: T5Config) -> str:
    """The tensor of a parameter, with "{}" for the layer."""
    name = _NAMES[path]
    return name.replace("wi_1", "wi") if config.activation == "relu" else name


def _open_shards(index: Path) -> dict[str, np.ndarray]:
    try:
        places = json.loads(index.read_text())["weight_map"]
        shards = sorted(set(places.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index} is damaged or no index of shards: {error!r}") from error
    tensors = {}
    for shard in shards:
        path = index.parent / shard
        if Path(shard).name != shard or not path.is_file():
            raise InputError(f"{path} is missing; {index.name} lists it")
        held = convert.read_torch(path)[0]
        absent = [name for name, place in places.items() if place == shard and name not in held]
        if absent:
            raise InputError(f"{path} lacks tensors that {index.name} lists: {', '.join(absent)}")
        tensors |= held
    return tensors
