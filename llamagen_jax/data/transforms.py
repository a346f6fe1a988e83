"""From encoded images to uint8 arrays: decoding, crops and flips, as ADM and LlamaGen do them."""

import io
import math

import numpy as np
from PIL import Image


def decode(image: bytes | np.ndarray) -> Image.Image:
    """An RGB image from encoded bytes or from a uint8 array [H, W, 3].

    The whole image is decoded here, so that a damaged file raises here (OSError mostly).
    """
    if isinstance(image, np.ndarray):
        return Image.fromarray(image)
    return Image.open(io.BytesIO(image)).convert("RGB")


def center_crop(image: Image.Image, size: int) -> np.ndarray:
    """The centre of the image, its smaller side resized to `size`: uint8 [size, size, 3].

    This is the crop of ADM (guided-diffusion), with which LlamaGen prepares images for
    evaluation and for code extraction.
    """
    pixels = _resize_smaller_side(image, size)
    height, width, _ = pixels.shape
    return _crop(pixels, (height - size) // 2, (width - size) // 2, size)


def random_crop(image: Image.Image, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random square of the image at a random scale: uint8 [size, size, 3].

    The smaller side is resized to an integer drawn from [size, ceil(size / 0.8)]. This is the
    random crop of ADM, with which LlamaGen trains its tokenizer.
    """
    smaller_side = int(rng.integers(size, math.ceil(size / 0.8), endpoint=True))
    pixels = _resize_smaller_side(image, smaller_side)
    height, width, _ = pixels.shape
    top = rng.integers(height - size, endpoint=True)
    left = rng.integers(width - size, endpoint=True)
    return _crop(pixels, top, left, size)


def random_flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image [H, W, 3], mirrored left to right with probability 0.5."""
    return image[:, ::-1] if rng.random() < 0.5 else image


def _resize_smaller_side(image: Image.Image, size: int) -> np.ndarray:
    # Box halving first keeps bicubic, at less than a factor of two, free of aliasing; the
    # results match the original only with both steps.
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    shape = round(image.width * scale), round(image.height * scale)
    return np.asarray(image.resize(shape, Image.Resampling.BICUBIC))


def _crop(pixels: np.ndarray, top: int, left: int, size: int) -> np.ndarray:
    return pixels[top : top + size, left : left + size]
