"""Pixel formats and picture grids."""

from pathlib import Path

import jax
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


def save_png(path: Path, image: np.ndarray) -> None:
    """Writes one uint8 [H, W, 3] image."""
    with staged(path, overwrite=True) as partial:
        Image.fromarray(image).save(partial, format="png")
