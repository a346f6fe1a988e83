"""Weights of the original LlamaGen (PyTorch) to this project's parameters and back.

As a command, `python -m llamagen_jax.convert SRC DST`.
"""

from llamagen_jax.weights.mapping import from_torch, to_torch

__all__ = ["from_torch", "to_torch"]
