"""Reads the shapes, colours and places of `scenes` off the pixels of an image, and compares.

Nothing but the pixels is looked at, so samples of any model can be scored against their prompts.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
from PIL import Image
from scipy import ndimage

from llamagen_jax.scenes.world import BACKGROUND, COLORS, Scene

_SIDE = 64  # the shorter side that every image is read at
_SMALLEST = 0.01  # of the image's area that a thing covers
_LOWEST_OVERLAP = 0.7  # of a thing with the ideal shape; less is no shape at all


class Found(NamedTuple):
    """A thing in an image; `x` and `y` of its centre of mass are fractions of width and height."""

    color: str
    shape: str
    x: float
    y: float


class Score(NamedTuple):
    """Shares of images that show what their scenes hold, and in the right relation.

    `relation` counts images of two related things only, and as right only if the things are; it is
    NaN where there are none.
    """

    things: float
    relation: float


def score(images: np.ndarray, scenes: Sequence[Scene]) -> Score:
    """Compares uint8 images [N, H, W, 3] with the scenes that they should show."""
    verdicts = [compare(image, scene) for image, scene in zip(images, scenes, strict=True)]
    related = [relation for _, relation in verdicts if relation is not None]
    things = np.mean([things for things, _ in verdicts])
    return Score(float(things), float(np.mean(related)) if related else float("nan"))


def compare(image: np.ndarray, scene: Scene) -> tuple[bool, bool | None]:
    """Whether a uint8 image [H, W, 3] shows the things of a scene, and in the right relation.

    Of a scene without a relation the second is None; where the things are wrong, so is it.
    """
    found = find(image)
    expected = [thing.kind for thing in scene.things]
    things = sorted((thing.color, thing.shape) for thing in found) == sorted(expected)
    if not scene.relation:
        return things, None
    if not things:
        return False, False
    places = {(thing.color, thing.shape): np.array([thing.x, thing.y]) for thing in found}
    right, down = places[expected[1]] - places[expected[0]]
    return True, bool(right > abs(down) if scene.relation == "left of" else down > abs(right))


def find(image: np.ndarray) -> list[Found]:
    """The things in an image uint8 [H, W, 3].

    A pixel that blends a colour with the white background lies on the line between the two, so its
    difference from white tells the colour by its direction and the share of it by its length.
    Shapes are told by their overlap with ideal ones of the same centre and area.
    """
    scale = _SIDE / min(image.shape[:2])
    height, width = (round(side * scale) for side in image.shape[:2])
    small = Image.fromarray(image).resize((width, height), Image.Resampling.BOX)
    ink = np.array(BACKGROUND, np.float32) - np.asarray(small, np.float32)
    inks = np.array(BACKGROUND, np.float32) - np.array(list(COLORS.values()), np.float32)
    lengths = np.linalg.norm(inks, axis=1)
    nearest = np.argmax(ink @ (inks.T / lengths), axis=-1)
    covered = np.linalg.norm(ink, axis=-1) > lengths[nearest] / 2
    found = []
    for number, color in enumerate(COLORS):
        labelled = ndimage.label(covered & (nearest == number))
        parts, count = cast(tuple[np.ndarray, int], labelled)
        for part in range(1, count + 1):
            mask = np.asarray(ndimage.binary_fill_holes(parts == part))
            if mask.sum() >= _SMALLEST * mask.size:
                found.append(_classify(mask, color))
    return found


def _classify(mask: np.ndarray, color: str) -> Found:
    rows, columns = np.nonzero(mask)
    row, column = rows.mean(), columns.mean()
    y, x = np.indices(mask.shape) - np.array([row, column])[:, None, None]
    overlaps = {}
    for shape, ideal in _ideal_shapes(x, y, mask.sum()).items():
        overlaps[shape] = (mask & ideal).sum() / (mask | ideal).sum()
    shape = max(overlaps, key=overlaps.__getitem__)
    if overlaps[shape] < _LOWEST_OVERLAP:
        shape = "blob"
    height, width = mask.shape
    return Found(color, shape, (column + 0.5) / width, (row + 0.5) / height)


def _ideal_shapes(x: np.ndarray, y: np.ndarray, area: float) -> dict[str, np.ndarray]:
    """Masks of the shapes with this area in pixels, their centres of mass at x = y = 0."""
    # The triangle stands on a base of 2 r, is 1.8 r high, and has its centre at a third of that.
    r = np.sqrt(area / 1.8)
    below_top = y + 1.2 * r
    return {
        "circle": x**2 + y**2 <= area / np.pi,
        "square": np.maximum(abs(x), abs(y)) <= np.sqrt(area) / 2,
        "triangle": (below_top <= 1.8 * r) & (abs(x) <= below_top / 1.8),
    }
