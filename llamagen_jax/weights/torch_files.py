"""Weight files as PyTorch users have them: .pt, .pth, .ckpt, .safetensors, whole or in shards.

Tensors are mapped from the file (https://huggingface.co/docs/safetensors, torch.load) and read only
where they are used. Code in a pickle is never run. .safetensors need no PyTorch.
"""

import argparse
import json
import math
import os
import pathlib
import pickle
import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors
import xxhash
from absl import logging

from llamagen_jax.digests import which
from llamagen_jax.errors import InputError
from llamagen_jax.files import staged

SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")

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
# What files of PyTorch before 1.6 start with: a pickled number of their own.
_LEGACY_START = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
# What data parallelism, compilation and trainers put before every name, and within names.
_PREFIXES = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "model.", "generator.")
_WRAPPERS = re.compile(r"_orig_mod\.|_fsdp_wrapped_module\.")
# Before the name of a tensor, the name of its digest in the metadata of a safetensors file.
_DIGEST = "xxh3_128 "
# Packages whose classes Lightning's checkpoints name, for callbacks and the like.
_TRAINERS = ("lightning", "pytorch_lightning")
_STATE_KEYS = ("model", "module", "state_dict", "ema")
# What Hugging Face's `transformers` and `diffusers` call the weights in a model's folder.
_FOLDER_FILES = (
    "model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
)


class Tensor(NamedTuple):
    """A tensor to write: the elements of `pieces`, one piece after the other, in row-major order.

    Pieces may be views of a memory-mapped file, so that a tensor is never held whole.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: Iterable[Any]

    @classmethod
    def of(cls, array: Any) -> "Tensor":
        """A numpy or jax array as its only piece."""
        return cls(array.shape, np.dtype(array.dtype), [array])

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)

    def array(self, dtype: Any = None) -> np.ndarray:
        """A new array of the whole tensor, in its own dtype unless another is given."""
        array = np.empty(self.shape, dtype or self.dtype)
        flat, start = array.reshape(-1), 0
        for piece in self.pieces:
            flat[start : start + piece.size].reshape(piece.shape)[...] = piece
            start += piece.size
        return array


def read_torch(path: Path, ema: bool = False) -> tuple[dict[str, np.ndarray], str | None]:
    """Opens a .pt, .pth, .ckpt or .safetensors file.

    Args:
      ema: prefer the moving average to the other weights in the file.

    Returns:
      The tensors by name, and the key of the checkpoint they were under; None for a file that holds
      the tensors directly.

    Raises:
      InputError: the file is damaged or holds something else, or PyTorch is missing.
    """
    if path.suffix == ".safetensors":
        return _without_wrappers(path, open_safetensors(path)), None
    torch = _import_torch(path)
    checkpoint = _load_pickle(torch, path)
    if not isinstance(checkpoint, dict):
        raise InputError(f"{path} holds a {type(checkpoint).__name__}; expected a state dict")
    keys = ("ema", *_STATE_KEYS) if ema else _STATE_KEYS
    key = next((key for key in keys if isinstance(checkpoint.get(key), dict)), None)
    if key != "ema" and isinstance(checkpoint.get("ema"), dict):
        logging.warning(
            "%s: taking its weights and not their moving average (ema), which "
            "`python -m llamagen_jax.convert --ema` takes",
            path,
        )
    state = checkpoint if key is None else checkpoint[key]
    others = [str(name) for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise InputError(
            f"{path} holds {', '.join(others[:5])}, not tensors; expected a state dict, bare or "
            f"under one of {', '.join(_STATE_KEYS)}"
        )
    tensors = {name: _to_numpy(torch, tensor) for name, tensor in state.items()}
    return _without_wrappers(path, tensors), key


def _without_wrappers(path: Path, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors without what wrappers of PyTorch's modules put into their names."""
    renamed = tensors
    while prefix := next((p for p in _PREFIXES if all(n.startswith(p) for n in renamed)), ""):
        renamed = {name.removeprefix(prefix): tensor for name, tensor in renamed.items()}
    stripped = {_WRAPPERS.sub("", name): tensor for name, tensor in renamed.items()}
    if len(stripped) != len(tensors):
        raise InputError(f"{path} holds tensors twice, with and without a wrapper in their names")
    if stripped.keys() != tensors.keys():
        example = next(iter(tensors))
        read = next(iter(stripped))
        logging.warning("%s: %s is read as %s, and its other tensors likewise", path, example, read)
    return stripped


