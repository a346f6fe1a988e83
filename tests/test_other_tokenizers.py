"""Another tokenizer than LlamaGen's in its place, from images to samples, by the commands."""

import numpy as np
import tiny
from flax import serialization

from llamagen_jax import sample
from llamagen_jax.data.prepare import __main__ as prepare
from llamagen_jax.data.records import Manifest
from llamagen_jax.images import save_png
from llamagen_jax.models.maskgit_vqgan import MaskGITVQGANConfig
from llamagen_jax.training.config import from_mapping
from llamagen_jax.weights import maskgit
from llamagen_jax.weights.mapping import layout_of

CONFIG = MaskGITVQGANConfig(
    base_channels=32,
    channel_multipliers=(1, 1, 1),
    num_res_blocks=1,
    codebook_size=24,
    codebook_dim=6,
)


def write_checkpoint(path):
    """Random weights as MaskGIT's checkpoint has them."""
    rng, state = np.random.default_rng(0), {}
    for name, shape in layout_of(CONFIG, maskgit.VQGAN).tensor_shapes.items():
        *parents, leaf = name.split("/")
        place = state
        for parent in parents:
            place = place.setdefault(parent, {})
        scale = np.sqrt(np.prod(shape[:-1])) if len(shape) > 2 else 1
        place[leaf] = (rng.standard_normal(shape) / scale).astype(np.float32)
    path.write_bytes(serialization.msgpack_serialize(state))


def test_codes_training_and_samples_by_maskgits_vqgan(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "tokenizer_imagenet256_checkpoint")
    rng = np.random.default_rng(1)
    for number in range(8):
        image = rng.integers(0, 256, (20, 16, 3), np.uint8)
        save_png(tmp_path / f"images/{'ab'[number % 2]}/{number}.png", image)
    options = ["--source", "image_folder", "--location", "images", "--image-size", "16"]
    tokenizer = ["--tokenizer", "tokenizer_imagenet256_checkpoint"]
    prepare.main(["codes", *options, *tokenizer, "--batch-size", "8", "codes"])
    made_by = Manifest.read(tmp_path / "codes").tokenizer
    assert (made_by.name, made_by.codebook_size) == ("tokenizer_imagenet256_checkpoint", 24)

    config = tiny.generator_config(
        tmp_path / "codes",
        steps=2,
        tokenizer="tokenizer_imagenet256_checkpoint",
        model__vocab_size=24,
        model__num_classes=2,
    )
    tiny.train(from_mapping(config), tmp_path / "run")
    # The run has told which tokenizer it is of.
    sample.main(["--generator", "run", "--labels", "a", "1", "--count", "4", "--output", "own.npz"])
    with np.load("own.npz") as own:
        images = own["arr_0"]
    assert images.shape == (8, 16, 16, 3)
    assert len(np.unique(images.reshape(8, -1), axis=0)) == 8
