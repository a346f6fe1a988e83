"""Weights of Inception from the files that FID is computed with, PyTorch's and TensorFlow's."""

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from llamagen_jax.errors import InputError
from llamagen_jax.models.inception import IMAGE_SIZE, Inception
from llamagen_jax.weights.mapping import Layout
from llamagen_jax.weights.names import NameTable
from llamagen_jax.weights.shapes import Shapes, flat_shapes
from llamagen_jax.weights.tensorflow_graph import read_constants
from llamagen_jax.weights.torch_files import read_torch

TORCH_SOURCE = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth"
)
TENSORFLOW_SOURCE = "http://download.tensorflow.org/models/image/imagenet/inception-2015-12-05.tgz"

# No score reads the bias of the class scores.
_TORCH = NameTable(
    names={
        r"\w+/(\w+)/(conv|bn)": r"\1.\2",
        r"\w+/(\w+)/(\w+)/(conv|bn)": r"\1.\2.\3",
        "params/fc": "fc",
    },
    ignored=r"fc\.bias|.*\.num_batches_tracked",
)

# TensorFlow numbers what lies in a scope in its order: conv, conv_1, conv_2.
_BLOCK35 = {
    "": ("branch1x1",),
    "tower/": ("branch5x5_1", "branch5x5_2"),
    "tower_1/": ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
    "tower_2/": ("branch_pool",),
}
_REDUCTION17 = {
    "": ("branch3x3",),
    "tower/": ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
}
_BLOCK17 = {
    "": ("branch1x1",),
    "tower/": ("branch7x7_1", "branch7x7_2", "branch7x7_3"),
    "tower_1/": tuple(f"branch7x7dbl_{i}" for i in range(1, 6)),
    "tower_2/": ("branch_pool",),
}
_REDUCTION8 = {
    "tower/": ("branch3x3_1", "branch3x3_2"),
    "tower_1/": tuple(f"branch7x7x3_{i}" for i in range(1, 5)),
}
_BLOCK8 = {
    "": ("branch1x1",),
    "tower/": ("branch3x3_1",),
    "tower/mixed/": ("branch3x3_2a", "branch3x3_2b"),
    "tower_1/": ("branch3x3dbl_1", "branch3x3dbl_2"),
    "tower_1/mixed/": ("branch3x3dbl_3a", "branch3x3dbl_3b"),
    "tower_2/": ("branch_pool",),
}
_BLOCKS = {
    "Mixed_5b": _BLOCK35,
    "Mixed_5c": _BLOCK35,
    "Mixed_5d": _BLOCK35,
    "Mixed_6a": _REDUCTION17,
    "Mixed_6b": _BLOCK17,
    "Mixed_6c": _BLOCK17,
    "Mixed_6d": _BLOCK17,
    "Mixed_6e": _BLOCK17,
    "Mixed_7a": _REDUCTION8,
    "Mixed_7b": _BLOCK8,
    "Mixed_7c": _BLOCK8,
}
_STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")


def _numbered(name: str, number: int) -> str:
    return f"{name}_{number}" if number else name


def _tensorflow_table() -> NameTable:
    scopes: list[tuple[str, tuple[str, ...]]] = [("", _STEM)]
    for number, (block, branches) in enumerate(_BLOCKS.items()):
        for scope, layers in branches.items():
            paths = tuple(f"{block}/{layer}" for layer in layers)
            scopes.append((f"{_numbered('mixed', number)}/{scope}", paths))
    names = {"params/fc/kernel": "softmax/weights"}
    for scope, paths in scopes:
        for number, path in enumerate(paths):
            name = scope + _numbered("conv", number)
            names[f"params/{path}/conv"] = name
            names[rf"\w+/{path}/bn"] = f"{name}/batchnorm"
    suffixes = {
        "kernel": "/conv2d_params",
        "scale": "/gamma",
        "bias": "/beta",
        "mean": "/moving_mean",
        "var": "/moving_variance",
    }
    # The graph's constants are also those of its preprocessing.
    ignored = r"(?!conv|mixed|softmax/weights).*"
    return NameTable(names=names, suffixes=suffixes, transposed=False, ignored=ignored)


def load(path: str | os.PathLike) -> tuple[Inception, dict[str, Any]]:
    """The network of FID, from the file that others compute FID with.

    Args:
      path: of pt_inception-2015-12-05-6726825d.pth or of classify_image_graph_def.pb (the same
        weights), or a .safetensors with the names of the former.

    Returns:
      The model and its variables, float32 numpy arrays.

    Raises:
      InputError: the file is missing (it tells where to get it), damaged, or of another network.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"{path} is no file; expected Inception's weights, {TORCH_SOURCE} or the "
            f"classify_image_graph_def.pb in {TENSORFLOW_SOURCE}"
        )
    graph = path.suffix == ".pb"
    tensors = read_constants(path) if graph else read_torch(path)[0]
    table = _tensorflow_table() if graph else _TORCH
    return Inception(), _variables(tensors, table, f"{path} does not hold the Inception of FID")


def from_torch(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Variables of `Inception` from the state dict of torch-fidelity or of pytorch-fid.

    Args:
      tensors: arrays by name, such as "Mixed_6d.branch1x1.conv.weight".

    Returns:
      The collections "params" and "batch_stats" of nested float32 numpy arrays.

    Raises:
      InputError: tensors are missing, unexpected or of the wrong shape; it lists them all.
    """
    return _variables(tensors, _TORCH, "tensors do not fit Inception")


def to_torch(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of `from_torch`; the bias of the class scores, which no score reads, is zero.

    Args:
      variables: nested numpy or jax arrays.

    Raises:
      InputError: variables are missing, unexpected or of the wrong shape; it lists them all.
    """
    views = Layout(_TORCH, _shapes()).tensor_views(variables, "variables do not fit Inception")
    tensors = {name: view.array() for name, view in views.items()}
    return tensors | {"fc.bias": np.zeros(len(tensors["fc.weight"]), np.float32)}


def _variables(tensors: Mapping[str, np.ndarray], table: NameTable, what: str) -> dict[str, Any]:
    views = Layout(table, _shapes()).param_views(tensors, what)
    return unflatten_dict({path: v.array(np.float32) for path, v in views.items()}, sep="/")


@functools.cache
def _shapes() -> Shapes:
    images = np.zeros((1, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    return flat_shapes(jax.eval_shape(Inception().init, jax.random.key(0), images))
