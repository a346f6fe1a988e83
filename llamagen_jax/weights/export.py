"""Export folders: a model's configuration and parameters in two files.

`config.json` holds {"model": "Llama" or "VQGAN", "config": {fields of its config}, ...metadata}.
`params.safetensors` holds the parameters under their '/'-joined path, such as
"layers/attention/q/kernel", in the dtype they were given (https://huggingface.co/docs/safetensors).
"""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors
from flax.traverse_util import flatten_dict, unflatten_dict

from llamagen_jax.errors import InputError
from llamagen_jax.files import staged

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class Tensor(NamedTuple):
    """A tensor to write: the elements of `pieces`, one piece after the other, in row-major order.

    Pieces may be views of a memory-mapped file, so that a tensor is never held whole.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: Iterable[np.ndarray]


def write(folder: str | os.PathLike, model, params: Mapping, **metadata: Any) -> None:
    """Writes an export folder, which appears under its name only when it is complete.

    Args:
      folder: must not exist yet.
      model: a `Llama` or `VQGAN`.
      params: its parameters, nested; leaves are numpy or jax arrays, fetched one at a time.
      **metadata: JSON values stored beside the configuration, such as class_names=[...].

    Raises:
      InputError: `folder` exists.
    """
    tensors = {
        path: Tensor(leaf.shape, np.dtype(leaf.dtype), [leaf])
        for path, leaf in flatten_dict(params, sep="/").items()
    }
    write_tensors_and_config(folder, model, tensors, metadata)


def write_tensors_and_config(
    folder: str | os.PathLike, model, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> None:
    """`write` with the parameters given as `Tensor`s, by their '/'-joined path."""
    config = {"model": type(model).__name__, "config": dataclasses.asdict(model.config)}
    with staged(folder) as partial:
        partial.mkdir()
        (partial / "config.json").write_text(json.dumps(config | metadata, indent=2) + "\n")
        write_tensors(partial / "params.safetensors", tensors)


def read(folder: str | os.PathLike) -> tuple[str, dict, dict, dict]:
    """Opens an export folder.

    Returns:
      The model's name ("Llama" or "VQGAN"), its config fields, the metadata, and the nested
      parameters as read-only numpy arrays mapped from the file.

    Raises:
      InputError: a file is missing or broken (the message names it).
    """
    folder = Path(folder)
    metadata = read_config(folder)
    try:
        name, config = metadata.pop("model"), metadata.pop("config")
    except KeyError as error:
        raise InputError(
            f"{folder / 'config.json'} has no entry {error}; expected the one of an export folder"
        ) from None
    params = open_tensors(folder / "params.safetensors")
    return name, config, metadata, unflatten_dict(params, sep="/")


def read_config(folder: str | os.PathLike) -> dict:
    """The JSON object in `folder`/config.json; InputError when it is missing or broken."""
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path} is missing; expected an export or a work folder") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} holds no JSON object; expected an export's configuration")
    return config


def weights_hash(params: Mapping) -> str:
    """SHA-256 (hex) of the parameters' paths, dtypes, shapes and bytes, whatever holds them.

    Args:
      params: nested; leaves are numpy or jax arrays.
    """
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten_dict(params, sep="/").items()):
        digest.update(f"{path} {np.dtype(leaf.dtype)} {list(leaf.shape)}\n".encode())
        digest.update(_bytes(leaf))
    return digest.hexdigest()


def write_tensors(path: str | os.PathLike, tensors: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file piece by piece, holding one piece in memory at a time."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.dtype.itemsize * math.prod(tensor.shape)
        header[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with Path(path).open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in tensors.values():
            for piece in tensor.pieces:
                file.write(_bytes(np.asarray(piece, tensor.dtype)))


def open_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Tensors of a safetensors file by name, as read-only arrays mapped from the file.

    Raises:
      InputError: the file is missing, truncated or no safetensors file, or has an unknown dtype.
    """
    path = Path(path)
    try:
        # Opening checks that the header is sound and that the tensors cover the file.
        with safetensors.safe_open(path, "np"):
            pass
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is truncated or no safetensors file: {error}") from error
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_size))
    header.pop("__metadata__", None)
    data = np.asarray(np.memmap(path, np.uint8, "r"))[8 + header_size :]
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            raise InputError(
                f"{path}: tensor {name} has dtype {entry['dtype']}; "
                f"expected one of {', '.join(_DTYPES)}"
            )
        start, end = entry["data_offsets"]
        tensors[name] = data[start:end].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def _bytes(array) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
