"""How near a tokenizer's reconstructions are to the images, and how much of its codebook it uses.

Axes: B batch, H W pixels, C channels, K codebook entries.
"""

import numpy as np
from scipy.ndimage import uniform_filter
from scipy.special import entr

from llamagen_jax.errors import InputError

_WINDOW = 7


def psnr(images: np.ndarray, reconstructions: np.ndarray, data_range: float = 255) -> np.ndarray:
    """Peak signal-to-noise ratio of each pair in dB, float64 [B]; infinite where they are equal.

    Args:
      images, reconstructions: real [B, H, W, C].
      data_range: largest difference that pixels can have.

    Raises:
      InputError: shapes differ.
    """
    _check_pair(images, reconstructions)
    difference = images.astype(np.float64) - reconstructions
    with np.errstate(divide="ignore"):
        return 10 * np.log10(data_range**2 / np.square(difference).mean(axis=(1, 2, 3)))


def ssim(images: np.ndarray, reconstructions: np.ndarray, data_range: float = 255) -> np.ndarray:
    """Structural similarity of each pair, float64 [B], as scikit-image's: the mean over channels.

    Windows of 7 pixels count evenly, and those that cross the border not at all. LlamaGen gives a
    `data_range` of twice the right one, which makes its figures higher.

    Args:
      images, reconstructions: real [B, H, W, C].
      data_range: largest difference that pixels can have.

    Raises:
      InputError: shapes differ, or the images are smaller than a window.
    """
    _check_pair(images, reconstructions)
    if min(images.shape[1:3]) < _WINDOW:
        raise InputError(
            f"SSIM needs images of {_WINDOW} pixels or more a side, not {images.shape[1:3]}"
        )
    pairs = zip(images, reconstructions, strict=True)
    return np.array(
        [_ssim(x.astype(np.float64), y.astype(np.float64), data_range) for x, y in pairs]
    )


def codebook_usage(counts: np.ndarray) -> float:
    """Share of the codebook that occurs at all, from the number of each code, int [K]."""
    return float(np.mean(counts > 0))


def codebook_perplexity(counts: np.ndarray) -> float:
    """Exponential of the entropy of the codes' frequencies: 1 for a single code, K for uniform.

    Args:
      counts: number of each code, int [K], at least one of them positive.
    """
    return float(np.exp(entr(counts / counts.sum()).sum()))


def _check_pair(images: np.ndarray, reconstructions: np.ndarray) -> None:
    if images.shape != reconstructions.shape or images.ndim != 4:
        raise InputError(
            f"images and reconstructions are [B, H, W, C] both, not {images.shape} and "
            f"{reconstructions.shape}"
        )


def _ssim(x: np.ndarray, y: np.ndarray, data_range: float) -> float:
    """Structural similarity of float64 [H, W, C] twice."""
    margin = _WINDOW // 2
    inside = np.s_[margin:-margin, margin:-margin]

    def window_mean(values: np.ndarray) -> np.ndarray:
        return uniform_filter(values, _WINDOW, axes=(0, 1))[inside]

    mean_x, mean_y = window_mean(x), window_mean(y)
    unbiased = _WINDOW**2 / (_WINDOW**2 - 1)
    variances = unbiased * (window_mean(x * x + y * y) - mean_x**2 - mean_y**2)
    covariance = unbiased * (window_mean(x * y) - mean_x * mean_y)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity /= (mean_x**2 + mean_y**2 + c1) * (variances + c2)
    return float(similarity.mean())
