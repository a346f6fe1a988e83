"""Distances between the features of two sets of images: Fréchet (FID, sFID), KID, CMMD.

Beside each, the influence of every sample on it, whose `standard_error` is the distance's own; the
reference counts as given.

Axes: M reference, N samples, D features.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from llamagen_jax.errors import InputError
from llamagen_jax.evaluate.pairwise import blocks, check_features, squared_distances

Array = jax.Array | np.ndarray
Kernel = Callable[[Any, Any], Any]

# Jayasumana et al., arXiv 2401.09603.
_CMMD_SIGMA = 10.0
_CMMD_SCALE = 1000.0


def frechet_distance(
    mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray
) -> float:
    """Squared Fréchet distance of two Gaussians, in float64; FID when of Inception's features.

    The evaluators differ in how they find the trace of the square root of sigma1 sigma2, not in
    what it is. Here sigma1 = L1 L1ᵀ and sigma2 = L2 L2ᵀ, and it is the sum of the singular values
    of L1ᵀ L2, which stays real and exact where a covariance lacks rank.

    Args:
      mu1, mu2: means [D].
      sigma1, sigma2: covariances [D, D].

    Raises:
      InputError: shapes do not fit, or a value is not finite.
    """
    mu1, sigma1, mu2, sigma2 = (np.asarray(a, np.float64) for a in (mu1, sigma1, mu2, sigma2))
    _check_gaussians(mu1, sigma1, mu2, sigma2)
    cross = _factor(sigma1).T @ _factor(sigma2)
    # The smaller of the two Gram matrices has no zeros whose rounding the root would blow up.
    gram = cross @ cross.T if len(cross) <= cross.shape[1] else cross.T @ cross
    root_trace = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0)).sum() if gram.size else 0.0
    difference = mu1 - mu2
    distance = difference @ difference + np.trace(sigma1) + np.trace(sigma2) - 2 * root_trace
    return float(distance)


def frechet_influence(
    mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray, samples: np.ndarray
) -> np.ndarray:
    """How each sample pulls `frechet_distance`, float64 [N]: the mean is 0.

    A deviation d from mu2 pulls by -2 d·(mu1 - mu2) + |d|² - dᵀ T d less the mean of that, where T
    moves the second Gaussian onto the first.

    Args:
      mu1, sigma1: of the reference, [D] and [D, D].
      mu2, sigma2: of the samples, [D] and [D, D].
      samples: the features themselves, real [N, D].
    """
    factor = _factor(np.asarray(sigma1, np.float64))
    values, vectors = np.linalg.eigh(factor.T @ sigma2 @ factor)
    kept = values > values.max(initial=0) * len(values) * np.finfo(np.float64).eps
    transport_root = factor @ (vectors[:, kept] * values[kept] ** -0.25)
    pulls = []
    for rows in blocks(len(samples)):
        deviations = samples[rows] - mu2
        pulls.append(
            -2 * deviations @ (mu1 - mu2)
            + np.square(deviations).sum(axis=1)
            - np.square(deviations @ transport_root).sum(axis=1)
        )
    pull = np.concatenate(pulls)
    return pull - pull.mean()


def kid(
    reference: np.ndarray,
    samples: np.ndarray,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
) -> float:
    """Kernel inception distance (arXiv 1801.01401), torch-fidelity's: the mean over random subsets.

    Args:
      reference: real [M, D].
      samples: real [N, D]; drawn first, as torch-fidelity's first input.

    Raises:
      InputError: shapes do not fit, a value is not finite, or a subset is larger than a set.
    """
    check_features(reference, samples)
    smaller = min(len(reference), len(samples))
    if subset_size > smaller:
        raise InputError(
            f"KID's subsets of {subset_size} do not fit into {smaller} images; give more images or "
            "smaller subsets"
        )
    # The generator that torch-fidelity draws from.
    random = np.random.RandomState(seed)
    total = 0.0
    for _ in range(subsets):
        of_samples = samples[random.choice(len(samples), subset_size, replace=False)]
        of_reference = reference[random.choice(len(reference), subset_size, replace=False)]
        total += _unbiased_mmd(of_samples, of_reference)
    return float(total / subsets)


def kid_influence(reference: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """How each sample pulls `kid` over whole sets, float64 [N]: the mean is 0.

    Args:
      reference, samples: real [M, D] and [N, D].
    """
    count = len(samples)
    within = _kernel_means(_polynomial, samples, samples)
    # KID leaves out the kernel of each with itself.
    own = (np.square(samples).mean(axis=1) + 1) ** 3
    within = (within * count - own) / (count - 1)
    return _influence(within, _kernel_means(_polynomial, samples, reference))


def cmmd(reference: np.ndarray, samples: np.ndarray) -> float:
    """CMMD: 1000 times the squared Gaussian MMD of CLIP's embeddings (arXiv 2401.09603).

    Args:
      reference, samples: embeddings of unit norm, real [M, D] and [N, D].

    Raises:
      InputError: shapes do not fit, or a value is not finite.
    """
    check_features(reference, samples)
    within = _kernel_means(_gaussian, reference, reference).mean()
    within += _kernel_means(_gaussian, samples, samples).mean()
    return float(_CMMD_SCALE * (within - 2 * _kernel_means(_gaussian, samples, reference).mean()))


def cmmd_influence(reference: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """How each sample pulls `cmmd`, float64 [N]: the mean is 0.

    Args:
      reference, samples: embeddings of unit norm, real [M, D] and [N, D].
    """
    within = _kernel_means(_gaussian, samples, samples)
    return _CMMD_SCALE * _influence(within, _kernel_means(_gaussian, samples, reference))


def _check_gaussians(
    mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray
) -> None:
    shapes = [array.shape for array in (mu1, sigma1, mu2, sigma2)]
    if mu1.ndim != 1 or shapes != [mu1.shape, 2 * mu1.shape] * 2:
        raise InputError(
            f"two means [D] and covariances [D, D] of as many features are compared, not {shapes}; "
            "were they made by the same network?"
        )
    if not all(np.isfinite(array).all() for array in (mu1, sigma1, mu2, sigma2)):
        raise InputError("a mean or covariance holds NaN or infinity; make the statistics anew")


def _factor(sigma: np.ndarray) -> np.ndarray:
    """L, float64 [D, rank], with L Lᵀ = sigma [D, D]: Cholesky's, pivoted, which tells the rank."""
    (pstrf,) = scipy.linalg.get_lapack_funcs(("pstrf",), (sigma,))
    packed, pivots, rank, _ = pstrf(sigma, lower=1)
    factor = np.empty((len(sigma), rank))
    factor[pivots - 1] = np.tril(packed[:, :rank])
    return factor


