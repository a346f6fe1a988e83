"""Crops equal those of the original implementation, and random ones keep their promises."""

import io

import golden_weights
import numpy as np
import pytest
from PIL import Image

from llamagen_jax.data.transforms import (
    center_crop,
    code_crops,
    decode,
    nearest_size,
    random_crop,
    random_flip,
)

GOLDEN = golden_weights.FOLDER


def encoded(image, kind):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("size", [64, 140, 256])
def test_center_crop_equals_the_original(size):
    golden = np.load(GOLDEN / "crops.npz")
    crop = center_crop(decode(golden["image"]), size)
    np.testing.assert_array_equal(crop, golden[f"center{size}"], strict=True)


def test_center_crop_of_the_right_size_is_the_identity():
    image = noise(48, 48)
    np.testing.assert_array_equal(center_crop(decode(image), 48), image, strict=True)


def test_center_crop_enlarges_small_images():
    assert center_crop(decode(noise(20, 31)), 64).shape == (64, 64, 3)


def test_decode_is_exact_and_always_rgb():
    image = noise(5, 7)
    np.testing.assert_array_equal(np.asarray(decode(encoded(image, "PNG"))), image)
    grey = np.asarray(decode(encoded(image[..., 0], "PNG")))
    np.testing.assert_array_equal(grey, np.repeat(image[..., :1], 3, axis=-1))


def test_strips_are_cropped_before_they_are_enlarged():
    """The same pixels as of the whole, enlarged image."""
    pixels = noise(3, 200)
    whole = Image.fromarray(pixels).resize((8 * 200 // 3, 8), Image.Resampling.BICUBIC)
    left = (whole.width - 8) // 2
    crop = center_crop(decode(pixels), 8)
    np.testing.assert_allclose(crop, np.asarray(whole)[:, left : left + 8].astype(int), atol=1)
    # Whole, it would take 98 GB.
    assert center_crop(decode(noise(1, 500_000)), 256).shape == (256, 256, 3)
    rng = np.random.default_rng(0)
    assert random_crop(decode(noise(500_000, 1)), 256, rng).shape == (256, 256, 3)


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_every_mode_becomes_rgb_of_8_bits():
    deep = Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16))
    colour = Image.new("RGB", (3, 1), (200, 100, 50))
    images = {
        "grey of 16 bits": (saved(deep, "PNG"), [[0] * 3, [100] * 3, [255] * 3]),
        "one bit": (saved(Image.new("1", (3, 1), 1), "PNG"), [[255] * 3] * 3),
        "cmyk": (saved(colour.convert("CMYK"), "TIFF"), [[200, 100, 50]] * 3),
        "lab": (saved(Image.new("LAB", (3, 1), (128, 128, 128)), "TIFF"), [[119] * 3] * 3),
        "animation": (
            saved(colour, "GIF", save_all=True, append_images=[Image.new("RGB", (3, 1))]),
            [[200, 100, 50]] * 3,
        ),
    }
    for name, (data, expected) in images.items():
        found = np.asarray(decode(data))
        assert found.dtype == np.uint8
        np.testing.assert_allclose(found[0].astype(int), expected, atol=2, err_msg=name)
    with pytest.raises(ValueError, match="pixels of mode F have no known range"):
        decode(saved(Image.new("F", (3, 1), 0.5), "TIFF"))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_lies_behind_transparent_pixels(mode):
    image = Image.new("RGBA", (2, 1), (10, 10, 10, 255))
    image.putpixel((0, 0), (10, 10, 10, 0))
    if mode == "P":
        palette = Image.new("P", (2, 1), 0)
        palette.putpalette([10, 10, 10])
        data = saved(palette, "PNG", transparency=0)
        assert np.asarray(decode(data)).tolist() == [[[255] * 3] * 2]
        return
    data = saved(image.convert(mode), "PNG")
    for background, expected in {"white": 255, "#000000": 0, "": 10}.items():
        found = np.asarray(decode(data, background=background))
        assert found.tolist() == [[[expected] * 3, [10] * 3]]


