"""CLIP: images and texts as vectors whose cosine tells how well they go together.

Source: arXiv 2103.00020; behaviour as in OpenAI's release and Hugging Face `transformers`. The
weights are not trained here: see `weights.clip`.

Axes: B batch, T tokens, S positions of a tower (tokens; or patches after one of the whole image),
D width of a tower, E embedding, H W pixels.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, UInt8
from PIL import Image

from llamagen_jax.errors import check_finite
from llamagen_jax.models.layers import AnyArray

# Of the pixels, in [0, 1], that OpenAI trained with.
_MEAN = np.array((0.48145466, 0.4578275, 0.40821073), np.float32)
_STD = np.array((0.26862954, 0.26130258, 0.27577711), np.float32)

_ACTIVATIONS = {
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "gelu": lambda x: nn.gelu(x, approximate=False),
}


def _check_positive(config: Any, *fields: str) -> None:
    check_finite(config)
    for field in fields:
        if getattr(config, field) <= 0:
            raise ValueError(f"{field}={getattr(config, field)} must be positive")


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """Sizes of the transformer over texts or over images.

    Attributes:
      activation: "quick_gelu" (OpenAI) or "gelu" (most of OpenCLIP).

    Raises:
      ValueError: a value is impossible (the message names the field).
    """

    dim: int
    ffn_dim: int
    n_layers: int
    n_heads: int
    activation: str = "quick_gelu"
    norm_eps: float = 1e-5

    def __post_init__(self):
        _check_positive(self, "dim", "ffn_dim", "n_layers", "n_heads", "norm_eps")
        if self.dim % self.n_heads:
            raise ValueError(f"n_heads={self.n_heads} must divide dim={self.dim}")
        if self.activation not in _ACTIVATIONS:
            choices = tuple(_ACTIVATIONS)
            raise ValueError(f"activation={self.activation!r} must be one of {choices}")


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Sizes of both towers; the defaults are ViT-L/14.

    Attributes:
      context_length: tokens of a text.
      embedding_dim: length of the vectors.

    Raises:
      ValueError: a value is impossible (the message names the field).
    """

    text: TowerConfig = TowerConfig(dim=768, ffn_dim=3072, n_layers=12, n_heads=12)
    vision: TowerConfig = TowerConfig(dim=1024, ffn_dim=4096, n_layers=24, n_heads=16)
    vocab_size: int = 49408
    context_length: int = 77
    image_size: int = 224
    patch_size: int = 14
    embedding_dim: int = 768

    def __post_init__(self):
        fields = ("vocab_size", "context_length", "image_size", "patch_size", "embedding_dim")
        _check_positive(self, *fields)
        if self.image_size % self.patch_size:
            raise ValueError(
                f"patch_size={self.patch_size} must divide image_size={self.image_size}"
            )


class CLIP(nn.Module):
    """Both towers, in float32 and at the highest precision of the device.

    On accelerators the default precision makes embeddings depend on the batch size.
    """

    config: CLIPConfig

    def setup(self):
        self.text = TextTower(self.config)
        self.vision = VisionTower(self.config)

    def __call__(
        self, tokens: Integer[AnyArray, "B T"], pixels: Float[AnyArray, "b H W 3"]
    ) -> tuple[Float[Array, "B E"], Float[Array, "b E"]]:
        """`encode_texts` and `encode_images`."""
        return self.encode_texts(tokens), self.encode_images(pixels)

    def encode_texts(self, tokens: Integer[AnyArray, "B T"]) -> Float[Array, "B E"]:
        """Embeddings of texts.

        Args:
          tokens: int [B, T] of `text.clip_tokenizer.CLIPTokenizer`, T at most `context_length`.
            What follows the first end token, which has the largest number, is not read.

        Returns:
          float32 [B, E], of unit length.
        """
        with jax.default_matmul_precision("highest"):
            return _unit_length(self.text(tokens))

    def encode_images(self, pixels: Float[AnyArray, "B H W 3"]) -> Float[Array, "B E"]:
        """Embeddings of images.

        Args:
          pixels: float [B, H, W, 3] of `preprocess`, H and W the config's `image_size`.

        Returns:
          float32 [B, E], of unit length.
        """
        with jax.default_matmul_precision("highest"):
            return _unit_length(self.vision(pixels))


