"""The command that samples images, with control images."""

import dataclasses

import numpy as np
import pytest
import tiny
from PIL import Image

from llamagen_jax import control_maps
from llamagen_jax.sampling.generate import generate
from llamagen_jax.weights import export
from tests.sample.command import fails, run

# Not square: 16x32 pixels.
CONFIG = dataclasses.replace(
    tiny.LLAMA_CONFIG, grid_size=(2, 4), **tiny.CONTROL_SIZES | {"control_patch": 8}
)
SETTINGS = {"seed": 0, "guidance_scale": 2.0}


def codes_of(path):
    with np.load(path) as file:
        return file["codes"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tiny.exports(folder)
    export.write(folder / "controlled", *tiny.llama(CONFIG))
    rng = np.random.default_rng(0)
    (folder / "maps").mkdir()
    for name in ("a", "b"):
        pixels = rng.integers(0, 256, (16, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "maps" / f"{name}.png")
    return folder


@pytest.fixture
def options(folder):
    options = ["--generator", folder / "controlled", "--tokenizer", folder / "tokenizer"]
    return [*options, "--labels", "3", "7", "--guidance-scale", "2"]


def drawn(images, **settings):
    control = np.stack(images).repeat(2, axis=0)
    labels = [3, 3, 7, 7]
    return generate(*tiny.llama(CONFIG), labels, control=control, **SETTINGS, **settings)


def test_control_is_of_its_label(options, folder, tmp_path):
    maps = [np.asarray(Image.open(folder / "maps" / f"{name}.png")) for name in "ab"]
    options = [*options, "--count", "2"]
    run(*options, "--control", folder / "maps", "--output", tmp_path / "each.npz")
    np.testing.assert_array_equal(codes_of(tmp_path / "each.npz"), drawn(maps))
    one = ["--control", folder / "maps" / "a.png", "--control-scale", "0.5", "--keep-control"]
    run(*options, *one, "--output", tmp_path / "one")
    run(*options, *one, "--output", tmp_path / "one.npz")
    expected = drawn([maps[0], maps[0]], control_scale=0.5, keep_control=True)
    np.testing.assert_array_equal(codes_of(tmp_path / "one.npz"), expected)
    with Image.open(tmp_path / "one" / "000000_class_3.png") as picture:
        assert picture.size == (32, 16)
        told = [picture.text[name] for name in ("control", "control_scale", "keep_control")]
        assert told == ["map", "0.5", "True"]


def test_pictures_become_maps_of_the_right_size(options, tmp_path, caplog):
    """Half transparent, twice as large: white lies behind it, and it is resized with a note."""
    pixels = np.zeros((32, 64, 4), np.uint8)
    pixels[8:24, 16:40, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    control = ["--control", tmp_path / "photo.png", "--control-kind", "soft-edges"]
    run(*options, *control, "--output", tmp_path / "a.npz")
    assert "photo.png' to 32x16 px" in caplog.text
    white = Image.fromarray(np.where(pixels[..., 3:] > 0, 0, 255).astype(np.uint8).repeat(3, -1))
    small = np.asarray(white.resize((32, 16), Image.Resampling.BICUBIC))
    edges = control_maps.detect("soft-edges", small)[..., None].repeat(3, -1)
    expected = generate(*tiny.llama(CONFIG), [3, 7], control=np.stack([edges, edges]), **SETTINGS)
    np.testing.assert_array_equal(codes_of(tmp_path / "a.npz"), expected)


def test_surroundings_of_a_hole_are_shown(options, folder, tmp_path):
    rng = np.random.default_rng(2)
    pixels, mask = rng.integers(0, 256, (16, 32, 3), np.uint8), np.zeros((16, 32), bool)
    mask[8:, 5:20] = True
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    edit = ["--image", tmp_path / "photo.png", "--mask", tmp_path / "mask.png"]
    around = ["--control-kind", "surroundings"]
    run(*options, *edit, *around, "--control-scale", "2", "--output", tmp_path / "a.npz")
    run(*options, *edit, "--output", tmp_path / "b.npz")
    codes, without = codes_of(tmp_path / "a.npz"), codes_of(tmp_path / "b.npz")
    # All of the first row is kept, and of the second what lies right of the hole.
    drawn = np.array([False] * 4 + [True] * 3 + [False])
    np.testing.assert_array_equal(codes[:, ~drawn], without[:, ~drawn])
    control = np.tile(control_maps.hide(pixels, mask), (2, 1, 1, 1))
    known = np.where(drawn, -1, codes)
    settings = {"known": known, "control": control, "control_scale": 2.0}
    expected = generate(*tiny.llama(CONFIG), [3, 7], **SETTINGS, **settings)
    np.testing.assert_array_equal(codes, expected)
    assert (codes != without).any()
    assert "is for an --image" in fails(*options, *around)
    both = [*edit, *around, "--control", folder / "maps" / "a.png"]
    assert "give one, and no --control" in fails(*options, *both)


def test_bad_controls_are_told_in_one_line(options, folder, tmp_path, caplog):
    Image.new("L", (32, 32)).save(tmp_path / "square.png")
    line = fails(*options, "--control", tmp_path / "square.png")
    assert "of 32x32 px, another shape than the images of 32x16 px" in line
    (tmp_path / "text.png").write_text("no image")
    assert "is no image, or damaged" in fails(*options, "--control", tmp_path / "text.png")
    assert "No such file" in fails(*options, "--control", tmp_path / "absent.png")
    three = ["--control", *[folder / "maps" / "a.png"] * 3]
    assert "names 3 images for 2 labels or prompts" in fails(*options, *three)
    assert "--control-scale is for a --control" in fails(*options, "--control-scale", "2")
    assert "--keep-control is for a --control" in fails(*options, "--keep-control")
    (tmp_path / "empty").mkdir()
    assert "has no images" in fails(*options, "--control", tmp_path / "empty")
    without = ["--generator", folder / "generator", "--tokenizer", folder / "tokenizer"]
    line = fails(*without, "--control", folder / "maps" / "a.png")
    assert "trained without control images" in line
    Image.new("1", (32, 16), 1).save(tmp_path / "white.png")
    run(*options, "--control", tmp_path / "white.png", "--output", tmp_path / "white_out.png")
    assert "white.png' is of one colour: it shows nothing" in caplog.text


def test_control_has_the_shape_of_the_size(folder, tmp_path):
    config = dataclasses.replace(CONFIG, grids=((2, 4), (4, 2)))
    model, params = tiny.llama(config)
    params = tiny.with_sizes(params)
    export.write(tmp_path / "sized", model, params)
    tall = np.random.default_rng(1).integers(0, 256, (32, 16, 3), np.uint8)
    Image.fromarray(tall).save(tmp_path / "tall.png")
    options = ["--generator", tmp_path / "sized", "--tokenizer", folder / "tokenizer"]
    options += ["--labels", "3", "--guidance-scale", "2", "--size", "16x32"]
    run(*options, "--control", tmp_path / "tall.png", "--output", tmp_path / "a.npz")
    expected = generate(model.for_grid((4, 2)), params, [3], control=tall[None], **SETTINGS)
    np.testing.assert_array_equal(codes_of(tmp_path / "a.npz"), expected)
    line = fails(*options, "--control", folder / "maps" / "a.png")
    assert "of 32x16 px, another shape than the images of 16x32 px" in line
