"""Images that are drawn in part, from files and by an image generator."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image
from test_generation import FLAT

from llamagen_jax.errors import InputError
from llamagen_jax.generation import ImageGenerator
from llamagen_jax.image_tokenizer import ModelTokenizer
from llamagen_jax.inpainting import Edit, read_edit
from llamagen_jax.sampling.settings import SamplingSettings

# Of `FLAT`, whose codes are grey patches of 2x2 pixels.
CODES = np.random.default_rng(0).integers(0, 32, (4, 4))
PICTURE = np.asarray(127.5 * FLAT.decode(jnp.asarray(CODES[None]))[0] + 127.5).astype(np.uint8)
HOLE = np.zeros((8, 8), bool)
HOLE[3:6, 2:4] = True


def file(pixels, mode=None, format="PNG", **options) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, format, **options)
    return buffer.getvalue()


def transparent(mask: np.ndarray, picture: np.ndarray = PICTURE) -> Image.Image:
    alpha = np.where(mask, 0, 255).astype(np.uint8)
    return Image.fromarray(np.concatenate([picture, alpha[..., None]], axis=-1))


def masks() -> dict[str, bytes]:
    """The hole in files of every kind."""
    white = Image.fromarray(np.where(HOLE, 255, 0).astype(np.uint8))
    kinds = {mode: file(white, mode) for mode in ("1", "L", "P", "RGB", "LA", "RGBA")}
    kinds["16 bit"] = file(np.where(HOLE, 60000, 5000).astype(np.uint16))
    kinds["jpeg"] = file(white, format="JPEG", quality=100)
    kinds["clear RGBA"] = file(transparent(HOLE))
    kinds["clear LA"] = file(transparent(HOLE), "LA")
    kinds["clear P"] = file(Image.fromarray(HOLE.astype(np.uint8)), "P", transparency=1)
    return kinds


@pytest.mark.parametrize("kind", masks())
def test_masks_of_every_kind(kind):
    edit = read_edit(file(PICTURE), masks()[kind], (8, 8))
    np.testing.assert_array_equal(edit.mask, HOLE)
    np.testing.assert_array_equal(edit.image, PICTURE)


def test_transparent_parts_of_the_image_are_its_mask():
    edit = read_edit(file(transparent(HOLE)), None, (8, 8))
    np.testing.assert_array_equal(edit.mask, HOLE)
    # A mask of its own comes before them.
    edit = read_edit(file(transparent(HOLE)), file(~HOLE), (8, 8))
    np.testing.assert_array_equal(edit.mask, ~HOLE)
    np.testing.assert_array_equal(edit.image[HOLE], 255)


def test_other_sizes_are_resized_and_no_masked_pixel_is_lost(caplog):
    large = np.kron(PICTURE, np.ones((4, 4, 1), np.uint8))
    dot = np.zeros((32, 32), bool)
    dot[13, 10] = True
    edit = read_edit(file(large), file(dot), (8, 8))
    np.testing.assert_array_equal(np.argwhere(edit.mask), [[3, 2]])
    assert edit.image.shape == (8, 8, 3)
    assert "image: resized from 32x32 px to 8x8" in caplog.text
    # A pixel more or less is no other aspect ratio.
    assert read_edit(file(PICTURE[:7]), file(HOLE[:7]), (8, 8)).image.shape == (8, 8, 3)
    read_edit(file(PICTURE), file(np.ones_like(HOLE)), (8, 8))
    assert "mask: masks all of the image" in caplog.text


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (b"GIF89a", masks()["L"], "image: no image that can be read"),
        (file(PICTURE)[:90], masks()["L"], "image: no image that can be read"),
        (file(PICTURE), None, "image: nothing is transparent: give a mask"),
        (file(PICTURE), b"", "mask: no image that can be read"),
        (file(PICTURE), b"mask", "mask: no image that can be read"),
        (file(PICTURE), file(HOLE[:4]), "mask: 8x4 px are not the image's 8x8 px"),
        (file(PICTURE[:6]), masks()["L"], "image: 8x6 px have another aspect ratio than the 8x8"),
        (file(PICTURE), file(~np.ones_like(HOLE)), "mask: masks nothing: make white or transp"),
        (file(np.zeros((2**13, 2**12 + 1), bool)), None, "image: more than 33554432 pixels"),
    ],
    ids=range(9),
)
def test_files_that_cannot_be_used(image, mask, message):
    with pytest.raises(InputError) as error:
        read_edit(image, mask, (8, 8))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_codes_of_patches_without_a_masked_pixel_are_known():
    drawn = np.zeros((4, 4), bool)
    drawn[1:3, 1] = True
    # What is masked is not looked at.
    edit = Edit(np.where(HOLE[..., None], np.uint8(77), PICTURE), HOLE)
    np.testing.assert_array_equal(edit.known(FLAT), np.where(drawn, -1, CODES).ravel())
    np.testing.assert_array_equal(Edit(PICTURE, np.ones_like(HOLE)).known(FLAT), [-1] * 16)


def test_the_tokenizer_sees_nothing_of_what_is_masked():
    """A tokenizer whose codes depend on pixels far away."""
    tokenizer = ModelTokenizer(*tiny.vqgan())
    pictures = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    mask = np.zeros((32, 32), bool)
    mask[5:20, 7:30] = True
    other = np.where(mask[..., None], pictures[1], pictures[0])
    codes = [Edit(picture, mask).known(tokenizer) for picture in (pictures[0], other)]
    np.testing.assert_array_equal(*codes)
    assert np.any(codes[0] >= 0)


def test_an_image_generator_fills_the_hole_and_keeps_the_rest():
    generator = ImageGenerator("tiny", *tiny.llama(), FLAT, None, ())
    edit = Edit(PICTURE, HOLE)
    known = edit.known(FLAT)
    conditions = {"condition": np.array([3, 1], np.int32), "known": np.tile(known, (2, 1))}
    (samples,) = generator.sample(conditions, SamplingSettings(seed=1), count=4)
    kept = known >= 0
    np.testing.assert_array_equal(samples.codes[:, kept], np.tile(known[kept], (8, 1)))
    assert len(np.unique(samples.codes, axis=0)) == 8
    images = edit.paste(samples.images)
    np.testing.assert_array_equal(images[:, ~HOLE], np.tile(PICTURE[~HOLE], (8, 1, 1)))
    np.testing.assert_array_equal(images[:, HOLE], samples.images[:, HOLE])
