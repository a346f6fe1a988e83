"""Pixel formats, the evaluation resize against recorded values of the original, picture grids."""

import golden_weights
import numpy as np
import pytest
from PIL import Image

from llamagen_jax.errors import InputError
from llamagen_jax.images import captioned_grid, from_uint8, grid, resize, save_png, to_uint8


def test_resize_is_that_of_the_original():
    golden, _ = golden_weights.load("resize")
    resized = resize(golden["image"], 32)
    np.testing.assert_allclose(resized, golden["resized32"], atol=1e-6)
    np.testing.assert_array_equal(to_uint8(resized), golden["uint8"])


@pytest.mark.parametrize("size", [5, 8, 21])
def test_resize_keeps_constants_and_its_own_size(size):
    image = np.random.default_rng(0).uniform(-1, 1, (size, size, 3)).astype(np.float32)
    np.testing.assert_allclose(resize(image, size), image, atol=1e-6)
    constant = np.full((2, 8, 12, 3), 0.25, np.float32)
    np.testing.assert_allclose(resize(constant, size), np.full((2, size, size, 3), 0.25), atol=1e-6)


def test_to_uint8_rounds_and_clips_as_the_original():
    values = np.float32([-2, -1, -0.5, 0, 0.5, 1, 2])
    np.testing.assert_array_equal(to_uint8(values), [0, 0, 64, 128, 191, 255, 255])


def test_every_pixel_value_survives_the_way_there_and_back():
    values = np.arange(256, dtype=np.uint8)
    floats = from_uint8(values)
    assert (float(floats.min()), float(floats.max())) == (-1, 1)
    np.testing.assert_array_equal(to_uint8(floats), values)


def test_grid():
    images = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((4, 5, 3), np.uint8)
    picture = grid(images.reshape(2, 3, 4, 5, 3))
    assert picture.shape == (2 + 2 * 6, 2 + 3 * 7, 3)
    cells = [
        picture[2 + 6 * r : 6 + 6 * r, 2 + 7 * c : 7 + 7 * c] for r in (0, 1) for c in range(3)
    ]
    np.testing.assert_array_equal(cells, images)
    assert np.all(picture[:2] == 255)


def test_captions_are_under_the_images_and_do_not_touch_them():
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 140, 3), np.uint8)
    captions = ["a cat", "a small red circle left of a large blue square " * 3, "x" * 100]
    picture = captioned_grid(images, captions, columns=2)
    bare = captioned_grid(images, ["", "", ""], columns=2)
    assert picture.shape[1:] == bare.shape[1:] == (2 + 2 * 142, 3)
    np.testing.assert_array_equal(picture[2:34, 2:142], images[0])
    np.testing.assert_array_equal(picture[2:34, 144:284], images[1])
    second = next(
        y for y in range(36, len(picture)) if np.all(picture[y : y + 32, 2:142] == images[2])
    )
    ink = np.any(picture != 255, axis=-1)
    short, long, word = ink[34:second, :143], ink[34:second, 143:], ink[second + 32 :, :143]
    heights = [np.flatnonzero(part.any(axis=1)).max() for part in (short, long, word)]
    assert heights[1] > 3 * heights[0] and heights[2] > 3 * heights[0]
    assert not ink[:, [0, 1, 142, 143, -2, -1]].any()
    assert not ink[second:, 143:].any()


def test_save_png(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    save_png(tmp_path / "new" / "a.png", image, {"seed": 3, "prompt": "ünïcödé 图"})
    np.testing.assert_array_equal(Image.open(tmp_path / "new" / "a.png"), image)
    assert Image.open(tmp_path / "new" / "a.png").text == {"seed": "3", "prompt": "ünïcödé 图"}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"):
        save_png(tmp_path / "file" / "a.png", image)
