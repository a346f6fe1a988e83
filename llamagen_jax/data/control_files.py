"""Files of control images as a generator reads them.

Axes: N files, H W pixels.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging
from PIL import Image

from llamagen_jax.control_maps import detect
from llamagen_jax.data import image_files, transforms
from llamagen_jax.errors import InputError

# What the files are: control maps themselves, or, by a name of `control_maps.DETECTORS`, pictures.
MAP = "map"


def files_of(paths: Sequence[str]) -> list[Path]:
    """The files that are named, or those of the one folder that is named, by their names."""
    if len(paths) == 1 and Path(paths[0]).is_dir():
        folder = Path(paths[0])
        files = [p for p in folder.iterdir() if p.suffix.lower() in image_files.image_suffixes()]
        if not files:
            raise InputError(f"the folder '{folder}' has no images: give control images")
        return sorted(files)
    return list(map(Path, paths))


def read_control(files: Sequence[Path], kind: str, size: tuple[int, int]) -> np.ndarray:
    """Control images, uint8 [N, H, W, 3].

    A note tells of files of another size, which are resized. Transparent pixels are white.

    Args:
      kind: `MAP`, or the edges that are to be found in the files' pictures, of
        `control_maps.detect`.
      size: H and W, that of the images that are drawn.

    Raises:
      InputError: a file is missing or no image, or of another shape than the images.
    """
    return np.stack([as_control(_bytes(path), f"'{path}'", kind, size) for path in files])


def as_control(data: bytes, name: str, kind: str, size: tuple[int, int]) -> np.ndarray:
    """The control image, uint8 [H, W, 3], of the bytes of a file that messages call `name`.

    The rest is as of `read_control`.
    """
    pixels = _resized(_decoded(data, name), name, size)
    if kind != MAP:
        pixels = np.asarray(Image.fromarray(detect(kind, pixels)).convert("RGB"))
    if pixels.min() == pixels.max():
        # It may be meant: a drawing without any edges.
        what = "" if kind == MAP else f", its {kind}"
        logging.warning("the control image %s%s is of one colour: it shows nothing", name, what)
    return pixels


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"the control image '{path}' cannot be read: {error.strerror}") from error


def _decoded(data: bytes, name: str) -> Image.Image:
    try:
        return transforms.decode(data)
    # Readers and decoders raise errors of any type on damaged bytes.
    except Exception as error:
        raise InputError(f"the control image {name} is no image, or damaged ({error})") from error


def _resized(image: Image.Image, name: str, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    if image.size == (width, height):
        return np.asarray(image)
    if not transforms.same_shape(image.size, (width, height)):
        raise InputError(
            f"the control image {name} is of {image.width}x{image.height} px, another shape than "
            f"the images of {width}x{height} px: crop it"
        )
    logging.warning("resized the control image %s to %dx%d px", name, width, height)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