def write_torch(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a .pt, .pth, .ckpt or .safetensors file, which appears when it is complete.

    Only .safetensors are written without holding the tensors in memory.

    Raises:
      InputError: the file exists or cannot be written, or PyTorch is missing.
    """
    with staged(path) as partial:
        if path.suffix == ".safetensors":
            write_safetensors(partial, tensors)
        else:
            torch = _import_torch(path)
            state = {name: _from_numpy(torch, tensor.array()) for name, tensor in tensors.items()}
            torch.save({"model": state}, partial)


def open_folder(folder: str | os.PathLike) -> dict[str, np.ndarray]:
    """All tensors, by name, of a model's folder in the layout of `transformers` or `diffusers`.

    Takes the first of model.safetensors, pytorch_model.bin, the same beginning with diffusion_, and
    the shards that the first of these names with .index.json lists.

    Raises:
      InputError: none is there, a shard is missing or damaged, or a shard does not hold the tensors
        that the index places in it.
    """
    folder = Path(folder)
    for name in _FOLDER_FILES:
        if (folder / name).is_file():
            return read_torch(folder / name)[0]
    for name in _FOLDER_FILES:
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _open_shards(index)
    raise InputError(
        f"{folder} holds no weights; expected {' or '.join(_FOLDER_FILES)}, whole or in shards "
        "with an .index.json"
    )


def _open_shards(index: Path) -> dict[str, np.ndarray]:
    try:
        places = json.loads(index.read_text())["weight_map"]
        shards = sorted(set(places.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index} is damaged or no index of shards: {error!r}") from error
    tensors = {}
    for shard in shards:
        path = index.parent / shard
        if Path(shard).name != shard or not path.is_file():
            raise InputError(f"{path} is missing; {index.name} lists it")
        held = read_torch(path)[0]
        absent = [name for name, place in places.items() if place == shard and name not in held]
        if absent:
            raise InputError(f"{path} lacks tensors that {index.name} lists: {', '.join(absent)}")
        tensors |= held
    return tensors


def write_safetensors(path: str | os.PathLike, tensors: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file piece by piece, holding one piece in memory at a time.

    Its metadata hold a digest of every tensor, which `open_safetensors` checks.
    """
    entries, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        entries[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    digests = {name: _tensor_digest(name, entry) for name, entry in entries.items()}
    with Path(path).open("wb") as file:
        file.write(_encoded_header(entries, digests))
        for name, tensor in tensors.items():
            for piece in tensor.pieces:
                data = raw_bytes(np.asarray(piece, tensor.dtype))
                digests[name].update(data)
                file.write(data)
        # Of the same length, now that the digests are known.
        file.seek(0)
        file.write(_encoded_header(entries, digests))


def _tensor_digest(name: str, entry: dict) -> xxhash.xxh3_128:
    """The digest of a tensor, before its bytes."""
    return xxhash.xxh3_128(f"{name} {entry['dtype']} {entry['shape']}\n".encode())


def _encoded_header(entries: dict[str, dict], digests: dict[str, xxhash.xxh3_128]) -> bytes:
    metadata = {_DIGEST + name: digest.hexdigest() for name, digest in digests.items()}
    encoded = json.dumps({"__metadata__": metadata, **entries}).encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded


def open_safetensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Tensors of a safetensors file by name, as read-only arrays mapped from the file.

    Raises:
      InputError: the file is missing, truncated or no safetensors file, or has an unknown dtype, or
        a tensor is not what its digest is of, where the file has digests.
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
    metadata = header.pop("__metadata__", {})
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
    stored = {n.removeprefix(_DIGEST): d for n, d in metadata.items() if n.startswith(_DIGEST)}
    if stored:
        _check_digests(path, header, tensors, stored)
    return tensors


def _check_digests(
    path: Path, entries: dict[str, dict], tensors: dict[str, np.ndarray], stored: dict[str, str]
) -> None:
    if stored.keys() != tensors.keys():
        raise InputError(f"{path} is damaged: its digests are of other tensors; copy it again")

    def changed(name: str) -> bool:
        digest = _tensor_digest(name, entries[name])
        digest.update(raw_bytes(tensors[name]))
        return digest.hexdigest() != stored[name]

    if damaged := which(changed, list(tensors)):
        raise InputError(
            f"{path} is damaged: the tensor {damaged[0]} has changed since it was written"
            + (f", and {len(damaged) - 1} others" if damaged[1:] else "")
            + "; copy, export or convert it again"
        )


def raw_bytes(array: Any) -> memoryview:
    """The bytes of a numpy or jax array in row-major order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _load_pickle(torch: Any, path: Path) -> Any:
    """What torch.save wrote; code in it is refused, not run.

    Mapped from the file, but for the format from before PyTorch 1.6, which is no archive.
    """
    with path.open("rb") as file:
        legacy = file.read(len(_LEGACY_START)) == _LEGACY_START
    if not legacy and not zipfile.is_zipfile(path):
        raise InputError(
            f"{path} is truncated or no PyTorch checkpoint (a zip archive that torch.save writes)"
        )
    if not legacy:
        _check_sums(path)
    allowed = _harmless()
    while True:
        try:
            with torch.serialization.safe_globals(allowed):
                return torch.load(path, map_location="cpu", mmap=not legacy, weights_only=True)
        except pickle.UnpicklingError as error:
            code = re.search(r"GLOBAL (\S+)", str(error))
            if code and code[1].partition(".")[0] in _TRAINERS and (_Inert, code[1]) not in allowed:
                allowed.append((_Inert, code[1]))
                continue
            what = f"pickled code ({code[1]}), which is never run" if code else "a damaged pickle"
            raise InputError(f"{path} holds {what}; expected tensors only") from error
        # A damaged archive raises whatever its bytes happen to lead to.
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise InputError(f"{path} is a damaged PyTorch checkpoint: {reason}") from error


def _check_sums(path: Path) -> None:
    """Compares the members of a PyTorch archive with their sums, which mapping it does not.

    Raises:
      InputError: a member has changed since it was written.
    """
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if member.file_size]

    def changed(member: zipfile.ZipInfo) -> bool:
        try:
            with zipfile.ZipFile(path) as archive, archive.open(member) as file:
                while file.read(2**23):
                    pass
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError):
            return True
        return False

    damaged = which(changed, members)
    # Where all differ, PyTorch was told to write no sums (`set_crc32_options`).
    if damaged and len(damaged) < len(members):
        raise InputError(
            f"{path} is damaged: its member {damaged[0].filename} has changed since it was "
            "written; copy or convert it again"
        )


class _Inert:
    """Stands in for a class of a trainer, so that nothing of that is imported or run."""

    def __new__(cls, *_: Any, **__: Any) -> "_Inert":
        return super().__new__(cls)


def _harmless() -> list[Any]:
    """Classes that stand beside tensors in training checkpoints: plain records without code.

    They are the command line's flags, paths, and numpy's numbers under the names of numpy 1 and 2.
    """
    multiarray = np._core.multiarray  # type: ignore[attr-defined]
    functions = (multiarray.scalar, multiarray._reconstruct)
    return [
        argparse.Namespace,
        (pathlib.PurePosixPath, "pathlib.PosixPath"),
        (pathlib.PureWindowsPath, "pathlib.WindowsPath"),
        np.ndarray,
        np.dtype,
        *(type(np.dtype(code)) for code in "?bBhHiIlLqQefd"),
        *(
            (f, f"numpy.{core}.multiarray.{f.__name__}")
            for core in ("core", "_core")
            for f in functions
        ),
    ]


def _import_torch(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise InputError(
            f'{path} needs PyTorch: pip install "llamagen_jax[convert]", or use .safetensors'
        ) from None
    return torch


# numpy's bfloat16 is an extension that torch does not know, so the bits are handed over.
def _to_numpy(torch: Any, tensor: Any) -> np.ndarray:
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(jnp.bfloat16)
    return tensor.numpy()


def _from_numpy(torch: Any, array: np.ndarray) -> Any:
    if array.dtype == jnp.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
