"""Training on images and captions is training on the codes and features that are made of them."""

import dataclasses
import io
import json
import shutil
import tarfile

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

from llamagen_jax.data.prepare import __main__ as prepare
from llamagen_jax.data.records import write_dataset
from llamagen_jax.errors import InputError
from llamagen_jax.models.t5 import T5Config
from llamagen_jax.models.vqgan import VQGANConfig
from llamagen_jax.training.config import from_mapping
from llamagen_jax.weights import export

pytest.importorskip("sentencepiece")
pytest.importorskip("ftfy")

COUNT = 24
VQGAN = VQGANConfig(**tiny.VQGAN_SIZES | {"channel_multipliers": (1, 1)})
SIZE = tiny.LLAMA_SIZES["grid_size"] * VQGAN.downsampling
LENGTH = 8
TEXT = {
    "model__condition": "text",
    "model__condition_length": LENGTH,
    "model__caption_dim": 16,
    "data__image_size": SIZE,
    "data__caption_weights": (("long", 0.7), ("short", 0.3)),
}


def picture(i):
    pixels = np.random.default_rng(i).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer, a text encoder, tar shards, and the codes and features made of them."""
    folder = tmp_path_factory.mktemp("online")
    export.write(folder / "tokenizer", *tiny.vqgan(VQGAN))
    tiny.write_t5(folder / "t5", tiny.write_spiece(folder))
    (folder / "shards").mkdir()
    with tarfile.open(folder / "shards" / "0.tar", "w") as tar:
        for i in range(COUNT):
            captions = {"long": f"A red circle left of {i} squares.", "short": f"{i} squares"}
            for name, data in ((f"{i}.png", picture(i)), (f"{i}.json", json.dumps(captions))):
                info = tarfile.TarInfo(name)
                data = data if isinstance(data, bytes) else data.encode()
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    write_dataset(
        folder / "labelled",
        ({"image": picture(i), "label": i % 10} for i in range(COUNT)),
        class_names=tuple("0123456789"),
    )
    for source, location in (("tar_shards", "shards"), ("array_record", "labelled")):
        options = f"--source {source} --location {folder / location} --image-size {SIZE}"
        tokenizer = f"--tokenizer {folder / 'tokenizer'}"
        run(f"codes {folder / location}_codes {options} {tokenizer} --batch-size 8")
    options = f"--text-encoder {folder / 't5'} --length {LENGTH} --batch-size 8"
    run(f"text {folder / 'shards_codes'} {folder / 'shards_features'} {options}")
    return folder


def run(command):
    prepare.main(command.split())


def config(folder, extracted, condition, **changes):
    """A short run on one and the same data: images, or the codes and features made of them."""
    if condition == "class":
        data, fields = "labelled_codes" if extracted else "labelled", {"data__image_size": SIZE}
    else:
        data, fields = "shards_features" if extracted else "shards", TEXT
    source = "array_record" if extracted or condition == "class" else "tar_shards"
    encoders = {"tokenizer": str(folder / "tokenizer"), "text_encoder": str(folder / "t5")}
    fields = fields | encoders | {"data__source": source} | changes
    return from_mapping(tiny.generator_config(folder / data, **fields))


def losses(config, workdir):
    tiny.train(config, workdir)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    return {
        name: [line[name] for line in lines if name in line]
        for name in ("train/loss", "train/grad_norm", "eval/loss")
    }


@pytest.mark.parametrize(
    ("condition", "mesh"),
    [("class", (8, 1, 1)), pytest.param("text", (2, 2, 2), marks=pytest.mark.slow)],
)
def test_losses_are_those_of_extracted_codes(folder, tmp_path, condition, mesh):
    data, fsdp, tensor = mesh
    changes = {"mesh__data": data, "mesh__fsdp": fsdp, "mesh__tensor": tensor}
    changes |= {"log_every": 1, "eval_every": 4, "optimizer__warmup_steps": 0}
    expected, online = (
        losses(config(folder, extracted, condition, **changes), tmp_path / str(extracted))
        for extracted in (True, False)
    )
    assert len(set(expected["train/loss"])) == 4
    for name, values in expected.items():
        # Features are bfloat16, which a split encoder rounds differently.
        np.testing.assert_allclose(online[name], values, rtol=1e-3, err_msg=name)


@pytest.mark.slow
def test_a_run_on_images_goes_on_exactly_and_with_its_encoders(folder, tmp_path):
    on_images = config(folder, False, "text", sample_every=4)
    whole = tiny.train(on_images, tmp_path / "whole")
    assert (tmp_path / "whole" / "samples" / "step_0000004.png").exists()
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "4")
    resumed = tiny.train(on_images, tmp_path / "cut")
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    elsewhere = str(shutil.copytree(folder / "tokenizer", tmp_path / "elsewhere"))
    with pytest.raises(InputError, match=r"run with tokenizer='.*', not '.*/elsewhere'"):
        tiny.train(dataclasses.replace(on_images, tokenizer=elsewhere), tmp_path / "cut")


def test_encoders_that_do_not_fit_are_named(folder, tmp_path):
    wide = tmp_path / "wide"
    tiny.write_t5(wide, folder / "spiece.model", T5Config(**vars(tiny.T5_CONFIG) | {"dim": 24}))
    for changes, message in (
        ({"text_encoder": ""}, r"needs config\.text_encoder"),
        ({"data__caption_weights": ()}, r"needs .*data\.caption_weights"),
        ({"text_encoder": "nowhere"}, r"nowhere is no folder"),
        ({"text_encoder": str(wide)}, r"features of width 24 but config\.model\.caption_dim=16"),
        ({"data__image_size": 12}, r"image_size=12 does not give the grid_size=4"),
        ({"model__vocab_size": 16}, r"has 32 codes but config\.model\.vocab_size=16; raise it"),
    ):
        with pytest.raises(InputError, match=message):
            tiny.train(config(folder, False, "text", **changes), tmp_path / "run")
    with pytest.raises(InputError, match=r"holds images: name the config\.tokenizer"):
        tiny.train(config(folder, False, "text", tokenizer=""), tmp_path / "run")
    assert not (tmp_path / "run").exists()
