"""Recorded values of the original LlamaGen (`tests/golden`), and the weights they belong to.

The values come from github.com/FoundationVision/LlamaGen in float32 on CPU, those of T5, CLIP and
Inception from `transformers` and torch-fidelity. Weights are not stored: each tensor is made from
its name and shape.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest

from llamagen_jax.weights import torch_files
from llamagen_jax.weights.mapping import from_torch, layout_of

FOLDER = Path(__file__).parent / "golden"


def tensor(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """The float32 tensor that the recording used under this name of the original."""
    rng = np.random.default_rng([zlib.crc32(name.encode()), seed])
    n = rng.standard_normal(tuple(shape), dtype=np.float32)
    if len(shape) <= 1:
        return np.asarray(1 + 0.1 * n if name.endswith("weight") else 0.1 * n, np.float32)
    return (n / np.float32(np.sqrt(np.prod(shape[1:])))).astype(np.float32)


def state_dict(config) -> dict[str, np.ndarray]:
    """Formula weights of a whole model, by the original's names."""
    return {name: tensor(name, shape) for name, shape in layout_of(config).tensor_shapes.items()}


def params(config) -> dict:
    """Formula weights of a whole model as its parameters."""
    return from_torch(state_dict(config), config)


def save_torch(path: Path, config, wrap=lambda state: state, dtype=np.float32) -> Path:
    """Formula weights of a whole model in a .pt or .pth file, its state dict changed by `wrap`."""
    torch = pytest.importorskip("torch")
    state = {
        name: torch_files._from_numpy(torch, tensor.astype(dtype))
        for name, tensor in state_dict(config).items()
    }
    torch.save(wrap(state), path)
    return path


def load(name: str) -> tuple[dict[str, np.ndarray], dict]:
    """The arrays of a golden file, and its text entries (`meta`, `grad_norms`) read as JSON."""
    arrays = dict(np.load(FOLDER / f"{name}.npz"))
    texts = [key for key, array in arrays.items() if array.dtype.kind == "U"]
    return arrays, {key: json.loads(str(arrays.pop(key))) for key in texts}


def inception_state() -> dict[str, np.ndarray]:
    """Formula weights of Inception, by the names of torch-fidelity, with variances above zero."""
    shapes = load("inception")[1]["inventory"]
    state = {name: tensor(name, shape) for name, shape in shapes.items()}
    for name, values in state.items():
        if name.endswith("running_var"):
            state[name] = np.abs(values) + np.float32(0.5)
        elif name.endswith("bn.bias"):
            state[name] = values + np.float32(0.1)
    return state


def inventory() -> dict:
    """Tensor names and shapes, and parameter counts, of published models."""
    return json.loads((FOLDER / "inventory.json").read_text())