def _polynomial(u: Array, v: Array) -> Array:
    """KID's kernel of [B, D] and [C, D], real [B, C]."""
    return (u @ v.T / u.shape[1] + 1) ** 3


def _gaussian(u: jax.Array, v: jax.Array) -> jax.Array:
    """CMMD's kernel of [B, D] and [C, D], real [B, C], less 1: that cancels, and digits stay."""
    return jnp.expm1(squared_distances(u, v) / (-2 * _CMMD_SIGMA**2))


def _unbiased_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased squared MMD, under KID's kernel, of two sets of as many features [B, D]."""
    pairs = len(x) * (len(x) - 1)
    within = sum(float(k.sum() - np.trace(k)) for k in (_polynomial(x, x), _polynomial(y, y)))
    return within / pairs - 2 * float(_polynomial(x, y).mean())


def _kernel_means(kernel: Kernel, of: np.ndarray, over: np.ndarray) -> np.ndarray:
    """Mean kernel of each of `of` [N, D] with all of `over` [M, D], float64 [N]."""
    sums = np.zeros(len(of))
    for rows in blocks(len(of)):
        u = jnp.asarray(of[rows], jnp.float32)
        for columns in blocks(len(over)):
            v = jnp.asarray(over[columns], jnp.float32)
            with jax.default_matmul_precision("highest"):
                sums[rows] += kernel(u, v).sum(axis=1)
    return sums / len(over)


def _influence(within: np.ndarray, across: np.ndarray) -> np.ndarray:
    """How each sample pulls the squared MMD, from its mean kernels with samples and reference."""
    pull = 2 * (within - across)
    return pull - pull.mean()
