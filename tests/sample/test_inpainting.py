"""The command that samples images, with an image of which it draws a part."""

import numpy as np
import pytest
from PIL import Image

from llamagen_jax import sample
from tests.sample.command import fails, read, run


@pytest.fixture
def picture_and_mask(tmp_path):
    """Two files, the mask white in a square of it, and the options that name them."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    mask = np.zeros((32, 32), np.uint8)
    mask[9:20, 10:30] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return pixels, mask > 0, ["--image", tmp_path / "a.png", "--mask", tmp_path / "mask.png"]


def test_a_part_of_an_image(models, picture_and_mask, tmp_path):
    pixels, mask, options = picture_and_mask
    command = [*models, "--labels", "3", "1", "--count", "2"]
    for name, more in (("a.npz", []), ("jacobi.npz", ["--decoder", "jacobi"]), ("folder", [])):
        run(*command, *options, *more, "--output", tmp_path / name)
    found = read(tmp_path / "a.npz")
    images, codes = found["arr_0"], found["codes"].reshape(4, 4, 4)
    np.testing.assert_array_equal(images[:, ~mask], np.tile(pixels[~mask], (4, 1, 1)))
    kept = np.ones((4, 4), bool)
    kept[1:3, 1:] = False
    assert np.all(codes[:, kept] == codes[:1, kept])
    assert len(np.unique(codes[:, ~kept], axis=0)) == 4
    np.testing.assert_array_equal(read(tmp_path / "jacobi.npz")["codes"], found["codes"])
    png = Image.open(tmp_path / "folder" / "000002_class_1.png")
    np.testing.assert_array_equal(png, images[2])
    assert (png.text["image"], png.text["mask"]) == ("a.png", "mask.png")


def test_a_stopped_edit_goes_on_with_its_image_alone(models, picture_and_mask, monkeypatch):
    pixels, _, options = picture_and_mask
    monkeypatch.setattr(sample, "write_npz", lambda *args, **subjects: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(*models, *options, "--output", "x.npz")
    Image.fromarray(255 - pixels).save("a.png")
    line = fails(*models, *options, "--output", "x.npz")
    assert "x.npz.parts holds images of another command, with image and mask" in line


def test_images_and_masks_that_cannot_be_used(models, picture_and_mask, tmp_path):
    _, mask, options = picture_and_mask
    image = options[:2]
    assert "--mask is of an image: give --image" in fails(*models, *options[2:])
    assert "--resize does not go with --image" in fails(*models, *options, "--resize", "64")
    line = fails(*models, "--image", "none.png")
    assert line == "error: --image none.png cannot be read: No such file or directory"
    assert "a.png: nothing is transparent: give a mask" in fails(*models, *image)
    Image.fromarray(mask[:16]).save("half.png")
    line = fails(*models, *image, "--mask", "half.png")
    assert line == "error: --mask half.png: 32x16 px are not the image's 32x32 px"
