"""sample.py draws any size that the generator is trained for, and others if told to."""

import dataclasses

import numpy as np
import pytest
import tiny
from PIL import Image

from llamagen_jax.generation import ImageGenerator
from llamagen_jax.weights import export
from tests.sample.command import fails, run

GRIDS = ((4, 4), (3, 5), (5, 3))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Options that name a generator of three sizes, 32x32, 40x24 and 24x40, and its tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    model, params = tiny.llama(dataclasses.replace(tiny.LLAMA_CONFIG, grids=GRIDS))
    export.write(folder / "generator", model, tiny.with_sizes(params))
    export.write(folder / "tokenizer", *tiny.vqgan())
    return ["--generator", folder / "generator", "--tokenizer", folder / "tokenizer"]


def test_a_size_that_is_trained(models, tmp_path):
    options = [*models, "--labels", 3, 4, "--count", 2]
    run(*options, "--size", "40x24", "--output", tmp_path / "wide.png")
    with Image.open(tmp_path / "wide.png") as picture:
        assert picture.size == (2 * (40 + 2) + 2, 2 * (24 + 2) + 2)
        assert picture.text["size"] == "40x24"
    run(*options, "--size", "24x40", "--output", tmp_path / "tall.npz")
    with np.load(tmp_path / "tall.npz") as file:
        assert (file["arr_0"].shape, file["codes"].shape) == ((4, 40, 24, 3), (4, 15))


def test_a_size_that_is_not_trained(models, tmp_path, caplog):
    options = [*models, "--labels", 3, "--output", tmp_path / "x.png"]
    line = fails(*options, "--size", "48x32")
    assert line.endswith("is not trained for images of 48x32, but for 32x32, 40x24, 24x40")
    run(*options, "--size", "48x32", "--extrapolate")
    assert "is not trained for 48x32: its positions are scaled to those of 40x24" in caplog.text
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.size == (48 + 4, 32 + 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "40x20"], "--size: image size 40x20 must be a positive multiple of the token"),
        (["--size", "40"], "40 must be WIDTHxHEIGHT in pixels, such as 384x256"),
        (["--size", "40x24", "--resize", "32"], "--resize makes squares: leave it out for images"),
        (["--size", "40x24", "--dry-run"], "leave out --size"),
        (["--extrapolate"], "--extrapolate is for a --size"),
    ],
)
def test_wrong_sizes(models, tmp_path, options, message):
    assert message in fails(*models, "--output", tmp_path / "x.png", *options)


def test_every_trained_size_is_told(models):
    generator = ImageGenerator.open(str(models[1]), str(models[3]))
    assert list(generator.sizes.items()) == [
        ("32x32", (4, 4)),
        ("40x24", (3, 5)),
        ("24x40", (5, 3)),
    ]
    assert list(generator.for_size((24, 40)).sizes) == ["24x40", "32x32", "40x24"]
