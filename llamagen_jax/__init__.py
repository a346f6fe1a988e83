"""LlamaGen in JAX: the public names."""

import importlib

from llamagen_jax.models.llama import Llama, LlamaConfig
from llamagen_jax.models.vqgan import VQGAN, VQGANConfig
from llamagen_jax.sampling.generate import generate
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


def __getattr__(name):
    # `convert` is also a command: `python -m llamagen_jax.convert` warns when importing the package
    # has imported it already, which `TextEncoder` would.
    if name == "convert":
        return importlib.import_module("llamagen_jax.convert")
    if name == "TextEncoder":
        return importlib.import_module("llamagen_jax.text.encoder").TextEncoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return __all__
