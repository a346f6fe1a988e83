"""Weights of the original to parameters and back, and the command that converts files."""

import dataclasses
import os
import pickle
import subprocess
import sys
import tracemalloc
import zipfile

import golden_weights
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import save_torch

import llamagen_jax as lg
from llamagen_jax import convert
from llamagen_jax.convert.__main__ import main
from llamagen_jax.weights import export
from llamagen_jax.weights.mapping import layout_of
from llamagen_jax.weights.shapes import param_shapes
from llamagen_jax.weights.torch_files import Tensor, read_torch, write_safetensors

CLASS = lg.LlamaConfig(dim=16, n_layers=2, n_heads=2, vocab_size=32, num_classes=3)
TEXT = dataclasses.replace(CLASS, condition="text", condition_length=5, caption_dim=12)
GROUPED = dataclasses.replace(CLASS, n_heads=4, n_kv_heads=2)
TOKENIZER = lg.VQGANConfig(
    base_channels=32, channel_multipliers=(1, 2), z_channels=8, codebook_size=16, codebook_dim=4
)


def write_file(path, tensors):
    write_safetensors(path, {name: Tensor.of(tensor) for name, tensor in tensors.items()})
    return path


def run(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["convert", *map(str, args)])
    main()


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, strict=True, err_msg=name)


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        (CLASS, np.float32),
        (CLASS, jnp.bfloat16),
        (TEXT, np.float32),
        (GROUPED, np.float16),
        (TOKENIZER, np.float32),
    ],
)
def test_the_command_converts_there_and_back(tmp_path, monkeypatch, capsys, config, dtype):
    source = save_torch(tmp_path / "a.pt", config, lambda state: {"model": state}, dtype)
    heads = [] if config == TOKENIZER else ["--grid-size", 16, "--n-heads", config.n_heads]
    run(monkeypatch, source, tmp_path / "export", *heads)
    assert "taking the weights under 'model'" in capsys.readouterr().out
    tensors = {n: t.astype(dtype) for n, t in golden_weights.state_dict(config).items()}
    model, params = lg.load(tmp_path / "export")
    assert param_shapes(model.config) == param_shapes(config)
    assert_same(convert.to_torch(params, config), tensors)
    if config == TOKENIZER:
        tensors["quantize.codebook_used"] = np.zeros(65536, np.float32)
    for name in ("b.pt", "b.safetensors"):
        run(monkeypatch, tmp_path / "export", tmp_path / name)
        assert_same(read_torch(tmp_path / name)[0], tensors)
    run(monkeypatch, tmp_path / "b.safetensors", tmp_path / "c.pth", *heads)
    assert_same(read_torch(tmp_path / "c.pth")[0], tensors)


def test_tensors_are_streamed(tmp_path, monkeypatch):
    config = dataclasses.replace(CLASS, dim=256, n_layers=8, num_classes=1000, vocab_size=4096)
    zeros = {n: np.zeros(shape, np.float32) for n, shape in layout_of(config).tensor_shapes.items()}
    path = write_file(tmp_path / "a.safetensors", zeros)
    del zeros
    for source, target in ((path, "export"), (tmp_path / "export", "b.safetensors")):
        tracemalloc.start()
        run(monkeypatch, source, tmp_path / target, "--grid-size", 16, "--n-heads", 4)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 0.3 * path.stat().st_size


class Code:
    def __reduce__(self):
        return os.mkdir, ("code-was-run",)


def bad_files():
    def truncated(path):
        save_torch(path, CLASS)
        path.write_bytes(path.read_bytes()[:5000])

    def code(path):
        save_torch(path, CLASS, lambda state: {"model": state, "more": Code()})

    def archive(path):
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a", "b")

    yield truncated, "is truncated or no PyTorch checkpoint"
    yield lambda path: path.write_text("<html>"), "is truncated or no PyTorch checkpoint"
    yield (
        lambda path: path.write_bytes(pickle.dumps(Code())),
        "is truncated or no PyTorch checkpoint",
    )
    yield code, r"holds pickled code \(posix\.mkdir\), which is never run"
    yield archive, "is a damaged PyTorch checkpoint"
    yield (
        lambda path: save_torch(path, CLASS, lambda s: [*s]),
        "holds a list; expected a state",
    )
    yield (
        lambda path: save_torch(path, CLASS, lambda s: s | {"lr": 1}),
        "holds lr, not tensors",
    )
    yield lambda path: None, "does not exist"


@pytest.mark.parametrize(("make", "message"), list(bad_files()))
def test_bad_files_are_one_clear_line(tmp_path, monkeypatch, make, message):
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "a.pt"
    make(source)
    before = set(tmp_path.iterdir())
    with pytest.raises(SystemExit, match=rf"^error: .*a\.pt {message}") as error:
        run(monkeypatch, source, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert set(tmp_path.iterdir()) == before


def test_files_of_the_original_cannot_tell_groups(tmp_path, monkeypatch):
    model = lg.VQGAN(dataclasses.replace(TOKENIZER, norm_groups=8))
    params = convert.from_torch(golden_weights.state_dict(TOKENIZER), TOKENIZER)
    export.write(tmp_path / "groups", model, params)
    with pytest.raises(SystemExit, match="groups has norm_groups=8, which LlamaGen's files cannot"):
        run(monkeypatch, tmp_path / "groups", tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


def test_an_export_keeps_what_a_user_of_the_model_needs(tmp_path, monkeypatch):
    """The names of the classes, and whom to credit; not the plan of the training."""
    params = convert.from_torch(golden_weights.state_dict(CLASS), CLASS)
    needed = {"class_names": ["a", "b", "c"], "credit": "Drawn by others."}
    export.write(tmp_path / "run", lg.Llama(CLASS), params, **needed, batch_size=8)
    run(monkeypatch, tmp_path / "run", tmp_path / "export")
    assert export.read(tmp_path / "export")[2] == needed
    assert needed["credit"] in (tmp_path / "export/README.md").read_text()


def test_an_existing_target_is_kept(tmp_path, monkeypatch):
    source = write_file(tmp_path / "a.safetensors", golden_weights.state_dict(TOKENIZER))
    for name in ("folder", "b.safetensors"):
        run(monkeypatch, source, tmp_path / name)
        with pytest.raises(SystemExit, match=f"{name} exists"):
            run(monkeypatch, source, tmp_path / name)


def test_the_command_line(tmp_path):
    source = write_file(tmp_path / "c2i_L_384.safetensors", golden_weights.state_dict(TOKENIZER))
    command = [sys.executable, "-m", "llamagen_jax.convert"]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert "--grid-size" in shown.stdout
    assert shown.stderr == ""
    failed = subprocess.run([*command, source, tmp_path / "out"], capture_output=True, text=True)
    assert failed.returncode == 1
    assert failed.stderr == (
        f"error: {source} is a tokenizer; expected c2i_L_384, a class-conditional transformer\n"
    )
