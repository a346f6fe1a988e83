"""Image tokenizers: what is asked of one, how a file of one is opened, how all devices run it.

Axes: B batch, H W pixels, h w code grid.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import flax.struct
import jax
import numpy as np
from jaxtyping import Array, Float, Shaped

from llamagen_jax import sharding, zoo
from llamagen_jax.errors import InputError
from llamagen_jax.weights import kinds

_Frozen = TypeVar("_Frozen")


class ImageTokenizer(Protocol):
    """Images to a grid of codes and back, by weights that are not trained here.

    Attributes:
      downsampling: side in pixels of the image patch that one code stands for.
      codebook_size: how many different codes there are; None for continuous latents.
    """

    @property
    def downsampling(self) -> int: ...

    @property
    def codebook_size(self) -> int | None: ...

    def encode(self, images: Float[Array, "B H W 3"]) -> Shaped[Array, "B h w ..."]:
        """Images in [-1, 1] to codes, int32 [B, h, w], or to latents, float32 [B, h, w, Z]."""
        ...

    def decode(self, codes: Shaped[Array, "B h w ..."]) -> Float[Array, "B H W 3"]:
        """Codes or latents to images, roughly in [-1, 1]."""
        ...


@flax.struct.dataclass
class ModelTokenizer:
    """An `ImageTokenizer` of a module such as `VQGAN`, as a pytree of its parameters.

    Jitted functions take it as an argument, so that its weights are no constants of theirs.
    """

    model: Any = flax.struct.field(pytree_node=False)
    params: Any

    @property
    def downsampling(self) -> int:
        return self.model.config.downsampling

    @property
    def codebook_size(self) -> int | None:
        return self.model.config.codebook_size

    def encode(self, images: Float[Array, "B H W 3"]) -> Shaped[Array, "B h w ..."]:
        return self.model.apply({"params": self.params}, images, method="encode")

    def decode(self, codes: Shaped[Array, "B h w ..."]) -> Float[Array, "B H W 3"]:
        return self.model.apply({"params": self.params}, codes, method="decode")


def open_tokenizer(name: str, continuous: bool = False) -> ModelTokenizer:
    """The tokenizer that `zoo.load` finds under a name or path, with parameters on the host.

    Args:
      continuous: whether latents will do where there are no codes.

    Raises:
      InputError: of `zoo.load`, or it is another kind of model.
    """
    model, params = zoo.load(name)
    if kinds.kind_of(model.config).role != "tokenizer":
        raise InputError(f"{name} is a {kinds.describe(model.config)}; expected a tokenizer")
    if model.config.codebook_size is None and not continuous:
        raise InputError(
            f"{name} is a {kinds.describe(model.config)}; expected one of codes, such as a VQGAN"
        )
    return ModelTokenizer(model, params)


def check_codes(tokenizer_name: str, tokenizer: ImageTokenizer, num_codes: int) -> None:
    """Raises InputError for a tokenizer of another codebook than the generator's."""
    if tokenizer.codebook_size != num_codes:
        raise InputError(
            f"the tokenizer {tokenizer_name} has {tokenizer.codebook_size} codes but the "
            f"generator {num_codes}; name the tokenizer it was trained with"
        )


