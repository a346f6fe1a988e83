"""What a control image shows of a picture: edges, found by libraries.

Axes: H W pixels.
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from scipy import ndimage

from llamagen_jax.errors import InputError, nearest


def detect(kind: str, image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W"]:
    """The control map of an image.

    "canny" is 255 on edges one or two pixels wide and 0 elsewhere, by scikit-image with its own
    thresholds. "soft-edges" is the slope of the brightness, smoothed over a pixel: 255 at a step
    from black to white, and less at lower ones.

    Raises:
      InputError: there is no detector of this kind, or scikit-image is not installed.
    """
    check_detector(kind)
    return DETECTORS[kind](image)


def check_detector(kind: str) -> None:
    """Raises InputError unless `detect` knows the kind."""
    if kind not in DETECTORS:
        raise InputError(
            f"there is no detector of '{kind}'; {nearest(kind, DETECTORS)}; maps of other kinds "
            "are given as images"
        )


def _canny(image):
    try:
        from skimage.feature import canny
    except ModuleNotFoundError:
        raise InputError(
            'canny edges need scikit-image: pip install "llamagen_jax[prepare]"'
        ) from None
    return np.where(canny(_brightness(image)), 255, 0).astype(np.uint8)


def _soft_edges(image):
    slope = ndimage.gaussian_gradient_magnitude(_brightness(image), sigma=1)
    # A step that is smoothed over a pixel rises by this part of itself.
    return np.clip(np.rint(slope * math.sqrt(2 * math.pi) * 255), 0, 255).astype(np.uint8)


def _brightness(image):
    """float32 [H, W] in [0, 1]."""
    return np.asarray(Image.fromarray(image).convert("L"), np.float32) / 255


DETECTORS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "canny": _canny,
    "soft-edges": _soft_edges,
}
