"""LlamaGen in JAX: the public names."""

from llamagen_jax import convert
from llamagen_jax.models.llama import Llama, LlamaConfig
from llamagen_jax.models.vqgan import VQGAN, VQGANConfig
from llamagen_jax.sampling.generate import generate
from llamagen_jax.text.encoder import TextEncoder
from llamagen_jax.zoo import MODELS, load

__all__ = [
    "MODELS",
    "VQGAN",
    "Llama",
    "LlamaConfig",
    "TextEncoder",
    "VQGANConfig",
    "convert",
    "generate",
    "load",
]
