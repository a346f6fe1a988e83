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
      kind: `MAP`, or what is to be found in the files' pictures, of `control_maps.detect`.
      size: H and W, that of the images that are drawn.

    Raises:
      InputError: a file is missing or no image, or of another shape than the images.
    """
    return np.stack([_read(path, kind, size) for path in files])


def _read(path: Path, kind: str, size: tuple[int, int]) -> np.ndarray:
    pixels = _resized(path, _open(path), size)
    if kind != MAP:
        pixels = np.repeat(detect(kind, pixels)[..., None], 3, axis=-1)
    if pixels.min() == pixels.max():
        # Of edges it may be meant: a drawing without any.
        what = "control" if kind == MAP else f"control, its {kind},"
        logging.warning("the %s of %s is of one colour: it shows nothing", what, path)
    return pixels


def _open(path: Path) -> Image.Image:
    try:
        return transforms.decode(path.read_bytes())
    except OSError as error:
        reason = error.strerror or "it is no image, or damaged"
        raise InputError(f"the control image '{path}' cannot be read: {reason}") from error
    except (ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"the control image '{path}' cannot be read: {error}") from error


def _resized(path: Path, image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    if image.size == (width, height):
        return np.asarray(image)
    if not transforms.same_shape(image.size, (width, height)):
        raise InputError(
            f"the control image '{path}' is of {image.width}x{image.height} px, another shape than "
            f"the images of {width}x{height} px: crop it"
        )
    print(f"resized the control image {path} to {width}x{height} px")
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
