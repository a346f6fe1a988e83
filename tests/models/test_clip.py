"""CLIP computes what `transformers` does (tests/golden), and sees the same pixels."""

import dataclasses

import jax
import numpy as np
import pytest
from golden_weights import load, tensor

from llamagen_jax.models.clip import CLIP, CLIPConfig, TowerConfig, preprocess
from llamagen_jax.weights import clip as clip_weights

TOWER = TowerConfig(dim=32, ffn_dim=64, n_layers=2, n_heads=4)
TINY = CLIPConfig(
    text=TOWER,
    vision=TOWER,
    vocab_size=100,
    context_length=24,
    image_size=32,
    patch_size=8,
    embedding_dim=16,
)


def test_embeddings():
    golden, entries = load("clip_tiny")
    tensors = {name: tensor(name, shape) for name, shape in entries["inventory"].items()}
    variables = {"params": clip_weights.from_tensors(tensors, TINY)}
    inputs = golden["input_ids"], golden["pixel_values"]
    texts, images = jax.jit(CLIP(TINY).apply)(variables, *inputs)
    np.testing.assert_allclose(texts, golden["text_embeds"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(images, golden["image_embeds"], rtol=0, atol=1e-4)
    # Nothing after the end token is read, so that any number of them may follow.
    short = CLIP(TINY).apply(variables, inputs[0][1:2, :6], method="encode_texts")
    np.testing.assert_allclose(short, golden["text_embeds"][1:2], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "shape", [(48, 48), (31, 64), (64, 31), (35, 32), (20, 50)], ids=lambda s: f"{s[0]}x{s[1]}"
)
def test_pixels_are_those_of_transformers(shape):
    processing = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    theirs = processing.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )(image, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(preprocess(image, 32), theirs.transpose(1, 2, 0), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "change"),
    [
        (TOWER, {"activation": "relu"}),
        (TOWER, {"n_heads": 5}),
        (TOWER, {"ffn_dim": 0}),
        (TOWER, {"norm_eps": float("nan")}),
        (TINY, {"patch_size": 7}),
        (TINY, {"vocab_size": 0}),
    ],
)
def test_impossible_configs_name_the_field(config, change):
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(config, **change)
