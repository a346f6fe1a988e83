"""From encoded images to uint8 arrays: decoding, crops and flips, as ADM and LlamaGen do them."""

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageCms, ImageColor, ImageOps

from llamagen_jax.errors import InputError

# The side of a square, or (height, width), in pixels.
Size = int | tuple[int, int]

# Kinds of `code_crops`, and how many crops each takes of an image.
CODE_CROPS = {"center": 1, "center-flip": 2, "ten-crop": 10}


# Modes that are RGB once converted, as they are or with a palette.
_CONVERTED = {"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"}
_WITH_ALPHA = {"LA", "La", "PA", "RGBA", "RGBa"}
# Sides of what is enlarged whole before it is cropped, in sides of the crop.
_MOST_ENLARGED = 16


def decode(
    image: bytes | np.ndarray,
    fast_side: int = 0,
    *,
    background: str = "white",
    exif_orientation: bool = False,
) -> Image.Image:
    """An RGB image of 8 bits from encoded bytes or from a uint8 array [H, W, 3].

    The whole image is decoded here, so that a damaged file raises here (OSError mostly), as does
    one whose values have no known range (ValueError). Of an animation it is the first picture.

    Args:
      image: the bytes or pixels.
      background: what lies behind transparent pixels, a colour that Pillow knows; "" shows what
        colour they have themselves, as the original does.
      exif_orientation: turn it as its EXIF data say. The original does not, nor do ImageNet's
        evaluators.
      fast_side: above 0, a JPEG may come out at a half, a quarter or an eighth of its size, as long
        as its smaller side keeps this many pixels. That takes less than half of the time; crops
        differ by about one grey level from those of the whole image.
    """
    if isinstance(image, np.ndarray):
        return Image.fromarray(image)
    decoded = Image.open(io.BytesIO(image))
    if fast_side:
        decoded.draft("RGB", (fast_side, fast_side))
    decoded.load()
    if exif_orientation:
        decoded = ImageOps.exif_transpose(decoded)
    return _to_rgb(decoded, background)


def _to_rgb(image: Image.Image, background: str) -> Image.Image:
    if background and (image.mode in _WITH_ALPHA or "transparency" in image.info):
        ground = Image.new("RGBA", image.size, background)
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    if image.mode == "RGB":
        # Converting copies the pixels even where nothing is to convert.
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        # Pillow would clip 16 bits at 255.
        pixels = np.asarray(image, np.float64)
        return Image.fromarray(np.rint(pixels / 257).astype(np.uint8)).convert("RGB")
    if image.mode == "LAB":
        to_rgb = ImageCms.buildTransform(
            ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB"
        )
        converted = ImageCms.applyTransform(image, to_rgb)
        assert converted
        return converted
    if image.mode in _CONVERTED | _WITH_ALPHA:
        return image.convert("RGB")
    raise ValueError(f"pixels of mode {image.mode} have no known range")


def check_background(background: str) -> None:
    """Raises InputError for what is no colour of `decode`'s background."""
    try:
        if background:
            ImageColor.getrgb(background)
    except ValueError as error:
        raise InputError(
            f"background={background} is no colour: give one such as white or #ff8000, or nothing "
            "for the transparent pixels' own"
        ) from error


def refuse_small(image: Image.Image, size: Size) -> None:
    """Raises ValueError if the image has less than `size` pixels to a side."""
    height, width = _sides(size)
    if image.height < height or image.width < width:
        told = width if width == height else f"{width}x{height}"
        raise ValueError(f"{image.width}x{image.height} px are less than {told}")


def same_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether a width and height, made that of the other, are the other's but for a pixel."""
    (width, height), (wide, high) = size, other
    return abs(height * wide / width - high) <= 1 or abs(width * high / height - wide) <= 1


