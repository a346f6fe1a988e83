"""Pixel formats and picture grids."""

import io
import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from llamagen_jax.files import staged

_MIN_CAPTION_WIDTH = 128
_CAPTION_GAP = 3


def to_uint8(images) -> np.ndarray:
    """Float [..., H, W, 3] in [-1, 1] to uint8 by clip(127.5 x + 128, 0, 255), as the original."""
    return np.asarray(jnp.clip(127.5 * images + 128, 0, 255).astype(jnp.uint8))


def from_uint8(images):
    """uint8 images to float32 in [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1


def resize(images, size: int) -> jax.Array:
    """Resizes as the original does before evaluation: bicubic, without antialias.

    As PyTorch's `interpolate`: cubic convolution with coefficient -0.75, half-pixel centres, edges
    repeated. `jax.image.resize` has coefficient -0.5, and antialias by default.

    Args:
      images: float [..., H, W, C].

    Returns:
      float32 [..., size, size, C], which may overshoot the range of `images`.
    """
    rows, columns = (_bicubic_weights(side, size) for side in images.shape[-3:-1])
    highest = jax.lax.Precision.HIGHEST
    return jnp.einsum("yh,...hwc,xw->...yxc", rows, images, columns, precision=highest)


def _bicubic_weights(old: int, new: int) -> np.ndarray:
    """float32 [new, old]: how much each old pixel of a line counts in each new one."""
    a = -0.75
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.zeros((new, old))
    for tap in (-1, 0, 1, 2):
        pixels = np.floor(centres) + tap
        d = np.abs(centres - pixels)
        near = ((a + 2) * d - (a + 3)) * d**2 + 1
        far = a * (((d - 5) * d + 8) * d - 4)
        nearest_inside = np.clip(pixels, 0, old - 1).astype(int)
        weights[np.arange(new), nearest_inside] += np.where(d <= 1, near, far)
    return weights.astype(np.float32)


def grid(images: np.ndarray) -> np.ndarray:
    """Lays uint8 [rows, columns, H, W, 3] out as one picture [_, _, 3], 2 white pixels apart."""
    gap = 2
    padding = ((0, 0), (0, 0), (gap, 0), (gap, 0), (0, 0))
    rows, columns, H, W, C = images.shape
    cells = np.pad(images, padding, constant_values=255).swapaxes(1, 2)
    picture = cells.reshape(rows * (H + gap), columns * (W + gap), C)
    return np.pad(picture, ((0, gap), (0, gap), (0, 0)), constant_values=255)


def on_one_size(groups: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Arrays uint8 [..., H, W, 3] with white around the images, up to the largest H and W."""
    height, width = (max(images.shape[axis] for images in groups) for axis in (-3, -2))
    padded = []
    for images in groups:
        down, across = height - images.shape[-3], width - images.shape[-2]
        around = [(down // 2, down - down // 2), (across // 2, across - across // 2), (0, 0)]
        widths = [(0, 0)] * (images.ndim - 3) + around
        padded.append(np.pad(images, widths, constant_values=255))
    return padded


def captioned_grid(images: np.ndarray, captions: Sequence[str], columns: int) -> np.ndarray:
    """Lays uint8 [N, H, W, 3] out in rows like `grid`, each over its wrapped caption.

    Cells narrower than `_MIN_CAPTION_WIDTH` px get a white margin on the right, so that words fit.
    """
    rows = []
    for start in range(0, len(images), columns):
        cells = [
            _captioned(image, caption)
            for image, caption in zip(
                images[start : start + columns], captions[start : start + columns], strict=True
            )
        ]
        height = max(len(cell) for cell in cells)
        row = np.full((1, columns, height, *cells[0].shape[1:]), 255, np.uint8)
        for column, cell in enumerate(cells):
            row[0, column, : len(cell)] = cell
        rows.append(grid(row))
    return np.concatenate(rows)


def _captioned(image: np.ndarray, caption: str) -> np.ndarray:
    """uint8 [H + the caption's height, W or more, 3]."""
    H, W, _ = image.shape
    width = max(W, _MIN_CAPTION_WIDTH)
    font = ImageFont.load_default(size=max(11, width // 24))
    # The font has no accents.
    letters = unicodedata.normalize("NFKD", caption)
    plain = "".join(letter for letter in letters if not unicodedata.combining(letter))
    text = "\n".join(_wrap(plain, width - 2 * _CAPTION_GAP, font.getlength))
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    bottom = math.ceil(measure.multiline_textbbox((0, 0), text, font)[3])
    cell = Image.new("RGB", (width, H + _CAPTION_GAP + bottom + _CAPTION_GAP), "white")
    cell.paste(Image.fromarray(image))
    ImageDraw.Draw(cell).multiline_text((0, H + _CAPTION_GAP), text, "black", font)
    return np.asarray(cell)


def _wrap(text: str, width: int, length: Callable[[str], float]) -> list[str]:
    """Lines of at most `width` px, broken at spaces, and inside words that are longer alone."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".lstrip()
        if length(joined) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and length(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def save_png(path: Path, image: np.ndarray, metadata: Mapping[str, Any] | None = None) -> None:
    """Writes one uint8 [H, W, 3] image; `metadata` is that of `encode`."""
    with staged(path, overwrite=True) as partial:
        partial.write_bytes(encode(image, "png", metadata))


def encode(
    image: np.ndarray, format: str, metadata: Mapping[str, Any] | None = None, quality: int = 100
) -> bytes:
    """The bytes of an image file of one image, uint8 [H, W, 3], or [H, W] in grey.

    Args:
      format: "png", "jpeg" or "webp".
      metadata: becomes text chunks of a PNG, which `PIL.Image.open(path).text` gives back as
        strings; other formats have none.
      quality: 0 to 100, of JPEG and WebP.
    """
    buffer = io.BytesIO()
    if format == "png":
        chunks = PngImagePlugin.PngInfo()
        for key, value in (metadata or {}).items():
            chunks.add_text(key, str(value))
        Image.fromarray(image).save(buffer, format, pnginfo=chunks)
    else:
        Image.fromarray(image).save(buffer, format, quality=quality)
    return buffer.getvalue()