class TextTower(nn.Module):
    """Causal transformer; the state at the end token stands for the text."""

    config: CLIPConfig

    @nn.compact
    def __call__(self, tokens: Integer[AnyArray, "B T"]) -> Float[Array, "B E"]:
        c, tower = self.config, self.config.text
        init = nn.initializers.normal(0.02)
        embed = nn.Embed(c.vocab_size, tower.dim, embedding_init=init, name="token_embedding")
        positions = self.param("position_embedding", init, (c.context_length, tower.dim))
        x = embed(tokens) + positions[: tokens.shape[1]]
        x = _layers(tower, causal=True)(x)[0]
        x = x[jnp.arange(len(x)), jnp.argmax(tokens, axis=1)]
        return _project(_norm(tower, "norm")(x), c)


class VisionTower(nn.Module):
    """Transformer over patches; the state before them stands for the image."""

    config: CLIPConfig

    @nn.compact
    def __call__(self, pixels: Float[AnyArray, "B H W 3"]) -> Float[Array, "B E"]:
        c, tower = self.config, self.config.vision
        init = nn.initializers.normal(0.02)
        whole = self.param("class_embedding", init, (tower.dim,))
        patches = (c.image_size // c.patch_size) ** 2
        positions = self.param("position_embedding", init, (1 + patches, tower.dim))
        patch = (c.patch_size, c.patch_size)
        embed = nn.Conv(tower.dim, patch, patch, "VALID", use_bias=False, name="patch_embedding")
        x = embed(jnp.asarray(pixels, jnp.float32))
        x = x.reshape(len(x), patches, tower.dim)
        x = jnp.concatenate([jnp.broadcast_to(whole, (len(x), 1, tower.dim)), x], axis=1)
        x = _norm(tower, "norm_in")(x + positions)
        x = _layers(tower, causal=False)(x)[0]
        return _project(_norm(tower, "norm")(x[:, 0]), c)


class Block(nn.Module):
    """Pre-norm attention and feed-forward layer."""

    config: TowerConfig
    causal: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"]) -> tuple[Float[Array, "B S D"], None]:
        c = self.config
        heads = (*x.shape[:2], c.n_heads, c.dim // c.n_heads)
        y = _norm(c, "attention_norm")(x)
        q, k, v = (nn.Dense(c.dim, name=name)(y).reshape(heads) for name in "qkv")
        attended = jax.nn.dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + nn.Dense(c.dim, name="out")(attended.reshape(x.shape))
        hidden = nn.Dense(c.ffn_dim, name="up")(_norm(c, "ffn_norm")(x))
        return x + nn.Dense(c.dim, name="down")(_ACTIVATIONS[c.activation](hidden)), None


def _layers(config: TowerConfig, causal: bool):
    stacked = nn.scan(
        Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=config.n_layers
    )
    return stacked(config, causal, name="layers")


def _norm(config: TowerConfig, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(config.norm_eps, use_fast_variance=False, name=name)


def _project(x, config: CLIPConfig):
    return nn.Dense(config.embedding_dim, use_bias=False, name="projection")(x)


def _unit_length(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def preprocess(image: UInt8[np.ndarray, "H W 3"], size: int) -> Float[np.ndarray, "size size 3"]:
    """The pixels that `encode_images` reads: bicubic by Pillow, middle square, normalised.

    As in `transformers`; OpenAI's own code may cut an odd rest one pixel off.

    Args:
      image: uint8 [H, W, 3].
      size: of the shorter side, the config's `image_size`.

    Returns:
      float32 [size, size, 3].
    """
    H, W, _ = image.shape
    height, width = (size * side // min(H, W) for side in (H, W))
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    top, left = (height - size) // 2, (width - size) // 2
    square = np.asarray(resized)[top : top + size, left : left + size]
    return (square.astype(np.float32) / 255 - _MEAN) / _STD
