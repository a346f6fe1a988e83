"""CLIP in the folders of Hugging Face `transformers`: config.json and weights."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from llamagen_jax.errors import InputError
from llamagen_jax.models.clip import CLIP, CLIPConfig, TowerConfig
from llamagen_jax.weights import export, shapes
from llamagen_jax.weights.mapping import Layout
from llamagen_jax.weights.names import NameTable
from llamagen_jax.weights.torch_files import open_folder

_TOWER_FIELDS = {
    "dim": "hidden_size",
    "ffn_dim": "intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "activation": "hidden_act",
    "norm_eps": "layer_norm_eps",
}
# What folders may leave out.
_DEFAULTS = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_hidden_layers": 12}
_TEXT_DEFAULTS = _DEFAULTS | {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
}
_VISION_DEFAULTS = _DEFAULTS | {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
}

_TABLE = NameTable(
    names={
        "text/token_embedding": "text_model.embeddings.token_embedding",
        "vision/class_embedding": "vision_model.embeddings.class_embedding",
        "vision/patch_embedding": "vision_model.embeddings.patch_embedding",
        r"(\w+)/position_embedding": r"\1_model.embeddings.position_embedding.weight",
        # As the files have it.
        "vision/norm_in": "vision_model.pre_layrnorm",
        r"(\w+)/layers/attention_norm": r"\1_model.encoder.layers.{}.layer_norm1",
        r"(\w+)/layers/([qkv]|out)": r"\1_model.encoder.layers.{}.self_attn.\2_proj",
        r"(\w+)/layers/ffn_norm": r"\1_model.encoder.layers.{}.layer_norm2",
        r"(\w+)/layers/up": r"\1_model.encoder.layers.{}.mlp.fc1",
        r"(\w+)/layers/down": r"\1_model.encoder.layers.{}.mlp.fc2",
        "text/norm": "text_model.final_layer_norm",
        "vision/norm": "vision_model.post_layernorm",
        "text/projection": "text_projection",
        "vision/projection": "visual_projection",
    },
    # The scale of the training's logits, and the numbers from 0 that old files hold.
    ignored=r"logit_scale|(text|vision)_model\.embeddings\.position_ids",
)


def load(folder: str | os.PathLike) -> tuple[CLIP, dict[str, Any]]:
    """Opens a folder such as openai/clip-vit-large-patch14 from Hugging Face.

    Its tokenizer is `text.clip_tokenizer.CLIPTokenizer(folder, model.config)`.

    Args:
      folder: with config.json and the weights, see `torch_files.open_folder`.

    Returns:
      The model and its parameters, nested float32 numpy arrays.

    Raises:
      InputError: a file is missing or damaged, or tensors do not fit the configuration.
    """
    if not Path(folder).is_dir():
        raise InputError(f"{folder} is no folder; expected one of a CLIP from Hugging Face")
    config = read_config(folder)
    what = f"the weights in {folder} do not fit its config.json"
    return CLIP(config), from_tensors(open_folder(folder), config, what)


def from_tensors(
    tensors: Mapping[str, np.ndarray],
    config: CLIPConfig,
    what: str = "tensors do not fit the CLIP",
) -> dict[str, Any]:
    """Parameters of `CLIP(config)` from the tensors of `transformers`.

    Args:
      what: begins the message of the error.

    Returns:
      Nested float32 numpy arrays, layers stacked.

    Raises:
      InputError: tensors are missing, unexpected or of the wrong shape; it lists them all.
    """
    views = layout(config).param_views(tensors, what)
    return unflatten_dict({path: v.array(np.float32) for path, v in views.items()}, sep="/")


def layout(config: CLIPConfig) -> Layout:
    """The files of `transformers` for `CLIP(config)`."""
    pixels = jnp.zeros((1, config.image_size, config.image_size, 3))
    params = shapes.abstract_params(CLIP(config), jnp.zeros((1, 1), int), pixels)
    return Layout(_TABLE, shapes.flat_shapes(params))


def read_config(folder: str | os.PathLike) -> CLIPConfig:
    """The CLIP that `folder`/config.json describes; what it leaves out is as in `transformers`.

    Raises:
      InputError: the file is missing, broken or of another kind of model (the message says which).
    """
    path = Path(folder) / "config.json"
    fields = export.read_config(folder)
    if fields.get("model_type") != "clip":
        raise InputError(
            f"{path} describes a model {fields.get('model_type')!r}; expected 'clip', such as "
            "clip-vit-large-patch14 or clip-vit-base-patch32"
        )
    try:
        text = _TEXT_DEFAULTS | fields.get("text_config", {})
        vision = _VISION_DEFAULTS | fields.get("vision_config", {})
        return CLIPConfig(
            text=_tower(text),
            vision=_tower(vision),
            vocab_size=text["vocab_size"],
            context_length=text["max_position_embeddings"],
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            embedding_dim=fields.get("projection_dim", 512),
        )
    except (TypeError, ValueError) as error:
        raise InputError(f"{path} describes an impossible CLIP: {error}") from error


def _tower(fields: Mapping[str, Any]) -> TowerConfig:
    return TowerConfig(**{ours: fields[theirs] for ours, theirs in _TOWER_FIELDS.items()})
