"""Codes to pixels, of one image at a time, so that its bytes depend on no other's.

Axes: L codes, H W pixels.
"""

import numpy as np
from jax import Array, jit

from llamagen_jax.image_tokenizer import ImageTokenizer
from llamagen_jax.images import to_uint8

# Of the pixels whose codes are not drawn yet.
_GREY = 128


def whole(tokenizer: ImageTokenizer, codes: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, 3] of int codes [L]."""
    return first_rows(tokenizer, codes, grid, grid[0])


def begun(
    tokenizer: ImageTokenizer, codes: np.ndarray, grid: tuple[int, int], done: int
) -> np.ndarray:
    """uint8 [H, W, 3] of the first `done` of int codes [L], grey where the others will be."""
    rows, columns = grid
    enough = next(count for count in row_counts(grid) if count * columns >= done)
    picture = first_rows(tokenizer, codes, grid, enough)
    drawn = (np.arange(rows * columns) < done).reshape(rows, columns)
    side = tokenizer.downsampling
    drawn = np.kron(drawn, np.ones((side, side), bool))[..., None]
    below = np.zeros((len(drawn) - len(picture), *picture.shape[1:]), np.uint8)
    return np.where(drawn, np.concatenate([picture, below]), np.uint8(_GREY))


def row_counts(grid: tuple[int, int]) -> list[int]:
    """Of codes that are decoded: all, and fewer for partial pictures to come sooner; ascending."""
    rows = grid[0]
    return sorted({-(-rows // 4), -(-rows // 2), rows})


def first_rows(
    tokenizer: ImageTokenizer, codes: np.ndarray, grid: tuple[int, int], rows: int
) -> np.ndarray:
    """uint8 [h, W, 3] of the first rows, one of `row_counts`, of int codes [L]."""
    columns = grid[1]
    return to_uint8(_decode(tokenizer, codes[: rows * columns].reshape(1, rows, columns)))[0]


@jit
def _decode(tokenizer: ImageTokenizer, codes: Array) -> Array:
    return tokenizer.decode(codes)
