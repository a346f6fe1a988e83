"""One file of weights, whoever wrote it: PyTorch, or Flax by msgpack."""

from pathlib import Path
from typing import Any

import numpy as np
from flax import serialization
from flax.traverse_util import flatten_dict

from llamagen_jax.errors import InputError
from llamagen_jax.weights.torch_files import SUFFIXES, read_torch

# What a map of one or more entries begins with (github.com/msgpack/msgpack/blob/master/spec.md).
_MSGPACK_MAPS = {*range(0x81, 0x90), 0xDE, 0xDF}


def read_tensors(path: Path, ema: bool = False) -> tuple[dict[str, np.ndarray], str | None]:
    """Opens a file of PyTorch as `read_torch` does, or a state that Flax wrote.

    Args:
      ema: prefer the moving average to the other weights in a file of PyTorch.

    Returns:
      The tensors by name ('/'-joined in a state of Flax), and the key of the checkpoint that they
      were under, if any.

    Raises:
      InputError: the file is damaged or holds something else, or PyTorch is missing.
    """
    if path.suffix not in SUFFIXES and _starts_as_msgpack(path):
        return _read_flax(path), None
    return read_torch(path, ema)


def _starts_as_msgpack(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(1)
    return bool(start) and start[0] in _MSGPACK_MAPS


def _read_flax(path: Path) -> dict[str, np.ndarray]:
    try:
        state = serialization.msgpack_restore(path.read_bytes())
    # A damaged file raises whatever its bytes happen to lead to.
    except Exception as error:
        raise InputError(f"{path} is a damaged state of Flax: {error}") from error
    leaves: dict[str, Any] = flatten_dict(state, sep="/") if isinstance(state, dict) else {}
    others = [str(name) for name, leaf in leaves.items() if not isinstance(leaf, np.ndarray)]
    if others:
        raise InputError(f"{path} holds {', '.join(others[:5])}, not arrays; expected parameters")
    return leaves
