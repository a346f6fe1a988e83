"""What a control image shows of a picture: its edges, found by libraries, or what is around a hole.

Axes: H W pixels.
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image
from scipy import ndimage

from llamagen_jax.errors import InputError, nearest

SURROUNDINGS = "surroundings"

# Of what is kept: black is for what is hidden.
_DARKEST = 64
_MOST_RECTANGLES, _OUTPAINTED = 3, 0.25


def detect(kind: str, image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W *C"]:
    """The control map of an image.

    "canny" is 255 on edges one or two pixels wide and 0 elsewhere, by scikit-image with its own
    thresholds. "soft-edges" is the slope of the brightness, smoothed over a pixel: 255 at a step
    from black to white, and less at lower ones. "surroundings" is the picture itself, [H, W, 3],
    of which `hide` makes a control image. The others are [H, W].

    Raises:
      InputError: there is no detector of this kind, or scikit-image is not installed.
    """
    check_detector(kind)
    return DETECTORS[kind](image)


def hide(
    picture: UInt8[np.ndarray, "H W 3"], hidden: Bool[np.ndarray, "H W"]
) -> UInt8[np.ndarray, "H W 3"]:
    """The control image of what is around a hole: black where the picture is hidden, and no darker
    than 64 where it is kept."""
    kept = _DARKEST + np.rint(picture * ((255 - _DARKEST) / 255))
    return np.where(hidden[..., None], 0, kept).astype(np.uint8)


def random_hole(shape: tuple[int, int], rng: np.random.Generator) -> Bool[np.ndarray, "H W"]:
    """What is hidden of a picture in training: up to three rectangles, each from an eighth to three
    quarters of its height and of its width, or, a quarter of the time, all but these."""
    hidden = np.zeros(shape, bool)
    for _ in range(rng.integers(1, _MOST_RECTANGLES, endpoint=True)):
        rows, columns = (_random_span(side, rng) for side in shape)
        hidden[rows, columns] = True
    return ~hidden if rng.random() < _OUTPAINTED else hidden


def _random_span(side: int, rng: np.random.Generator) -> slice:
    length = math.ceil(side * rng.uniform(1 / 8, 3 / 4))
    start = int(rng.integers(side - length, endpoint=True))
    return slice(start, start + length)


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
    SURROUNDINGS: lambda image: image,
}