def test_photos_are_turned_where_asked_for():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(Image.new("RGB", (30, 20)), "JPEG", exif=exif)
    assert decode(data).size == (30, 20)
    assert decode(data, exif_orientation=True).size == (20, 30)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_decode_raises_on_truncated_files(kind):
    data = encoded(noise(40, 40), kind)
    with pytest.raises((OSError, SyntaxError)):
        decode(data[: len(data) // 2])


def test_random_crop_scale_and_position_vary_within_bounds():
    # Each pixel's value is its horizontal position, so a crop shows its scale and offset.
    ramp = np.broadcast_to(np.arange(0, 240, 2, np.uint8)[None, :, None], (80, 120, 3))
    image = Image.fromarray(np.ascontiguousarray(ramp))
    rng = np.random.default_rng(0)
    left, width = [], []
    for _ in range(300):
        crop = random_crop(image, 32, rng).astype(int)
        assert crop.shape == (32, 32, 3)
        left.append(crop[0, 0, 0] / 2)
        width.append((crop[0, -2, 0] - crop[0, 1, 0]) / 2 / 29 * 32)
    # The smaller side, 80, is resized to 32 ... 40: a crop spans 64 ... 80 pixels of the image.
    assert 62 <= min(width) <= 66
    assert 78 <= max(width) <= 82
    assert min(left) <= 1
    assert max(left) >= 120 - 64 - 3


def test_random_crop_follows_its_generator():
    image = decode(noise(50, 60))
    first, again = (random_crop(image, 32, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (random_crop(image, 32, np.random.default_rng(4)) != first).any()


def test_random_flip_mirrors_half_of_the_images():
    image = noise(4, 6)
    rng = np.random.default_rng(0)
    flips = [random_flip(image, rng) for _ in range(200)]
    mirrored = sum(np.array_equal(flip, image[:, ::-1]) for flip in flips)
    kept = sum(np.array_equal(flip, image) for flip in flips)
    assert mirrored + kept == 200
    assert 70 < mirrored < 130


@pytest.mark.parametrize(
    ("crop_range", "side", "middle"), [(1.1, 22, 1), (1.05, 21, 0), (1, 20, 0)]
)
def test_ten_crop_takes_corners_and_centre_then_those_of_the_mirror_image(crop_range, side, middle):
    image = decode(noise(50, 37))
    crops = code_crops(image, 20, "ten-crop", crop_range)
    assert crops.shape == (10, 20, 20, 3)
    assert crops.dtype == np.uint8
    whole = center_crop(image, side)
    for five, pixels in ((crops[:5], whole), (crops[5:], whole[:, ::-1])):
        np.testing.assert_array_equal(five[0], pixels[:20, :20])
        np.testing.assert_array_equal(five[1], pixels[:20, -20:])
        np.testing.assert_array_equal(five[2], pixels[-20:, :20])
        np.testing.assert_array_equal(five[3], pixels[-20:, -20:])
        inside = slice(middle, middle + 20)
        np.testing.assert_array_equal(five[4], pixels[inside, inside])


@pytest.mark.parametrize(("margin", "middle"), [(1, 0), (3, 2), (5, 2), (7, 4)])
def test_the_middle_of_odd_margins_is_that_of_torchvision(margin, middle):
    # torchvision.transforms.functional.center_crop rounds half a pixel to even.
    pixels = noise(16 + margin, 16 + margin)
    crops = code_crops(decode(pixels), 16, "ten-crop", (16.5 + margin) / 16)
    inside = slice(middle, middle + 16)
    np.testing.assert_array_equal(crops[4], pixels[inside, inside])
    np.testing.assert_array_equal(crops[9], pixels[:, ::-1][inside, inside])


def test_center_and_center_flip():
    image = decode(noise(50, 37))
    crop = center_crop(image, 20)
    np.testing.assert_array_equal(code_crops(image, 20, "center"), crop[None])
    flipped = code_crops(image, 20, "center-flip")
    np.testing.assert_array_equal(flipped, np.stack([crop, crop[:, ::-1]]))


def smooth(height, width):
    small = Image.fromarray(noise(6, 8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def test_fast_decoding_is_smaller_and_nearly_the_same():
    data = encoded(smooth(384, 512), "JPEG")
    whole, fast = decode(data), decode(data, fast_side=128)
    assert (whole.size, fast.size) == ((512, 384), (256, 192))
    assert decode(data, fast_side=193).size == (512, 384)
    difference = center_crop(whole, 128).astype(int) - center_crop(fast, 128)
    assert 0 < abs(difference).mean() < 1


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_fast_decoding_leaves_other_formats_alone(kind):
    data = encoded(smooth(64, 80), kind)
    np.testing.assert_array_equal(np.asarray(decode(data, 16)), np.asarray(decode(data)))


def test_fast_decoding_of_grey_jpegs_is_rgb():
    assert decode(encoded(smooth(64, 80)[..., 0], "JPEG"), 16).mode == "RGB"


@pytest.mark.parametrize("size", [(31, 20), (20, 31), (70, 45), (300, 90)])
@pytest.mark.parametrize("target", [(16, 24), (24, 16), (16, 16)])
def test_crops_of_any_shape_cover_the_middle(size, target):
    """The image's rows and columns number themselves, so that a crop tells where it is from."""
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, height).round()[:, None]
    pixels[..., 1] = np.linspace(0, 255, width).round()
    crop = center_crop(decode(pixels), target).astype(float)
    assert crop.shape == (*target, 3)
    scale = max(target[0] / height, target[1] / width)
    for axis, (side, whole) in enumerate(zip(target, (height, width), strict=True)):
        line = crop[..., axis].mean(axis=1 - axis)
        seen = (line[-1] - line[0]) / 255 * whole * scale
        assert abs(line.mean() - 127.5) < 6
        assert abs(seen - side) < 3


def test_images_take_the_size_of_the_nearest_aspect_ratio():
    sizes = [(64, 64), (64, 96), (96, 64), (128, 128)]
    for width, height, expected in (
        (640, 480, (64, 96)),
        (480, 640, (96, 64)),
        (80, 70, (64, 64)),
        (1000, 1000, (128, 128)),
        (3000, 10, (64, 96)),
    ):
        assert nearest_size(Image.new("RGB", (width, height)), sizes) == expected


def test_ten_crops_of_a_rectangle():
    image = decode(noise(50, 40))
    crops = code_crops(image, (16, 24), "ten-crop", 1.5)
    assert crops.shape == (10, 16, 24, 3)
    whole = center_crop(image, (24, 36))
    np.testing.assert_array_equal(crops[3], whole[-16:, -24:])
    np.testing.assert_array_equal(crops[4], whole[4:20, 6:30])
    np.testing.assert_array_equal(crops[5], whole[:, ::-1][:16, :24])
