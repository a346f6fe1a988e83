"""Weights of LPIPS from the files that PyTorch users have of VGG16 and of the LPIPS heads."""

from pathlib import Path

import numpy as np

from llamagen_jax import convert, zoo
from llamagen_jax.errors import InputError
from llamagen_jax.models.lpips import STAGES

VGG16_SOURCE = "https://download.pytorch.org/models/vgg16-397923af.pth"
HEADS_SOURCE = (
    "https://github.com/richzhang/PerceptualSimilarity/blob/master/lpips/weights/v0.1/vgg.pth"
)


def load(vgg16: str | Path, lpips_heads: str | Path) -> dict:
    """Parameters of `models.lpips.LPIPS`, float32 numpy arrays.

    Args:
      vgg16: state dict of torchvision's vgg16 ("features.0.weight", ...; its classifier is left
        out), a .pth in either of PyTorch's formats or a .safetensors.
      lpips_heads: state dict of the linear heads ("lin0.model.1.weight", ...), likewise.

    Raises:
      InputError: a file is missing (it tells where to get it), damaged, or of another network.
    """
    convolutions = _read(vgg16, _vgg16_shapes(), "loss.vgg16", VGG16_SOURCE)
    heads = _read(lpips_heads, _head_shapes(), "loss.lpips_heads", HEADS_SOURCE)
    params = {}
    for layer, name in _vgg16_layers().items():
        kernel = convolutions[f"features.{layer}.weight"].transpose(2, 3, 1, 0)
        params[name] = {"kernel": kernel, "bias": convolutions[f"features.{layer}.bias"]}
    for stage in range(len(STAGES)):
        params[f"head{stage + 1}"] = heads[f"lin{stage}.model.1.weight"].reshape(-1)
    return params


def _vgg16_layers() -> dict[int, str]:
    """Index among torchvision's `features` -> name of the convolution here."""
    names, layer = {}, 0
    for stage, convolutions in enumerate(STAGES, start=1):
        for index in range(1, len(convolutions) + 1):
            names[layer] = f"conv{stage}_{index}"
            layer += 2  # a relu follows each convolution
        layer += 1  # and a pooling each stage
    return names


def _vgg16_shapes() -> dict[str, tuple[int, ...]]:
    outputs = [channels for convolutions in STAGES for channels in convolutions]
    inputs = [3, *outputs]
    shapes = {}
    for layer, before, after in zip(_vgg16_layers(), inputs, outputs, strict=False):
        shapes[f"features.{layer}.weight"] = (after, before, 3, 3)
        shapes[f"features.{layer}.bias"] = (after,)
    return shapes


def _head_shapes() -> dict[str, tuple[int, ...]]:
    return {f"lin{i}.model.1.weight": (1, stage[-1], 1, 1) for i, stage in enumerate(STAGES)}


def _read(path: str | Path, shapes: dict[str, tuple], key: str, source: str) -> dict:
    """The tensors of `shapes` in a file; others in it are left out."""
    if not Path(path).is_file():
        raise InputError(
            f"config.{key}={str(path)!r} is no file; get it from {source} and give its path, "
            "or train without the perceptual loss: loss.perceptual_weight=0"
        )
    tensors, _ = convert.read_torch(Path(path))
    found = {name: tensors[name].shape for name in shapes if name in tensors}
    zoo.check_shapes(found, shapes, f"config.{key}={path} is not the file of {source}")
    return {name: np.asarray(tensors[name], np.float32) for name in shapes}
