"""Weights of the original LlamaGen (PyTorch) to this project's parameters and back.

Names are the original's (github.com/FoundationVision/LlamaGen, `autoregressive/models/gpt.py` and
`tokenizer/tokenizer_image/vq_model.py`). Linear weights are [out, in] there and [in, out] here,
convolutions [out, in, h, w] there and [h, w, in, out] here; its fused `wqkv` is the q, k and v of
this project one below the other, and its layers are stacked here.

As a command, `python -m llamagen_jax.convert SRC DST`.
"""

import argparse
import functools
import math
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from tqdm import tqdm

from llamagen_jax import zoo
from llamagen_jax.errors import InputError, one_line_errors
from llamagen_jax.files import staged
from llamagen_jax.models.llama import LlamaConfig
from llamagen_jax.models.vqgan import VQGANConfig
from llamagen_jax.weights import export

_LLAMA_NAMES = {
    "codes_embedding/embedding": "tok_embeddings.weight",
    "condition_embedding/classes/embedding": "cls_embedding.embedding_table.weight",
    "condition_embedding/null_features": "cls_embedding.uncond_embedding",
    "condition_embedding/fc1/kernel": "cls_embedding.cap_proj.fc1.weight",
    "condition_embedding/fc2/kernel": "cls_embedding.cap_proj.fc2.weight",
    "layers/attention_norm/scale": "layers.{}.attention_norm.weight",
    "layers/attention/q/kernel": "layers.{}.attention.wqkv.weight",
    "layers/attention/k/kernel": "layers.{}.attention.wqkv.weight",
    "layers/attention/v/kernel": "layers.{}.attention.wqkv.weight",
    "layers/attention/out/kernel": "layers.{}.attention.wo.weight",
    "layers/ffn_norm/scale": "layers.{}.ffn_norm.weight",
    "layers/gate/kernel": "layers.{}.feed_forward.w1.weight",
    "layers/up/kernel": "layers.{}.feed_forward.w3.weight",
    "layers/down/kernel": "layers.{}.feed_forward.w2.weight",
    "norm/scale": "norm.weight",
    "output": "output.weight",
}
_VQGAN_RENAMES = (
    (r"level_(\d+)_res_(\d+)", r"conv_blocks.\1.res.\2"),
    (r"level_(\d+)_attention_(\d+)", r"conv_blocks.\1.attn.\2"),
    (r"level_(\d+)_(downsample|upsample)", r"conv_blocks.\1.\2"),
    (r"middle_res_0", "mid.0"),
    (r"middle_attention", "mid.1"),
    (r"middle_res_1", "mid.2"),
    (r"/out/", ".proj_out."),
    (r"/shortcut/", ".nin_shortcut."),
    (r"quantizer/codebook", "quantize.embedding.weight"),
    (r"(kernel|scale)$", "weight"),
    (r"/", "."),
)
# State of the original's modules that is not part of the function they compute: code statistics,
# the rotary table, the attention mask and the key-value cache.
_BUFFERS = re.compile(
    r"quantize\.codebook_used|freqs_cis|causal_mask|layers\.\d+\.attention\.kv_cache\.[kv]_cache"
)
# What files of PyTorch before 1.6 start with: a pickled number of their own.
_LEGACY_START = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
_STATE_KEYS = ("model", "module", "state_dict", "ema")


