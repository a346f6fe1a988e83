"""Which emoji an image shows: its skin tone by colour, and the nearest of all originals."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from llamagen_jax.data import emoji_source, transforms
from llamagen_jax.data.emoji_source import TONES, Emoji
from llamagen_jax.images import from_uint8
from llamagen_jax.models.lpips import LPIPS

# What OpenMoji fills skins with, of each of `TONES`.
_SKINS = np.array(
    [
        (0xFC, 0xEA, 0x2B),
        (0xFA, 0xDC, 0xBC),
        (0xDE, 0xBB, 0x90),
        (0xC1, 0x9A, 0x65),
        (0xA5, 0x79, 0x39),
        (0x6A, 0x46, 0x2F),
    ],
    np.float32,
)
_SKIN_DIFFERENCE, _LEAST_SKIN = 16, 8  # of a colour's channels; pixels
_PIXELS = 16  # side at which pixels are compared
_BLOCK = 32


class Right(NamedTuple):
    """Shares of images whose nearest original is the right one, or has that of it."""

    emoji: float
    role: float
    tone: float


def originals(emoji: Sequence[Emoji], size: int) -> np.ndarray:
    """The pictures, uint8 [N, size, size, 3]."""
    pictures = (transforms.decode(emoji_source.draw(e, size)) for e in emoji)
    return np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])


def skin_tones(pictures: np.ndarray, images: np.ndarray, emoji: Sequence[Emoji]) -> float:
    """How often the mean colour of an image over the original's skin is nearest to the right tone.

    Args:
      pictures: the originals of `emoji`, uint8 [N, H, W, 3]; those that show hardly any skin, or
        none, do not count.
      images: what is to look like them, uint8 [N, H, W, 3].
    """
    right = []
    for picture, image, one in zip(pictures, images, emoji, strict=True):
        tone = TONES.index(one.tone or "")
        skin = (np.abs(picture - _SKINS[tone]) <= _SKIN_DIFFERENCE).all(axis=-1)
        if skin.sum() >= _LEAST_SKIN:
            distances = np.linalg.norm(image[skin].mean(axis=0) - _SKINS, axis=-1)
            right.append(distances.argmin() == tone)
    return float(np.mean(right))


def nearest_by_pixels(images: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    """Of each image, uint8 [N, H, W, 3], the number of the nearest picture by coarse pixels."""
    coarse = [
        np.stack([np.asarray(_coarse(image), np.float32).reshape(-1) for image in part])
        for part in (images, pictures)
    ]
    return _distances(*coarse).argmin(axis=1)


def nearest_by_lpips(images: np.ndarray, pictures: np.ndarray, params: Any) -> np.ndarray:
    """Of each image, uint8 [N, H, W, 3], the number of the nearest picture by LPIPS.

    Args:
      params: of `weights.lpips.load`.
    """
    # Not donated and not constants: one copy of VGG for every block.
    run = jax.jit(lambda p, x: LPIPS().apply({"params": p}, from_uint8(x), method="features"))
    own = np.concatenate([np.asarray(run(params, block)) for block in _blocks(images)])
    distances = [_distances(own, np.asarray(run(params, block))) for block in _blocks(pictures)]
    return np.concatenate(distances, axis=1).argmin(axis=1)


def right(nearest: np.ndarray, everything: Sequence[Emoji], wanted: Sequence[Emoji]) -> Right:
    """What the nearest originals, numbers in `everything`, have of the wanted ones."""
    found = [everything[number] for number in nearest]
    pairs = list(zip(found, wanted, strict=True))
    return Right(
        *(
            float(np.mean([getattr(a, field) == getattr(b, field) for a, b in pairs]))
            for field in ("text", "role", "tone")
        )
    )


def _coarse(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image).resize((_PIXELS, _PIXELS), Image.Resampling.BOX)


def _blocks(images: np.ndarray) -> list[np.ndarray]:
    return [images[start : start + _BLOCK] for start in range(0, len(images), _BLOCK)]


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances [N, M] of rows [N, C] and [M, C], less what each row of `a` adds to all of
    its own, which would be computed anew for every block."""
    return (b**2).sum(axis=1) - 2 * (a @ b.T)
