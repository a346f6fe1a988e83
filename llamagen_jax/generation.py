"""From a generator, its tokenizer and its text encoder to images: what commands and previews call.

Axes: B samples, N conditions, L codes, T condition tokens, H W pixels.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from llamagen_jax import seeds, sharding, zoo
from llamagen_jax.classes import find_class, full_names
from llamagen_jax.errors import InputError
from llamagen_jax.image_tokenizer import ImageTokenizer, check_codes, code_grid, open_tokenizer
from llamagen_jax.images import resize, to_uint8
from llamagen_jax.models.llama import Llama, LlamaConfig
from llamagen_jax.sampling import speculative
from llamagen_jax.sampling.generate import generate
from llamagen_jax.sampling.settings import SamplingSettings
from llamagen_jax.text.encoder import TextEncoder
from llamagen_jax.text.prompts import encode_prompts, open_encoder
from llamagen_jax.weights import export, kinds

# Where a caller leaves them open, by the generator's condition; for text the original's settings.
_DEFAULTS = {"class": {}, "text": {"guidance_scale": 7.5, "top_k": 1000}}


def settings_for(config: LlamaConfig, **fields: Any) -> SamplingSettings:
    """Settings with those fields that are not None, and else what suits the condition."""
    given = {name: value for name, value in fields.items() if value is not None}
    return SamplingSettings(**(_DEFAULTS[config.condition] | given))


class Samples(NamedTuple):
    """Codes, int32 [B, L], and the uint8 images [B, H, W, 3] that they decode to."""

    codes: np.ndarray
    images: np.ndarray


def generate_images(
    model: Llama,
    params: dict,
    tokenizer: ImageTokenizer,
    condition: jax.Array | np.ndarray,
    settings: SamplingSettings,
    *,
    size: int | None = None,
    draft: tuple[Llama, dict] | None = None,
    **rows: jax.Array | np.ndarray | None,
) -> Samples:
    """Samples and decodes one batch, on the devices where the parameters are.

    Args:
      model, params, condition, draft: of `generate`.
      tokenizer: that the generator was trained with, as a pytree.
      size: side in pixels to resize the images to as for the published FIDs; None leaves them.
      **rows: `condition_mask`, `sample_ids`, `known` and `control` of `generate`.
    """
    codes = generate(model, params, condition, settings=settings, draft=draft, **rows)
    images = _decode(model.config.grid, size, tokenizer, codes)
    return Samples(sharding.fetch(codes), to_uint8(sharding.fetch(images)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _decode(grid: tuple[int, int], size: int | None, tokenizer: ImageTokenizer, codes: jax.Array):
    images = tokenizer.decode(codes.reshape(-1, *grid))
    return resize(images, size) if size else images


@dataclasses.dataclass(frozen=True)
class ImageGenerator:
    """A generator with all it needs to make images.

    Attributes:
      name: of the generator, as it was given.
      model, params: the transformer, laid out by `Llama.for_decoding`.
      tokenizer: turns its codes into pixels.
      text_encoder: folder of the T5 that reads prompts for it; None for classes.
      class_names: by label; () where they are not known.
      draft: small generator of the same codes for the speculative decoder, or None.
    """

    name: str
    model: Llama
    params: dict
    tokenizer: ImageTokenizer
    text_encoder: str | None
    class_names: tuple[str, ...]
    draft: tuple[Llama, dict] | None = None

    @classmethod
    def open(
        cls,
        name: str,
        tokenizer: str,
        text_encoder: str | None = None,
        draft: str | None = None,
        dtype: str | None = None,
        weights: str = "float",
        mesh: Mesh | None = None,
    ) -> "ImageGenerator":
        """Opens what `zoo.load` finds under these names or paths.

        Args:
          dtype: that the transformers compute in; None for that of their configurations.
          weights: of `Llama.for_decoding`, for the transformers.
          mesh: of `sharding.make_mesh`, which `sharding.DECODING_RULES` split the generator's
            weights over; all others, and all where it is None, are copied to every device.

        Raises:
          InputError: a model is missing, damaged or of another kind, or the two do not fit.
        """
        model, params = _load_generator(name, dtype)
        opened = open_tokenizer(tokenizer)
        _check_fit(name, model.config, tokenizer, opened)
        recorded = export.recorded(name).get("class_names", ())
        mesh = mesh or sharding.make_mesh(data=-1, fsdp=1, tensor=1)
        model, params = model.for_decoding(params, weights)
        everywhere = jax.NamedSharding(mesh, jax.P())
        opened = jax.device_put(opened, everywhere)
        split = sharding.tree_shardings(params, sharding.DECODING_RULES, mesh)
        params = jax.device_put(params, split)
        opened_draft = None
        if draft:
            draft_model, draft_params = _load_generator(draft, dtype)
            speculative.check_draft(model.config, draft_model.config)
            draft_model, draft_params = draft_model.for_decoding(draft_params, weights)
            opened_draft = draft_model, jax.device_put(draft_params, everywhere)
        names = full_names(recorded, model.config.num_classes)
        return cls(name, model, params, opened, text_encoder, names, opened_draft)

    @property
    def config(self) -> LlamaConfig:
        return self.model.config

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """Grids that the model is trained for by their WIDTHxHEIGHT in pixels; its own first."""
        grids = (self.config.grid, *self.config.trained_grids)
        return {self.told_size(grid): grid for grid in grids}

    def told_size(self, grid: tuple[int, int]) -> str:
        """WIDTHxHEIGHT in pixels of the images of a grid."""
        rows, columns = (side * self.tokenizer.downsampling for side in grid)
        return f"{columns}x{rows}"

    def for_size(self, size: tuple[int, int], *, extrapolate: bool = False) -> "ImageGenerator":
        """The same generator, for images of (width, height) in pixels.

        Args:
          extrapolate: of `Llama.for_grid`.

        Raises:
          InputError: the downsampling does not divide the size, or the model is not trained for it
            and is not to extrapolate.
        """
        width, height = size
        grid = code_grid(self.tokenizer, (height, width))
        if grid not in self.config.trained_grids and not extrapolate:
            raise InputError(
                f"{self.name} is not trained for images of {width}x{height}, but for "
                f"{', '.join(self.sizes)}"
            )
        model, draft = self.model.for_grid(grid, extrapolate=extrapolate), self.draft
        if draft:
            draft = draft[0].for_grid(grid, extrapolate=extrapolate), draft[1]
        return dataclasses.replace(self, model=model, draft=draft)

    def settings(self, **fields: Any) -> SamplingSettings:
        """Of `settings_for` this generator."""
        return settings_for(self.config, **fields)

    def labels(self, wanted: Sequence[str]) -> np.ndarray:
        """Labels, int32 [N], of class numbers or names; InputError where one is none."""
        find = functools.partial(
            find_class, names=self.class_names, num_classes=self.config.num_classes
        )
        return np.array([find(text) for text in wanted], np.int32)

    def read(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """What `sample` takes for prompts; opens the text encoder for this one call."""
        return encode_prompts(self.open_text_encoder(), prompts)

    def open_text_encoder(self) -> TextEncoder:
        """Of `open_encoder`; InputError where the generator was opened without one."""
        if self.text_encoder is None:
            raise InputError(f"{self.name} needs a text encoder, the T5 it was trained with")
        return open_encoder(self.text_encoder, self.config)

    def sample(
        self,
        conditions: Mapping[str, np.ndarray],
        settings: SamplingSettings,
        *,
        count: int = 1,
        first: int = 0,
        start: int = 0,
        batch_size: int = 32,
        size: int | None = None,
    ) -> Iterator[Samples]:
        """Yields `count` images of each condition in turn, a batch at a time.

        Image number i is of condition i // count and has sample id i, so it depends neither on the
        batch size nor on the devices.

        Args:
          conditions: "condition" and, for text, "condition_mask"; "known" where codes are, and
            "control" where it is given: arrays [N, ...], what `generate` takes.
          first: the number of the first of these conditions, where others came before.
          start: images below this number are left out.
          batch_size: rounded up to a multiple of the number of devices.
          size: of `generate_images`.
        """
        mesh = sharding.make_mesh(data=-1, fsdp=1, tensor=1)
        numbers = np.arange(first * count, (first + len(conditions["condition"])) * count)
        devices = jax.device_count()
        batch_size = -(-min(batch_size, len(numbers)) // devices) * devices
        for begin in range(max(start - numbers[0], 0), len(numbers), batch_size):
            # The last batch wraps around, so that every batch runs the same compiled program.
            ids = np.resize(numbers[begin : begin + batch_size], batch_size)
            rows = {name: array[ids // count - first] for name, array in conditions.items()}
            batch = sharding.put_batch({"sample_ids": seeds.halves(ids), **rows}, mesh)
            samples = generate_images(
                self.model,
                self.params,
                self.tokenizer,
                settings=settings,
                size=size,
                draft=self.draft,
                **batch,
            )
            yield Samples(*(rows[: len(numbers) - begin] for rows in samples))


def _load_generator(name: str, dtype: str | None) -> tuple[Llama, dict]:
    model, params = zoo.load(name)
    if kinds.kind_of(model.config).role != "generator":
        raise InputError(f"{name} is a {kinds.describe(model.config)}; expected a transformer")
    if dtype:
        model = Llama(dataclasses.replace(model.config, dtype=dtype))
    return model, params


def _check_fit(
    name: str, config: LlamaConfig, tokenizer_name: str, tokenizer: ImageTokenizer
) -> None:
    check_codes(tokenizer_name, tokenizer, config.vocab_size)
    published, (rows, _) = Path(name).stem, config.grid
    size = rows * tokenizer.downsampling
    if published in zoo.PUBLISHED and zoo.PUBLISHED[published].resolution != size:
        raise InputError(
            f"the generator {name} with the tokenizer {tokenizer_name} makes images of {size} px, "
            "unlike its name; name the tokenizer it was trained with"
        )
