"""Image tokenizers: what is asked of one, how a file of one is opened, how all devices run it.

Axes: B batch, H W pixels, h w code grid.
"""

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


def code_grid(tokenizer: ImageTokenizer, image_size: int) -> tuple[int, int]:
    """Rows and columns of the codes of square images of this size.

    Raises:
      InputError: the tokenizer's downsampling does not divide the size.
    """
    if image_size < 1 or image_size % tokenizer.downsampling:
        raise InputError(
            f"image size {image_size} must be a positive multiple of the tokenizer's downsampling "
            f"{tokenizer.downsampling}"
        )
    side = image_size // tokenizer.downsampling
    return side, side


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