def nearest_size(image: Image.Image, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The (height, width) of the nearest aspect ratio, by its logarithm, then of nearest area."""

    def distance(size: tuple[int, int]) -> tuple[float, float]:
        down, across = math.log(size[0] / image.height), math.log(size[1] / image.width)
        # Aspect ratios that are equal on paper differ by rounding here.
        return round(abs(down - across), 9), abs(down + across)

    return min(sizes, key=distance)


def center_crop(image: Image.Image, size: Size) -> np.ndarray:
    """The centre of the image, resized to just cover `size`: uint8 [height, width, 3].

    For squares this is the crop of ADM (guided-diffusion), with which LlamaGen prepares images for
    evaluation and for code extraction: their smaller side is resized to `size`.
    """
    image, (width, height) = _covering(image, size)
    down, across = _sides(size)
    return _cut(image, (width, height), ((height - down) // 2, (width - across) // 2), size)


def random_crop(image: Image.Image, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random square of the image at a random scale: uint8 [size, size, 3].

    The smaller side is resized to an integer drawn from [size, random_crop_side(size)]. This is the
    random crop of ADM, with which LlamaGen trains its tokenizer.
    """
    smaller_side = int(rng.integers(size, random_crop_side(size), endpoint=True))
    image, (width, height) = _covering(image, smaller_side)
    top = int(rng.integers(height - size, endpoint=True))
    left = int(rng.integers(width - size, endpoint=True))
    return _cut(image, (width, height), (top, left), size)


def random_crop_side(size: int) -> int:
    """Pixels of the smaller side that a random crop of `size` is taken from, at most."""
    return math.ceil(size / 0.8)


def random_flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image [H, W, 3], mirrored left to right with probability 0.5."""
    return image[:, ::-1] if rng.random() < 0.5 else image


def code_crops(
    image: Image.Image, size: Size, kind: str, crop_range: float | None = None
) -> np.ndarray:
    """The crops of an image whose codes a generator learns.

    "center" is the centre crop, "center-flip" that and its mirror image. "ten-crop" takes a centre
    crop to int(side * crop_range) for each side; its corners (top left, top right, bottom left,
    bottom right) and its centre follow, then the same five of its mirror image, in the order of
    torchvision's TenCrop. The original extracts one set of codes at 1.1 and one at 1.05. The other
    kinds take no `crop_range`.

    Returns:
      uint8 [CODE_CROPS[kind], height, width, 3].
    """
    if kind != "ten-crop":
        crop = center_crop(image, size)
        return np.stack([crop, crop[:, ::-1]][: CODE_CROPS[kind]])
    assert crop_range is not None
    height, width = (int(side * crop_range) for side in _sides(size))
    pixels = center_crop(image, (height, width))
    down, across = height - _sides(size)[0], width - _sides(size)[1]
    middle = round(down / 2), round(across / 2)  # to even, as torchvision does
    places = (0, 0), (0, across), (down, 0), (down, across), middle
    mirrored = pixels[:, ::-1]
    return np.stack([_crop(side, place, size) for side in (pixels, mirrored) for place in places])


def _sides(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _covering(image: Image.Image, size: Size) -> tuple[Image.Image, tuple[int, int]]:
    """The image, and the width and height to resize it to so that it just covers `size`."""
    height, width = _sides(size)
    # Box halving first keeps bicubic, at less than a factor of two, free of aliasing; the
    # results match the original only with both steps.
    while image.height >= 2 * height and image.width >= 2 * width:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(height / image.height, width / image.width)
    return image, (round(image.width * scale), round(image.height * scale))


def _cut(
    image: Image.Image, resized: tuple[int, int], place: tuple[int, int], size: Size
) -> np.ndarray:
    """A part of the image once it is resized to a width and height, at a place (top, left)."""
    (top, left), (height, width) = place, _sides(size)
    if max(resized) <= _MOST_ENLARGED * min(height, width):
        return _crop(np.asarray(image.resize(resized, Image.Resampling.BICUBIC)), place, size)
    # A strip one pixel wide would take gigabytes; only what is seen of it is enlarged.
    x, y = image.width / resized[0], image.height / resized[1]
    box = left * x, top * y, (left + width) * x, (top + height) * y
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box))


def _crop(pixels: np.ndarray, place: tuple[int, int], size: Size) -> np.ndarray:
    (top, left), (height, width) = place, _sides(size)
    return pixels[top : top + height, left : left + width]
