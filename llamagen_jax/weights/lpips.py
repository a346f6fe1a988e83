"""Weights of LPIPS from the files that PyTorch users have of VGG16 and of the LPIPS heads."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from llamagen_jax.errors import InputError
from llamagen_jax.files import staged
from llamagen_jax.models.lpips import LPIPS
from llamagen_jax.weights.mapping import Layout
from llamagen_jax.weights.names import NameTable
from llamagen_jax.weights.shapes import Shapes, abstract_params, flat_shapes
from llamagen_jax.weights.torch_files import read_torch, write_safetensors

VGG16_SOURCE = "https://download.pytorch.org/models/vgg16-397923af.pth"
HEADS_SOURCE = (
    "https://github.com/richzhang/PerceptualSimilarity/blob/master/lpips/weights/v0.1/vgg.pth"
)

# What `write` calls them.
VGG16_FILE, HEADS_FILE = "vgg16.safetensors", "lpips_heads.safetensors"

# torchvision numbers activations and poolings too.
_VGG16 = NameTable(
    names={
        "conv1_1": "features.0",
        "conv1_2": "features.2",
        "conv2_1": "features.5",
        "conv2_2": "features.7",
        "conv3_1": "features.10",
        "conv3_2": "features.12",
        "conv3_3": "features.14",
        "conv4_1": "features.17",
        "conv4_2": "features.19",
        "conv4_3": "features.21",
        "conv5_1": "features.24",
        "conv5_2": "features.26",
        "conv5_3": "features.28",
    },
    ignored=r"classifier\..*",
)
# Convolutions of 1x1 to a single channel.
_HEADS = NameTable(
    names={f"head{stage}": f"lin{stage - 1}.model.1.weight" for stage in range(1, 6)},
    unit_axes={f"head{stage}": (0, 2, 3) for stage in range(1, 6)},
    # The rest of a whole LPIPS.
    ignored=r"(lins|net|scaling_layer)\..*",
)


def load(vgg16: str | Path, lpips_heads: str | Path) -> dict[str, Any]:
    """Parameters of `models.lpips.LPIPS`, float32 numpy arrays.

    Args:
      vgg16: state dict of torchvision's vgg16 ("features.0.weight", ...; its classifier is left
        out), a .pth in either of PyTorch's formats or a .safetensors.
      lpips_heads: state dict of the linear heads ("lin0.model.1.weight", ...), likewise.

    Raises:
      InputError: a file is missing (it tells where to get it), damaged, or of another network.
    """
    vgg16_layout, heads_layout = _layouts()
    convolutions = _read(vgg16, vgg16_layout, "loss.vgg16", VGG16_SOURCE)
    heads = _read(lpips_heads, heads_layout, "loss.lpips_heads", HEADS_SOURCE)
    return unflatten_dict(convolutions | heads, sep="/")


def write(folder: str | Path, params: Mapping[str, Any]) -> None:
    """Writes the two files that `load` reads, VGG16_FILE and HEADS_FILE, into a new folder.

    Args:
      folder: appears when it is complete.
      params: of `models.lpips.LPIPS`.

    Raises:
      InputError: the folder exists or cannot be written.
    """
    heads = {name: params[name] for name in params if name.startswith("head")}
    convolutions = {name: params[name] for name in params if name not in heads}
    vgg16_layout, heads_layout = _layouts()
    with staged(folder) as partial:
        partial.mkdir()
        for name, layout, own in (
            (VGG16_FILE, vgg16_layout, convolutions),
            (HEADS_FILE, heads_layout, heads),
        ):
            views = layout.tensor_views(own, "these are no parameters of LPIPS")
            write_safetensors(partial / name, views)


@functools.cache
def shapes() -> Shapes:
    """Of the parameters of `models.lpips.LPIPS`, by '/'-joined path."""
    image = jnp.zeros((1, 16, 16, 3))
    return flat_shapes(abstract_params(LPIPS(), image, image))


@functools.cache
def _layouts() -> tuple[Layout, Layout]:
    """The files of VGG16 and of the heads."""
    heads = {path: shape for path, shape in shapes().items() if path.startswith("head")}
    convolutions = {path: shape for path, shape in shapes().items() if path not in heads}
    return Layout(_VGG16, convolutions), Layout(_HEADS, heads)


def _read(path: str | Path, layout: Layout, key: str, source: str) -> dict[str, np.ndarray]:
    if not Path(path).is_file():
        raise InputError(
            f"config.{key}={str(path)!r} is no file; get it from {source} and give its path, "
            "or train without the perceptual loss: loss.perceptual_weight=0"
        )
    tensors, _ = read_torch(Path(path))
    what = f"config.{key}={path} is not the file of {source}"
    views = layout.param_views(tensors, what)
    return {name: view.array(np.float32) for name, view in views.items()}
