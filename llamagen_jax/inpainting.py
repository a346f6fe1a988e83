"""Images of which a part is drawn anew: inpainting and, where that is a border, outpainting.

Axes: B batch, H W pixels, h w code grid, L codes.
"""

import io
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jaxtyping import Array, Bool, Int, Int32, UInt8
from PIL import Image, ImageOps
from scipy import ndimage

from llamagen_jax.data import transforms
from llamagen_jax.errors import InputError, naming
from llamagen_jax.image_tokenizer import ImageTokenizer
from llamagen_jax.images import from_uint8

# Of an image file: what it unpacks to has to fit in memory several times.
_MOST_PIXELS = 2**25
_HALF = 128


class Edit(NamedTuple):
    """An image, and what of it is drawn anew.

    Attributes:
      image: uint8 [H, W, 3], of the size that the generator makes.
      mask: bool [H, W], True at the pixels that are drawn.
    """

    image: UInt8[np.ndarray, "H W 3"]
    mask: Bool[np.ndarray, "H W"]

    def known(self, tokenizer: ImageTokenizer) -> Int32[np.ndarray, " L"]:
        """What `generate` takes as known of one sample: a code is drawn where its patch is masked.

        One masked pixel is enough. The tokenizer, whose codes depend on their surroundings, is
        shown none of those: the nearest pixel that is kept stands in the place of each.
        """
        side = tokenizer.downsampling
        h, w = (pixels // side for pixels in self.mask.shape)
        drawn = self.mask.reshape(h, side, w, side).any(axis=(1, 3)).ravel()
        if drawn.all():
            return np.full(h * w, -1, np.int32)
        nearest: Any = ndimage.distance_transform_edt(
            self.mask, return_distances=False, return_indices=True
        )
        codes = _encode(tokenizer, self.image[tuple(nearest)])
        return np.where(drawn, -1, codes).astype(np.int32)

    def paste(self, images: UInt8[np.ndarray, "*B H W 3"]) -> UInt8[np.ndarray, "*B H W 3"]:
        """The images with every pixel that is not masked as it was, up to a hard edge."""
        return np.where(self.mask[..., None], images, self.image)


@jax.jit
def _encode(tokenizer: ImageTokenizer, image: UInt8[Array, "H W 3"]) -> Int[Array, " L"]:
    return tokenizer.encode(from_uint8(image)[None]).ravel()


def read_edit(
    image: bytes,
    mask: bytes | None,
    size: tuple[int, int],
    names: tuple[str, str] = ("image", "mask"),
) -> Edit:
    """An edit from the bytes of image files.

    A mask that is transparent somewhere masks what is transparent there, as OpenAI's do; any other
    masks what is white. Without one, what is transparent in the image is masked.

    Args:
      image: is resized with a warning where only its size is another.
      mask: of the same size as the image.
      size: H and W of the edit.
      names: of the two, for messages, which begin with them.

    Raises:
      InputError: one cannot be read, its size does not fit, or nothing is masked.
    """
    height, width = size
    with naming(names[0]):
        picture, alpha = _open(image, background="" if mask is None else "white")
        if not transforms.same_shape(picture.size, (width, height)):
            raise InputError(
                f"{_told(picture)} have another aspect ratio than the {width}x{height} px that are "
                "drawn: crop or pad it"
            )
        if mask is None and alpha is None:
            raise InputError("nothing is transparent: give a mask of what is to be drawn")
    name = names[0] if mask is None else names[1]
    with naming(name):
        masked = alpha if mask is None else _masked(mask, picture)
        if masked is None or not masked.any():
            raise InputError("masks nothing: make white or transparent what is to be drawn")
    if masked.all():
        logging.warning("%s: masks all of the image, of which nothing is kept", name)
    if picture.size != (width, height):
        logging.warning("%s: resized from %s to %dx%d", names[0], _told(picture), width, height)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        share = Image.fromarray(masked.astype(np.float32))
        masked = np.asarray(share.resize((width, height), Image.Resampling.BOX)) > 0
    return Edit(np.asarray(picture), masked)


def _masked(mask: bytes, picture: Image.Image) -> Bool[np.ndarray, "H W"]:
    """What a mask file masks of the picture."""
    grey, transparent = _open(mask, background="")
    if grey.size != picture.size:
        raise InputError(f"{_told(grey)} are not the image's {_told(picture)}")
    if transparent is not None:
        return transparent
    return np.asarray(grey.convert("L")) >= _HALF


def _open(data: bytes, background: str) -> tuple[Image.Image, Bool[np.ndarray, "H W"] | None]:
    """The RGB image of a file, and where it is transparent; None where it is not anywhere.

    Args:
      background: of `transforms.decode`.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            num_pixels = opened.width * opened.height
            if num_pixels <= _MOST_PIXELS:
                rgb = transforms.decode(data, background=background, exif_orientation=True)
                transparent = _transparent(ImageOps.exif_transpose(opened))
    # A damaged file raises errors of any type.
    except Exception as error:
        raise InputError(f"no image that can be read ({type(error).__name__})") from error
    if num_pixels > _MOST_PIXELS:
        raise InputError(f"more than {_MOST_PIXELS} pixels: shrink it")
    return rgb, transparent if transparent.any() else None


def _transparent(image: Image.Image) -> Bool[np.ndarray, "H W"]:
    if not image.has_transparency_data:
        return np.zeros((image.height, image.width), bool)
    return np.asarray(image.convert("RGBA").getchannel("A")) < _HALF


def _told(image: Image.Image) -> str:
    return f"{image.width}x{image.height} px"
