"""Which files the command that samples images takes as its models."""

import dataclasses
import os

import golden_weights
import numpy as np
import pytest
import tiny

from llamagen_jax import zoo
from tests.sample.command import fails, read, run, write_export

# Configurations that the tensors tell in full.
CLASS = dataclasses.replace(tiny.LLAMA_CONFIG, num_classes=1000, multiple_of=96)


def write_original(path, config, **extra):
    """A file of the original's layout, by PyTorch or as safetensors."""
    tensors = golden_weights.state_dict(config) | extra
    if path.suffix == ".safetensors":
        tiny.write_tensors(path, tensors)
    else:
        torch = pytest.importorskip("torch")
        torch.save({"model": {n: torch.from_numpy(t) for n, t in tensors.items()}}, path)
    return path


@pytest.fixture
def published(monkeypatch):
    """Gives published names to tiny models, so that their files are small."""
    monkeypatch.setitem(zoo.MODELS, "GPT-L", CLASS)
    record = dataclasses.replace(zoo.PUBLISHED["c2i_L_384"], config=CLASS)
    for name, stand_in in {
        "c2i_L_384": record,
        "c2i_L_32": dataclasses.replace(record, resolution=32),
        "vq_ds16_c2i": dataclasses.replace(record, config=tiny.VQGAN_CONFIG, resolution=None),
    }.items():
        monkeypatch.setitem(zoo.PUBLISHED, name, stand_in)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_of_the_original_and_exports_give_the_same(published, tmp_path, suffix):
    generator = write_original(tmp_path / f"c2i_L_32{suffix}", CLASS)
    tokenizer = write_original(tmp_path / f"vq_ds16_c2i{suffix}", tiny.VQGAN_CONFIG)
    write_export(tmp_path / "generator", CLASS)
    write_export(tmp_path / "tokenizer", tiny.VQGAN_CONFIG)
    for name, labels, weights in (
        ("a", ["golden retriever", "OTTER", "red panda", "974"], (generator, tokenizer)),
        ("b", ["207", "360", "387", "974"], (tmp_path / "generator", tmp_path / "tokenizer")),
    ):
        options = ["--generator", weights[0], "--tokenizer", weights[1], "--labels", *labels]
        options += ["--guidance-scale", "4", "--top-k", "20"]
        run(*options, "--output", tmp_path / f"{name}.npz")
    a, b = read(tmp_path / "a.npz"), read(tmp_path / "b.npz")
    np.testing.assert_array_equal(a["labels"], [207, 360, 387, 974])
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])


def test_class_names(published, models, tmp_path):
    options = [*models, "--output", tmp_path / "a.npz"]
    run(*options, "--labels", "Digit 4", "2")
    np.testing.assert_array_equal(read(tmp_path / "a.npz")["labels"], [4, 2])
    assert "such as 3 'digit 3'" in fails(*options, "--labels", "dgit 3")
    assert "classes are 0 to 9" in fails(*options, "--labels", "10")
    assert "'digit' is ambiguous" in fails(*options, "--labels", "digit")
    path = write_original(tmp_path / "c2i_L_32.safetensors", CLASS)
    line = fails(*models, "--generator", path, "--labels", "golden retreiver")
    assert "such as 207 'golden retriever'" in line


def test_models_of_the_wrong_kind(published, models, tmp_path):
    generator = write_original(tmp_path / "c2i_L_32.safetensors", CLASS)
    tokenizer = write_original(tmp_path / "vq_ds16_c2i.safetensors", tiny.VQGAN_CONFIG)
    assert fails(*models, "--generator", tokenizer).endswith(
        "vq_ds16_c2i.safetensors is a tokenizer; expected a transformer"
    )
    assert fails(*models, "--tokenizer", generator).endswith(
        "c2i_L_32.safetensors is a class-conditional transformer; expected a tokenizer"
    )
    assert "give --tokenizer" in fails("--generator", generator)


def test_models_that_do_not_fit(published, models, tmp_path):
    table = np.zeros((1 + 5 * 5, 4, 2), np.float32)
    path = write_original(tmp_path / "c2i_L_384.safetensors", CLASS, freqs_cis=table)
    assert "has codes on a 5x5 grid; expected 4x4" in fails(*models, "--generator", path)
    write_original(path, CLASS)
    assert "makes images of 32 px, unlike its name" in fails(*models, "--generator", path)
    other = write_export(
        tmp_path / "other", dataclasses.replace(tiny.VQGAN_CONFIG, codebook_size=64)
    )
    assert "has 64 codes but the generator 32" in fails(*models, "--tokenizer", other)


class Code:
    def __reduce__(self):
        return os.mkdir, ("code-was-run",)


def test_files_that_are_no_checkpoints(published, models, tmp_path):
    torch = pytest.importorskip("torch")
    path = write_original(tmp_path / "c2i_L_32.pt", CLASS)
    path.write_bytes(path.read_bytes()[:5000])
    assert "c2i_L_32.pt is truncated or no" in fails(*models, "--generator", path)
    path.write_text("<html>")
    assert "c2i_L_32.pt is truncated or no" in fails(*models, "--generator", path)
    torch.save({"model": Code()}, path)
    assert "pickled code (posix.mkdir)" in fails(*models, "--generator", path)
    assert not (tmp_path / "code-was-run").exists()
    line = fails(*models, "--generator", "c2i_L_348.pt")
    assert "neither a file, a folder nor a published name" in line
