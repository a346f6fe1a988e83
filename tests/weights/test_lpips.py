"""Files of LPIPS weights, right and wrong; their values are in test_golden_gan.py."""

import numpy as np
import pytest

from llamagen_jax.errors import InputError
from llamagen_jax.models.lpips import STAGES
from llamagen_jax.weights import lpips as lpips_weights
from llamagen_jax.weights.torch_files import Tensor, write_safetensors

LAYERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)


def _vgg16() -> dict[str, np.ndarray]:
    """The names and shapes of torchvision's vgg16, its classifier shortened."""
    channels = [3, *(c for stage in STAGES for c in stage)]
    tensors = {"classifier.0.weight": np.zeros((2, 2), np.float32)}
    for index, layer in enumerate(LAYERS):
        shape = (channels[index + 1], channels[index], 3, 3)
        tensors[f"features.{layer}.weight"] = np.zeros(shape, np.float32)
        tensors[f"features.{layer}.bias"] = np.full(shape[0], layer, np.float32)
    return tensors


def _heads() -> dict[str, np.ndarray]:
    return {
        f"lin{i}.model.1.weight": np.full((1, stage[-1], 1, 1), i, np.float32)
        for i, stage in enumerate(STAGES)
    }


def _write(path, tensors):
    write_safetensors(path, {name: Tensor.of(t) for name, t in tensors.items()})
    return path


@pytest.mark.parametrize("legacy", [True, False])
def test_both_formats_of_torch_load(tmp_path, legacy):
    torch = pytest.importorskip("torch")
    paths = tmp_path / "vgg16.pth", tmp_path / "heads.pth"
    for path, tensors in zip(paths, (_vgg16(), _heads()), strict=True):
        state = {name: torch.from_numpy(t) for name, t in tensors.items()}
        torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    params = lpips_weights.load(*paths)
    assert len(params) == 13 + 5
    assert params["conv2_1"]["kernel"].shape == (3, 3, 64, 128)
    assert params["conv5_3"]["bias"][0] == 28
    np.testing.assert_array_equal(params["head3"], np.full(256, 2))


def test_pickled_code_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "vgg16.pth"
    torch.save({"features.0.weight": print}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"holds pickled code .*, which is never run"):
        lpips_weights.load(path, path)


def test_missing_file_tells_where_to_get_it(tmp_path):
    with pytest.raises(InputError, match=r"loss\.vgg16='' is no file; .*vgg16-397923af\.pth .*=0"):
        lpips_weights.load("", "")
    vgg16 = _write(tmp_path / "vgg16.safetensors", _vgg16())
    with pytest.raises(InputError, match=r"loss\.lpips_heads='x' is no file; .*PerceptualSim"):
        lpips_weights.load(vgg16, "x")


def test_every_tensor_that_does_not_fit_is_named(tmp_path):
    vgg16 = _vgg16()
    del vgg16["features.5.bias"]
    vgg16["features.28.weight"] = np.zeros((1, 2), np.float32)
    path = _write(tmp_path / "vgg16.safetensors", vgg16)
    message = r"missing: features\.5\.bias; wrong shape: features\.28\.weight \[1, 2\] instead of"
    with pytest.raises(InputError, match=message):
        lpips_weights.load(path, path)
