"""Captions to the features that a text-conditional generator reads: clean, tokenize, T5, left-pad.

Axes: B captions, T tokens, D width of the features.
"""

import functools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from tqdm import tqdm

from llamagen_jax import sharding
from llamagen_jax.errors import InputError
from llamagen_jax.models.t5 import T5, T5Config
from llamagen_jax.text.captions import clean
from llamagen_jax.text.tokenizer import T5Tokenizer
from llamagen_jax.weights import t5 as t5_weights
from llamagen_jax.weights import torch_files


class TextEncoder:
    """A T5 encoder with its tokenizer, on all devices.

    Attributes:
      model: the `T5`.
      params: its parameters, on the mesh.
      tokenizer: its `T5Tokenizer`.
      length: T, the tokens of a caption's features.
      batch_size: captions per step over all devices, a multiple of their number.
    """

    def __init__(
        self,
        config: T5Config,
        params: Iterable[tuple[str, np.ndarray]],
        tokenizer: T5Tokenizer,
        *,
        mesh: Mesh | None = None,
        length: int = 120,
        batch_size: int = 32,
    ):
        """Puts the parameters on the devices one by one.

        Args:
          config: its dtype is also that of the features.
          params: '/'-joined paths and arrays, such as `weights.t5.from_tensors` yields.
          mesh: of `sharding.make_mesh`, which `sharding.T5_RULES` split the parameters over; None
            copies them to every device.
          batch_size: rounded up to a multiple of the number of devices.

        Raises:
          InputError: the tokenizer has more tokens than the model, a size is not positive, or the
            mesh does not fit the parameters.
        """
        if length < 1 or batch_size < 1:
            raise InputError(f"length={length} and batch_size={batch_size} must be positive")
        if tokenizer.vocab_size > config.vocab_size:
            raise InputError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the encoder only "
                f"{config.vocab_size}; they belong to different models"
            )
        self.model, self.tokenizer, self.length = T5(config), tokenizer, length
        self._mesh = mesh or sharding.make_mesh(data=-1, fsdp=1, tensor=1)
        self.batch_size = batch_size + -batch_size % self._mesh.size
        self.params = self._place(params)
        self._run = jax.jit(functools.partial(caption_features, self.model))

    @classmethod
    def load(cls, folder: str | os.PathLike, *, dtype: str = "bfloat16", **settings):
        """Opens a Hugging Face folder of flan-T5, T5 v1.1 or T5, such as google/flan-t5-xl.

        The host never holds all parameters at once.

        Args:
          folder: with config.json, spiece.model and the weights, see
            `weights.torch_files.open_folder`.
          dtype: of parameters, matrix products and features: "bfloat16", as in the original, or
            "float32".
          **settings: mesh, length and batch_size, as above.

        Raises:
          InputError: a file is missing or damaged, or tensors do not fit the configuration.
        """
        if not Path(folder).is_dir():
            raise InputError(f"{folder} is no folder; expected one of a T5 from Hugging Face")
        config = t5_weights.read_config(folder, dtype)
        tokenizer = T5Tokenizer(Path(folder) / "spiece.model")
        tensors = torch_files.open_folder(folder)
        what = f"the weights in {folder} do not fit its config.json"
        params = t5_weights.from_tensors(tensors, config, dtype, what)
        return cls(config, params, tokenizer, **settings)

    def encode(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Cleans captions (`text.captions.clean`) and encodes them, see `encode_cleaned`."""
        return self.encode_cleaned([clean(caption) for caption in captions])

    def encode_cleaned(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Encodes captions that `text.captions.clean` returned, `batch_size` at a time.

        What the generator reads as `condition` and `condition_mask`. Captions over `length` tokens
        are cut, with a warning that names them; an empty one has the end token alone.

        Returns:
          Features [B, T, D] in the config's dtype, zero at padding, which is on the left, and the
          mask, bool [B, T], False at padding.
        """
        tokens, mask = self.tokenizer(captions, self.length)
        shape = (*tokens.shape, self.model.config.dim)
        features = np.empty(shape, jnp.dtype(self.model.config.dtype))
        for start in range(0, len(tokens), self.batch_size):
            rows = slice(start, start + self.batch_size)
            padding = ((0, self.batch_size - len(tokens[rows])), (0, 0))
            batch = {"tokens": np.pad(tokens[rows], padding), "mask": np.pad(mask[rows], padding)}
            output = self._run(self.params, **sharding.put_batch(batch, self._mesh))
            features[rows] = np.asarray(output)[: len(features[rows])]
        return features, mask

    def _place(self, params: Iterable[tuple[str, np.ndarray]]) -> dict:
        shapes = t5_weights.abstract_params(self.model.config)
        shardings = sharding.tree_shardings(shapes, sharding.T5_RULES, self._mesh)
        shardings = flatten_dict(shardings, sep="/")
        # Shown only where it takes long.
        bar = tqdm(params, total=len(shardings), desc="text encoder", unit="array", delay=2)
        placed = {path: jax.device_put(array, shardings[path]) for path, array in bar}
        return unflatten_dict(placed, sep="/")


def caption_features(model: T5, params: dict, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """Features [B, T, D] in the compute dtype, zero at padding; tokens and mask as of a tokenizer.

    The original encodes captions padded on the right and moves the padding to the left afterwards,
    which is the same: T5 knows only distances between tokens.
    """
    features: Any = model.apply({"params": params}, tokens, mask)
    return jnp.where(mask[..., None], features, 0).astype(model.config.dtype)
