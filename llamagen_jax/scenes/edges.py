"""Whether drawings have the edges that their control images ask for.

Axes: N images, H W pixels.
"""

import numpy as np
from jaxtyping import Float, UInt8
from scipy import ndimage

from llamagen_jax.control_maps import detect


def edge_overlaps(
    images: UInt8[np.ndarray, "N H W 3"], controls: UInt8[np.ndarray, "N H W 3"]
) -> Float[np.ndarray, " N"]:
    """Intersection over union of each image's canny edges with those of its control.

    An edge pixel lies in the intersection if the other has one there or in the eight pixels around,
    since a step between two pixels may be found at either. Both sides count half, so that without
    that tolerance it is the usual intersection over union.

    Args:
      images: drawings.
      controls: of `control_maps.detect` as images: edges are brighter than 127.

    Returns:
      float [N] in [0, 1]; 1 where neither has an edge.
    """
    pairs = zip(images, controls, strict=True)
    return np.array([_overlap(detect("canny", i) > 127, c[..., 0] > 127) for i, c in pairs])


def _overlap(found: np.ndarray, wanted: np.ndarray) -> float:
    around = np.ones((3, 3))
    matched = (found & ndimage.binary_dilation(wanted, around)).sum()
    matched += (wanted & ndimage.binary_dilation(found, around)).sum()
    union = found.sum() + wanted.sum() - matched / 2
    return float(matched / 2 / union) if union else 1.0
