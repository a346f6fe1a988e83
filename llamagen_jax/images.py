"""Pixel formats and picture grids."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from PIL import Image

from llamagen_jax.files import staged


def to_uint8(images) -> np.ndarray:
    """Float [..., H, W, 3] in [-1, 1] to uint8 by clip(127.5 x + 128, 0, 255), as the original."""
    return np.asarray(jnp.clip(127.5 * images + 128, 0, 255).astype(jnp.uint8))


def from_uint8(images):
    """uint8 images to float32 in [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1


def grid(images: np.ndarray) -> np.ndarray:
    """Lays uint8 [rows, columns, H, W, 3] out as one picture [_, _, 3], 2 white pixels apart."""
    gap = 2
    padding = ((0, 0), (0, 0), (gap, 0), (gap, 0), (0, 0))
    rows, columns, H, W, C = images.shape
    cells = np.pad(images, padding, constant_values=255).swapaxes(1, 2)
    picture = cells.reshape(rows * (H + gap), columns * (W + gap), C)
    return np.pad(picture, ((0, gap), (0, gap), (0, 0)), constant_values=255)


def save_png(path: Path, image: np.ndarray) -> None:
    """Writes one uint8 [H, W, 3] image."""
    with staged(path, overwrite=True) as partial:
        Image.fromarray(image).save(partial, format="png")