def code_grid(tokenizer: ImageTokenizer, image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the codes of images of a side, or (height, width), in pixels.

    Raises:
      InputError: the tokenizer's downsampling does not divide the size.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    downsampling = tokenizer.downsampling
    if min(height, width) < 1 or height % downsampling or width % downsampling:
        told = width if width == height else f"{width}x{height}"
        raise InputError(
            f"image size {told} must be a positive multiple of the tokenizer's downsampling "
            f"{downsampling}"
        )
    return height // downsampling, width // downsampling


def tile_codes(tokenizer: ImageTokenizer, tile_size: int) -> int:
    """Side in codes of the tiles of `decode_tiled`, from their side in pixels.

    Raises:
      InputError: they are no whole number of codes, or too few to overlap.
    """
    downsampling = tokenizer.downsampling
    if tile_size % downsampling or tile_size < 4 * downsampling:
        raise InputError(
            f"tile size {tile_size} must be a multiple of the tokenizer's downsampling "
            f"{downsampling}, and at least {4 * downsampling}"
        )
    return tile_size // downsampling


def decode_tiled(
    decode: Callable[[np.ndarray], Any], codes: np.ndarray, tile: int, downsampling: int
) -> Float[np.ndarray, "B H W 3"]:
    """Decodes grids of any size in tiles of one size, in the device memory that a tile takes.

    The tiles are spread evenly and overlap by a quarter or more, where one fades into the next. A
    decoder that looks at no other code than a pixel's own gives what it gives of the whole grid.
    Others see where a tile ends, and the statistics of their group norms and their attention are
    those of the tile alone, so that contrast and colours differ a little from the whole and between
    tiles.

    Args:
      decode: codes or latents [B, t, u, ...] to float images [B, t x downsampling, u x
        downsampling, 3]; all calls have the same shapes.
      codes: [B, h, w, ...].
      tile: side of the tiles in codes; a side of the grid that is not longer is not cut.

    Returns:
      float32 images on the host.
    """
    B, h, w = codes.shape[:3]
    images = np.zeros((B, h * downsampling, w * downsampling, 3), np.float32)
    tiles = itertools.product(_tiles(h, tile, downsampling), _tiles(w, tile, downsampling))
    for (rows, y, down), (columns, x, across) in tiles:
        decoded = np.asarray(decode(codes[:, rows, columns]), np.float32)
        images[:, y, x] += down[:, None, None] * across[:, None] * decoded
    return images


def _tiles(side: int, tile: int, downsampling: int) -> list[tuple[slice, slice, np.ndarray]]:
    """The tiles along a side of codes: their codes, their pixels, and their share in those.

    The shares, float32 [pixels], of all tiles in a pixel sum to one.
    """
    tile = min(tile, side)
    overlap = tile // 4
    count = math.ceil((side - overlap) / (tile - overlap))
    starts = np.linspace(0, side - tile, count).round().astype(int)
    codes = [slice(start, start + tile) for start in starts]
    pixels = [slice(s.start * downsampling, s.stop * downsampling) for s in codes]
    to_edge = np.arange(tile * downsampling) + 0.5
    to_edge = np.minimum(to_edge, to_edge[::-1])
    total = np.zeros(side * downsampling)
    for span in pixels:
        total[span] += to_edge
    shares = [(to_edge / total[span]).astype(np.float32) for span in pixels]
    return list(zip(codes, pixels, shares, strict=True))


def run_filled(run: Callable[[np.ndarray], Any], batch: np.ndarray, size: int) -> Any:
    """What `run` makes of a batch [B, ...], as host arrays [B, ...].

    It is filled up to `size` rows, and to a multiple of the number of devices, so that batches of
    up to that size all run the same program.

    Args:
      run: of `on_all_devices`.
    """
    size += -size % jax.device_count()
    made = run(np.resize(batch, (size, *batch.shape[1:])))
    return jax.tree.map(lambda rows: np.asarray(rows)[: len(batch)], made)


def on_all_devices(
    function: Callable[[_Frozen, jax.Array], jax.Array], frozen: _Frozen
) -> Callable[[np.ndarray], jax.Array]:
    """`function(frozen, batch)` as a function of batches that the number of devices divides.

    Args:
      frozen: a pytree such as a `ModelTokenizer`, copied to every device once.
    """
    mesh = sharding.make_mesh(data=-1, fsdp=1, tensor=1)
    frozen = jax.device_put(frozen, jax.NamedSharding(mesh, jax.P()))
    jitted = jax.jit(function)
    return lambda batch: jitted(frozen, sharding.put_batch({"batch": batch}, mesh)["batch"])
