"""Precision and recall (arXiv 1904.06991): whose features lie in the other set's manifold.

A set's manifold is the union of balls around its features, each as large as the distance to the
k-th nearest other one.

Axes: M reference, N samples, D features.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from llamagen_jax.errors import InputError
from llamagen_jax.evaluate.pairwise import blocks, check_features, squared_distances

Dtype = Literal["float16", "float32"]


def precision_recall(
    reference: np.ndarray, samples: np.ndarray, k: int = 3, *, dtype: Dtype = "float32"
) -> tuple[float, float]:
    """Shares of the samples in the reference's manifold, and of the reference in the samples'.

    Args, errors: of `manifold_hits`.
    """
    precise, recalled = manifold_hits(reference, samples, k, dtype=dtype)
    return float(precise.mean()), float(recalled.mean())


def manifold_hits(
    reference: np.ndarray, samples: np.ndarray, k: int = 3, *, dtype: Dtype = "float32"
) -> tuple[np.ndarray, np.ndarray]:
    """Which samples lie in the reference's manifold, and which of the reference in the samples'.

    Args:
      reference: real [M, D].
      samples: real [N, D].
      k: the ball around a feature reaches its k-th nearest other one, that included.
      dtype: of the distances. ADM's evaluator computes them in "float16", and in float32 where a
        block overflows; the published figures are rounded so, up to 0.003 from those of "float32".

    Returns:
      bool [N] and bool [M].

    Raises:
      InputError: shapes do not fit, a value is not finite, or a set has no k-th neighbour.
    """
    reference, samples = np.asarray(reference), np.asarray(samples)
    check_features(reference, samples)
    fewest = min(len(reference), len(samples))
    if not 0 < k < fewest:
        raise InputError(
            f"precision and recall look at {k} neighbours of each image and there are {fewest} "
            "images; give more"
        )
    # In float32 digits are spent on distances, not on how far the features are from zero.
    center = reference.mean(axis=0, dtype=np.float64) if dtype == "float32" else 0.0
    reference_radii = _radii(reference, k, center, dtype)
    sample_radii = _radii(samples, k, center, dtype)
    precise = np.zeros(len(samples), bool)
    recalled = np.zeros(len(reference), bool)
    for rows in blocks(len(reference)):
        u = _take(reference, rows, center)
        for columns in blocks(len(samples)):
            block = _distances(u, _take(samples, columns, center), dtype)
            inside, around = _hits(block, reference_radii[rows], sample_radii[columns])
            precise[columns] |= np.asarray(inside)
            recalled[rows] |= np.asarray(around)
    return precise, recalled


def _take(features: np.ndarray, rows: slice, center: np.ndarray | float) -> jax.Array:
    return jnp.asarray(features[rows] - center, jnp.float32)


def _radii(features: np.ndarray, k: int, center: np.ndarray | float, dtype: Dtype) -> np.ndarray:
    """Squared distance of each of [N, D] to its k-th nearest other one, float32 [N]."""
    # The nearest of all is the feature itself.
    nearest = np.full((len(features), k + 1), np.inf, np.float32)
    for rows in blocks(len(features)):
        u = _take(features, rows, center)
        for columns in blocks(len(features)):
            # What lies below the diagonal was seen from the other side.
            if columns.start < rows.start:
                continue
            block = _distances(u, _take(features, columns, center), dtype)
            nearest[rows] = _nearest(nearest[rows], block)
            if columns != rows:
                nearest[columns] = _nearest(nearest[columns], block.T)
    return nearest[:, k]


def _distances(u: jax.Array, v: jax.Array, dtype: Dtype) -> jax.Array:
    """Squared distances, float32 [B, C], of float32 [B, D] and [C, D], computed in `dtype`."""
    block = squared_distances(u.astype(dtype), v.astype(dtype))
    if dtype == "float16" and not jnp.isfinite(block).all():
        return squared_distances(u, v)
    return block.astype(jnp.float32)


@jax.jit
def _nearest(nearest: jax.Array, block: jax.Array) -> jax.Array:
    """The smallest distances, ascending [B, K], among those so far [B, K] and [B, C]."""
    return -jax.lax.top_k(-jnp.concatenate([nearest, block], axis=1), nearest.shape[1])[0]


@jax.jit
def _hits(
    block: jax.Array, row_radii: jax.Array, column_radii: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Which columns lie in a row's ball, bool [C], and which rows in a column's, bool [B]."""
    inside = (block <= row_radii[:, None]).any(axis=0)
    return inside, (block <= column_radii).any(axis=1)
