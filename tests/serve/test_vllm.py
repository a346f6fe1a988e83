"""Folders for vLLM, and images drawn by it.

Those that need vLLM are slow and run where it is installed, see docs/vllm.md.
"""

import dataclasses
import math
import sys
from types import SimpleNamespace

import golden_weights
import numpy as np
import pytest
import tiny
from golden_weights import save_torch

import llamagen_jax as lg
from llamagen_jax.convert.__main__ import main as convert
from llamagen_jax.digests import read_json, write_json
from llamagen_jax.errors import InputError
from llamagen_jax.models.rope import rope_table
from llamagen_jax.sampling.settings import SamplingSettings
from llamagen_jax.serve.vllm import engine, folder
from llamagen_jax.serve.vllm.__main__ import main
from llamagen_jax.weights import export
from llamagen_jax.weights.torch_files import open_safetensors

# Heads of 12 channels, which no kernel has, that share keys and values.
CONFIG = dataclasses.replace(tiny.LLAMA_CONFIG, dim=48, vocab_size=64, grid_size=16)


def run(monkeypatch, command, *args):
    monkeypatch.setattr(sys, "argv", ["command", *map(str, args)])
    command()


def write(folder, monkeypatch, params, config=CONFIG, **metadata):
    """The folder for vLLM, which draws with guidance 3, of a generator."""
    export.write(folder / "export", lg.Llama(config), params, **metadata)
    target = folder / "for_vllm"
    run(monkeypatch, convert, folder / "export", target, "--vllm", "--guidance-scale", 3)
    return target


def test_classes_are_rows_of_the_vocabulary_after_the_codes(tmp_path, monkeypatch):
    expected = golden_weights.state_dict(CONFIG)
    params = golden_weights.params(CONFIG)
    written = write(tmp_path, monkeypatch, params, class_names=list("abcdefghij"))
    config, tensors = (
        read_json(written / "config.json"),
        open_safetensors(written / "model.safetensors"),
    )
    assert config["vocab_size"] == 64 + 10 + 1
    assert config["max_position_embeddings"] == 1 + 256
    assert config["guidance_scale"] == 3
    assert config["class_names"] == list("abcdefghij")
    classes = expected.pop("cls_embedding.embedding_table.weight")
    rows = [expected["tok_embeddings.weight"], classes]
    expected["tok_embeddings.weight"] = np.concatenate(rows)
    expected["freqs_cis"] = rope_table(
        (16, 16), 12, base=10000.0, condition_length=1, condition_rope="zero"
    )
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(tensors[name], tensor, err_msg=name)


def test_files_of_the_original_are_written_for_vllm(tmp_path, monkeypatch):
    source = save_torch(tmp_path / "a.pt", CONFIG)
    sizes = ["--grid-size", 16, "--n-heads", 4]
    run(monkeypatch, convert, source, tmp_path / "out", "--vllm", *sizes)
    written = open_safetensors(tmp_path / "out" / "model.safetensors")
    for name in ("output.weight", "layers.1.attention.wqkv.weight"):
        np.testing.assert_array_equal(written[name], golden_weights.state_dict(CONFIG)[name])


@pytest.mark.parametrize(
    ("config", "scale", "message"),
    [
        (tiny.TEXT_CONFIG, 1.0, "not from a text-conditional transformer"),
        (tiny.VQGAN_CONFIG, 1.0, "not from a tokenizer"),
        (dataclasses.replace(CONFIG, dim=1040), 1.0, "up to 256 channels, .* have 260"),
        (CONFIG, math.nan, "guidance_scale=nan must be finite"),
    ],
)
def test_what_vllm_cannot_draw_is_refused(tmp_path, config, scale, message):
    with pytest.raises(InputError, match=message):
        folder.write(tmp_path / "out", config, {}, guidance_scale=scale)
    assert not any(tmp_path.iterdir())


def test_guidance_is_no_part_of_other_files(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"^error: --guidance-scale is for --vllm"):
        run(monkeypatch, convert, tmp_path / "a.pt", tmp_path / "out", "--guidance-scale", 2)


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        ([3], {}, "draws with guidance_scale=3.0, not 1"),
        ([3], {"guidance_scale": 2.0}, "draws with guidance_scale=3.0, not 2.0"),
        ([3], {"guidance_scale": 3.0, "guidance_interval": 4}, "leave out guidance_interval"),
        ([3], {"guidance_scale": 3.0, "decoder": "jacobi"}, "and decoder"),
        ([3], {"guidance_scale": 3.0, "temperature": 2.5}, "temperatures up to 2, not 2.5"),
        ([11], {"guidance_scale": 3.0}, r"label 11 must be in \[0, 10\]"),
    ],
)
def test_nothing_is_left_out_silently(labels, settings, message):
    config = SimpleNamespace(guidance_scale=3.0, codebook_size=64, num_classes=10, grid=[4, 4])
    opened = SimpleNamespace(
        llm_engine=SimpleNamespace(model_config=SimpleNamespace(hf_config=config))
    )
    with pytest.raises(InputError, match=message):
        engine.draw_codes(opened, labels, SamplingSettings(0, **settings))


def test_other_folders_are_refused(tmp_path):
    write_json(tmp_path / "config.json", {"model": "Llama"})
    with pytest.raises(InputError, match=r"is no folder for vLLM: make one of it with"):
        engine.open_engine(tmp_path)
    with pytest.raises(InputError, match=r"config\.json is missing"):
        engine.open_engine(tmp_path / "missing")


@pytest.fixture
def vllm(monkeypatch):
    """vLLM in this process, so that it need not be imported twice more."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    return pytest.importorskip("vllm")


@pytest.mark.slow
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_greedy_codes_of_vllm_are_ours(vllm, tmp_path, monkeypatch, guidance_scale):
    model, params = tiny.llama(CONFIG)
    # Two at a time, so that images also begin beside others.
    opened = engine.open_engine(
        write(tmp_path, monkeypatch, params),
        batch_size=2,
        guidance_scale=guidance_scale,
        enforce_eager=True,
    )
    labels, settings = [3, 1, 9, 10], SamplingSettings(0, guidance_scale, greedy=True)
    codes = engine.draw_codes(opened, labels, settings)
    np.testing.assert_array_equal(codes, lg.generate(model, params, labels, settings=settings))


@pytest.mark.slow
def test_the_command_draws_the_same_images_again(vllm, tmp_path, monkeypatch):
    generator, tokenizer = tiny.exports(tmp_path)
    run(monkeypatch, convert, generator, tmp_path / "for_vllm", "--vllm")
    drawn = []
    for name, batch_size in (("a.npz", 3), ("b.npz", 2)):
        which = ["--generator", tmp_path / "for_vllm", "--tokenizer", tokenizer]
        how = ["--labels", 3, 7, "--count", 2, "--batch-size", batch_size, "--top-k", 9]
        run(monkeypatch, main, *which, *how, "--output", tmp_path / name)
        drawn.append(np.load(tmp_path / name))
    for name in ("arr_0", "labels", "codes"):
        np.testing.assert_array_equal(drawn[0][name], drawn[1][name])
    assert drawn[0]["labels"].tolist() == [3, 3, 7, 7]
    assert drawn[0]["codes"].shape == (4, 16)
    assert not np.array_equal(drawn[0]["codes"][0], drawn[0]["codes"][1])
