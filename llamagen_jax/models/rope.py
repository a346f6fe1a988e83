"""Rotary positions in two dimensions.

Axes: B batch, Q queried positions, S = T + L positions, H heads, Dh head width, G grids.
"""

from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from llamagen_jax.models.layers import AnyArray


def rope_table(
    grid: tuple[int, int],
    head_dim: int,
    *,
    position_grid: tuple[int, int] | None = None,
    base: float,
    condition_length: int,
    condition_rope: str,
) -> Float[Array, "S half 2"]:
    """2-D rotary table: (cos, sin) of every pair of a head, float32 [S, Dh/2, 2].

    The first half of the pairs turns with the code's row, the second with its column, each at
    frequencies base ** (-2i / (Dh/2)).

    Args:
      grid: rows and columns of the codes, which are read row by row.
      head_dim: Dh.
      position_grid: rows and columns that the codes' positions are scaled to span (position
        interpolation, arXiv 2306.15595); None for their own.
      base: of the frequencies.
      condition_length: T, positions that come before the codes.
      condition_rope: of those, "zero" for (0, 0) as in the original or "identity" for (1, 0).
    """
    half = head_dim // 2
    frequencies = base ** (-np.arange(0, half, 2) / half)
    scale = np.divide(position_grid or grid, grid)
    row, column = np.indices(grid).reshape(2, -1) * scale[:, None]
    angles = np.concatenate([np.outer(row, frequencies), np.outer(column, frequencies)], axis=1)
    codes = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    condition = np.zeros((condition_length, half, 2))
    condition[..., 0] = condition_rope == "identity"
    return jnp.asarray(np.concatenate([condition, codes]), jnp.float32)


def stack_tables(tables: Iterable[Float[Array, "_ half 2"]]) -> Float[Array, "G S half 2"]:
    """Tables of G grids as one, with zeros after the shorter ones."""
    tables = list(tables)
    longest = max(map(len, tables))
    return jnp.stack([jnp.pad(t, ((0, longest - len(t)), (0, 0), (0, 0))) for t in tables])


def rotate(
    x: Float[AnyArray, "B Q H Dh"], cos_sin: Float[AnyArray, "#B Q half 2"]
) -> Float[Array, "B Q H Dh"]:
    """Turns the pairs (2i, 2i+1) of x by their rows of `rope_table`, in float32."""
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    cos, sin = cos_sin[:, :, None, :, 0], cos_sin[:, :, None, :, 1]
    first = pairs[..., 0] * cos - pairs[..., 1] * sin
    second = pairs[..., 1] * cos + pairs[..., 0] * sin
    return jnp.stack([first, second], axis=-1).reshape(x.shape).astype(x.dtype)