class Piece(NamedTuple):
    """A block of numbers that both layouts hold.

    `params[path]`, or its entry `layer` where layers are stacked, equals
    `tensors[name][rows].transpose(axes)`.
    """

    path: str
    layer: int | None
    name: str
    rows: slice
    axes: tuple[int, ...]

    def from_tensors(self, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
        return tensors[self.name][self.rows].transpose(self.axes)

    def from_params(self, params: Mapping[str, np.ndarray]) -> np.ndarray:
        leaf = params[self.path] if self.layer is None else params[self.path][self.layer]
        return leaf.transpose(np.argsort(self.axes))


class Entry(NamedTuple):
    """A parameter or a tensor: its shape, and the pieces it consists of in row-major order."""

    shape: tuple[int, ...]
    pieces: list[Piece]


def from_torch(
    tensors: Mapping[str, np.ndarray], config: LlamaConfig | VQGANConfig
) -> dict[str, dict]:
    """Parameters of `Llama(config)` or `VQGAN(config)` from the original's state dict.

    Args:
      tensors: arrays by the original's names; its buffers may be among them and are left out.

    Returns:
      Nested numpy arrays in the dtypes given, layers stacked.

    Raises:
      InputError: tensors are missing, unexpected or of the wrong shape; it lists them all.
    """
    params = _param_views(tensors, config)
    return unflatten_dict({path: _array(view) for path, view in params.items()}, sep="/")


def to_torch(params: Mapping, config: LlamaConfig | VQGANConfig) -> dict[str, np.ndarray]:
    """The original's state dict without its buffers: the exact inverse of `from_torch`.

    Args:
      params: nested, or gradients or moments of the same structure; leaves are numpy or jax arrays.

    Raises:
      InputError: parameters are missing, unexpected or of the wrong shape; it lists them all.
    """
    return {name: _array(view) for name, view in _tensor_views(params, config).items()}


def tensor_shapes(config: LlamaConfig | VQGANConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the original's state dict, without its buffers."""
    return {name: entry.shape for name, entry in _layout(config)[1].items()}


def read_torch(path: Path, ema: bool = False) -> tuple[dict[str, np.ndarray], str | None]:
    """Opens a .pt, .pth or .safetensors file of the original.

    Args:
      ema: prefer the moving average to the other weights in the file.

    Returns:
      The tensors, mapped from the file and read only where they are used, and the key of the
      checkpoint they were under; None for a file that holds the tensors directly.

    Raises:
      InputError: the file is damaged or holds something else, or PyTorch is missing.
    """
    if path.suffix == ".safetensors":
        return export.open_tensors(path), None
    torch = _import_torch(path)
    checkpoint = _load_pickle(torch, path)
    if not isinstance(checkpoint, dict):
        raise InputError(f"{path} holds a {type(checkpoint).__name__}; expected a state dict")
    keys = ("ema", *_STATE_KEYS) if ema else _STATE_KEYS
    key = next((key for key in keys if isinstance(checkpoint.get(key), dict)), None)
    state = checkpoint if key is None else checkpoint[key]
    others = [str(name) for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise InputError(
            f"{path} holds {', '.join(others[:5])}, not tensors; expected a state dict, bare or "
            f"under one of {', '.join(_STATE_KEYS)}"
        )
    return {name: _to_numpy(torch, tensor) for name, tensor in state.items()}, key


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m llamagen_jax.convert",
        description="Converts weights between the original LlamaGen's files and export folders.",
    )
    parser.add_argument(
        "src",
        type=Path,
        metavar="SRC",
        help="a .pt, .pth or .safetensors file of the original, or an export or work folder",
    )
    parser.add_argument(
        "dst",
        type=Path,
        metavar="DST",
        help="written in the original's layout if it ends in .pt, .pth or .safetensors, otherwise "
        "as an export folder; must not exist",
    )
    parser.add_argument(
        "--ema", action="store_true", help="prefer the moving average where SRC holds one"
    )
    parser.add_argument(
        "--grid-size",
        type=int,
        help="side of a transformer's code grid (16, 24 or 32 for 256, 384 or 512 px), where "
        "neither the file's name, such as c2i_L_384.pt, nor its tensors tell",
    )
    parser.add_argument(
        "--n-heads", type=int, help="attention heads, for transformers of unpublished sizes"
    )
    args = parser.parse_args()
    with one_line_errors():
        _convert(**vars(args))


def _convert(src: Path, dst: Path, ema: bool, grid_size: int | None, n_heads: int | None) -> None:
    if not src.exists():
        raise InputError(f"{src} does not exist")
    if src.is_dir():
        model, params = zoo.load_folder(src)
        tensor_views = _tensor_views(params, model.config)
        param_views = {path: _whole(leaf) for path, leaf in flatten_dict(params, sep="/").items()}
    else:
        tensors, key = read_torch(src, ema)
        print(f"{src}: taking the weights {f'under {key!r}' if key else 'it holds directly'}")
        config = zoo.infer_config(tensors, src, grid_size=grid_size, n_heads=n_heads)
        model = zoo.build(config)
        param_views = _param_views(tensors, config)
        tensor_views = {n: _whole(t) for n, t in tensors.items() if not _BUFFERS.fullmatch(n)}
    total = sum(view.dtype.itemsize * math.prod(view.shape) for view in param_views.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc=dst.name) as bar:
        if dst.suffix in (".pt", ".pth", ".safetensors"):
            _write_torch(dst, _tracked(tensor_views, bar), model.config)
        else:
            export.write_tensors_and_config(dst, model, _tracked(param_views, bar), {})
    print(f"{dst}: {zoo.describe(model.config)}, {total / 1e6:.0f} MB")


@functools.cache
def _layout(config: LlamaConfig | VQGANConfig) -> tuple[dict[str, Entry], dict[str, Entry]]:
    """What each parameter (by '/'-joined path) and each tensor (by name) consists of."""
    shapes = zoo.param_shapes(config)
    if isinstance(config, LlamaConfig):
        names = {path: name for path, name in _LLAMA_NAMES.items() if path in shapes}
    else:
        names = {path: _vqgan_name(path) for path in shapes}
    params, tensors = {}, {}
    for path, name in names.items():
        layers = range(config.n_layers) if "{}" in name else [None]
        params[path] = Entry(shapes[path], [])
        shape = shapes[path] if layers == [None] else shapes[path][1:]
        axes = _transpose(path, len(shape))
        tensor_shape = [shape[axis] for axis in np.argsort(axes)]
        for layer in layers:
            tensor_name = name.format(layer)
            (start, *_), pieces = tensors.get(tensor_name, Entry((0,), []))
            stop = start + tensor_shape[0]
            piece = Piece(path, layer, tensor_name, slice(start, stop), axes)
            params[path].pieces.append(piece)
            tensors[tensor_name] = Entry((stop, *tensor_shape[1:]), [*pieces, piece])
    return params, tensors


def _transpose(path: str, rank: int) -> tuple[int, ...]:
    """Axes that turn the original's tensor into the parameter at `path`, without its layers."""
    if path.endswith("kernel") or path == "output":
        return (2, 3, 1, 0) if rank == 4 else (1, 0)
    return tuple(range(rank))


def _vqgan_name(path: str) -> str:
    for pattern, replacement in _VQGAN_RENAMES:
        path = re.sub(pattern, replacement, path)
    return path


def _param_views(tensors, config) -> dict[str, export.Tensor]:
    """Each parameter as views of the original's tensors, after a check of all their shapes."""
    found = {n: t.shape for n, t in tensors.items() if not _BUFFERS.fullmatch(n)}
    zoo.check_shapes(found, tensor_shapes(config), f"tensors do not fit a {zoo.describe(config)}")
    return {
        path: _view(entry.shape, [piece.from_tensors(tensors) for piece in entry.pieces])
        for path, entry in _layout(config)[0].items()
    }


def _tensor_views(params, config) -> dict[str, export.Tensor]:
    """Each tensor of the original as views of the parameters, after a check of all their shapes."""
    leaves = {path: np.asarray(leaf) for path, leaf in flatten_dict(params, sep="/").items()}
    zoo.check_params(params, config, f"parameters do not fit a {zoo.describe(config)}")
    return {
        name: _view(entry.shape, [piece.from_params(leaves) for piece in entry.pieces])
        for name, entry in _layout(config)[1].items()
    }


def _view(shape, pieces) -> export.Tensor:
    return export.Tensor(shape, np.result_type(*pieces), pieces)


def _whole(array) -> export.Tensor:
    return _view(array.shape, [np.asarray(array)])


def _array(tensor: export.Tensor) -> np.ndarray:
    array = np.empty(tensor.shape, tensor.dtype)
    flat, start = array.reshape(-1), 0
    for piece in tensor.pieces:
        flat[start : start + piece.size].reshape(piece.shape)[...] = piece
        start += piece.size
    return array


def _tracked(tensors: Mapping[str, export.Tensor], bar: tqdm) -> dict[str, export.Tensor]:
    def advance(pieces):
        for piece in pieces:
            yield piece
            bar.update(piece.nbytes)

    return {name: view._replace(pieces=advance(view.pieces)) for name, view in tensors.items()}


def _write_torch(path: Path, tensors: dict[str, export.Tensor], config) -> None:
    """Writes a file that the original loads, strictly too."""
    if isinstance(config, VQGANConfig):
        tensors["quantize.codebook_used"] = _whole(np.zeros(65536, np.float32))
    with staged(path) as partial:
        if path.suffix == ".safetensors":
            export.write_tensors(partial, tensors)
        else:
            torch = _import_torch(path)
            state = {name: _from_numpy(torch, _array(view)) for name, view in tensors.items()}
            torch.save({"model": state}, partial)


def _load_pickle(torch, path: Path):
    """What torch.save wrote; code in it is refused, not run.

    Mapped from the file, but for the format from before PyTorch 1.6, which is no archive.
    """
    with path.open("rb") as file:
        legacy = file.read(len(_LEGACY_START)) == _LEGACY_START
    if not legacy and not zipfile.is_zipfile(path):
        raise InputError(
            f"{path} is truncated or no PyTorch checkpoint (a zip archive that torch.save writes)"
        )
    try:
        # The original's training checkpoints hold its command line's flags, a plain record.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", mmap=not legacy, weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        what = f"pickled code ({code[1]}), which is never run" if code else "a damaged pickle"
        raise InputError(f"{path} holds {what}; expected tensors only") from error
    # A damaged archive raises whatever its bytes happen to lead to.
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} is a damaged PyTorch checkpoint: {reason}") from error


def _import_torch(path: Path):
    try:
        import torch
    except ImportError:
        raise InputError(
            f'{path} needs PyTorch: pip install "llamagen_jax[convert]", or use .safetensors'
        ) from None
    return torch


# numpy's bfloat16 is an extension that torch does not know, so the bits are handed over.
def _to_numpy(torch, tensor) -> np.ndarray:
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(jnp.bfloat16)
    return tensor.numpy()


def _from_numpy(torch, array: np.ndarray):
    if array.dtype == jnp.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


if __name__ == "__main__":
    main()
