"""Whether a tokenizer, a generator and their conditions belong together, told in minutes.

A generator that is used as it was trained finds the codes of real images more likely under their
own label or caption than under none, and under none than under another's; and guidance draws
samples of which that holds all the more. Each common mistake breaks one of these by a wide margin:
codes of another tokenizer, or of pixels in another range or crop, are no likelier than chance; with
labels in another order the own one is no better than another; with another row as the null
condition none is worse than another; guided the wrong way round, samples move away from their
condition. How images are resized shows on one that is drawn for it. Likelihoods do not tell: where
the background is plain, squashed images are likelier whatever the model was trained on.

Axes: N images, B batch, L codes, T condition tokens.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from llamagen_jax import sharding
from llamagen_jax.data import pipeline, transforms
from llamagen_jax.data.pipeline import DataConfig
from llamagen_jax.data.records import Manifest
from llamagen_jax.data.sources import Source
from llamagen_jax.errors import InputError
from llamagen_jax.evaluate import reconstructions
from llamagen_jax.evaluate.figures import Figure
from llamagen_jax.evaluate.image_sets import open_source
from llamagen_jax.evaluate.statistics import standard_error
from llamagen_jax.files import LocalPath
from llamagen_jax.generation import ImageGenerator
from llamagen_jax.image_tokenizer import ImageTokenizer, code_grid, on_all_devices, run_filled
from llamagen_jax.images import from_uint8, to_uint8
from llamagen_jax.losses import cross_entropy
from llamagen_jax.models.llama import Llama

# Of the mean differences that are judged: below it chance may have made them.
_STANDARD_ERRORS = 3
_RESIZE = "the resize of the images"
# Samples that guidance is judged by, and how strong it is there.
_GUIDED, _GUIDANCE_SCALE = 64, 2.0


def tokenizer_figures(
    tokenizer: ImageTokenizer, location: str, size: int, count: int, batch_size: int
) -> list[Figure]:
    """Whether reconstructions are nearer to their images than each image's mean colour is.

    Args:
      location: of images, see `generator_figures`.
      size: side in pixels of their centre crops.

    Raises:
      InputError: the images cannot be read, or the size does not fit.
    """
    code_grid(tokenizer, size)
    images = _read(location, size, count, None)["image"]
    run = on_all_devices(lambda t, x: t.decode(t.encode(from_uint8(x))), tokenizer)
    again = np.concatenate(
        [to_uint8(run_filled(run, batch, batch_size)) for batch in _split(images, batch_size)]
    )
    flat = np.broadcast_to(images.mean((1, 2), keepdims=True), images.shape)
    psnr = reconstructions.psnr(images, again)
    gain = psnr - reconstructions.psnr(images, flat)
    return [
        *resize_figures(size),
        Figure("PSNR", float(psnr.mean()), standard_error(psnr), f"of {len(images)} images, in dB"),
        _judged("  above their mean colours'", gain, "weights, or range of the pixels"),
    ]


def generator_figures(
    generator: ImageGenerator, location: str, count: int, batch_size: int
) -> list[Figure]:
    """Likelihoods of real images under their own condition, under none and under another's.

    Args:
      location: a folder of images by class or with captions, a dataset folder of images or of
        codes, or a folder of tar shards with captions.
      count: how many of them to take, evenly spread.
      batch_size: images at a time.

    Raises:
      InputError: they cannot be read, or have neither labels nor captions, as the generator needs.
    """
    config = generator.config
    rows, columns = config.grid
    if rows != columns:
        raise InputError(
            f"{generator.name} makes images of {generator.told_size(config.grid)}: it is compared "
            "with squares, so give its config a square grid_size"
        )
    size = rows * generator.tokenizer.downsampling
    batch = _read(location, size, count, config.condition)
    codes, resizing = batch.get("codes"), []
    if codes is None:
        resizing = resize_figures(size)
        run = on_all_devices(lambda t, x: t.encode(from_uint8(x)), generator.tokenizer)
        images = _split(batch["image"], batch_size)
        codes = np.concatenate([run_filled(run, part, batch_size) for part in images])
    codes = codes.reshape(len(codes), -1)
    if codes.shape[1] != config.code_length:
        raise InputError(
            f"{location} holds {codes.shape[1]} codes per image but the generator makes "
            f"{config.code_length}: give images, or codes of that size"
        )
    conditions = _conditions(generator, batch)
    order = np.random.default_rng(0).permutation(len(codes))
    others = {name: rows[order] for name, rows in conditions.items()}
    losses_of = _losses(generator, batch_size)
    own, none = losses_of(codes, conditions), losses_of(codes, conditions, drop=True)
    other = losses_of(codes, others)
    differ = (conditions["condition"] != others["condition"]).reshape(len(codes), -1).any(axis=1)
    if differ.sum() < 2:
        raise InputError(f"{location} has images of one condition alone: give several classes")
    chance = np.log(config.vocab_size)
    about = f"nats per code of {len(codes)} images"
    return [
        *resizing,
        Figure("loss", float(own.mean()), standard_error(own), f"{about}; chance is {chance:.3f}"),
        _judged("  below chance", chance - own, "tokenizer, crop, or range of the pixels"),
        _judged("  below none's", none - own, "labels, captions, or the null condition"),
        _judged("  below another's", (other - own)[differ], "the order of the labels"),
        _judged("none's below another's", (other - none)[differ], "the null condition"),
        _guidance(generator, conditions, losses_of, batch_size),
    ]


def resize_figures(size: int) -> list[Figure]:
    """Whether crops of images keep their proportions, and average what they reduce.

    Seen on an image of 3:2 that is reduced by half: ramps in both directions, and stripes of two
    pixels whose borders fall within the crop's. Squashed the ramps have proportions of 2:3; where
    pixels are picked instead of averaged, the stripes keep their contrast of 1.

    Args:
      size: side in pixels of the crop.
    """
    rows, columns = np.mgrid[: 2 * size, : 3 * size]
    across, down = (255 * at / columns.max() for at in (columns, rows))
    probe = np.stack([across, down, 255 * ((columns + 1) // 2 % 2)], axis=-1)
    crop = transforms.center_crop(Image.fromarray(probe.astype(np.uint8)), size).astype(float)
    proportions = np.ptp(crop[..., 1].mean(axis=1)) / np.ptp(crop[..., 0].mean(axis=0))
    contrast = crop[..., 2].std() / 127.5
    return [
        Figure(name, float(value), float("nan"), "pass" if right else f"FAIL: check {_RESIZE}")
        for name, value, right in (
            ("proportions of crops", proportions, abs(proportions - 1) < 0.1),
            ("contrast of fine stripes", contrast, contrast < 0.2),
        )
    ]


def _judged(name: str, difference: np.ndarray, suspect: str) -> Figure:
    """The mean of differences [N], which is right only where it is clearly positive."""
    mean, error = float(difference.mean()), standard_error(difference)
    passed = mean > _STANDARD_ERRORS * error
    return Figure(name, mean, error, "pass" if passed else f"FAIL: check {suspect}")


def _guidance(
    generator: ImageGenerator, conditions: Mapping, losses_of: Callable, batch_size: int
) -> Figure:
    """How much more guided samples have of their condition than unguided ones."""
    shown = {name: rows[:_GUIDED] for name, rows in conditions.items()}
    likelier = []
    for scale in (1.0, _GUIDANCE_SCALE):
        settings = generator.settings(seed=0, guidance_scale=scale, top_k=0, top_p=1.0)
        drawn = generator.sample(shown, settings, batch_size=batch_size)
        codes = np.concatenate([samples.codes for samples in drawn])
        likelier.append(losses_of(codes, shown, drop=True) - losses_of(codes, shown))
    return _judged("guidance's gain", likelier[1] - likelier[0], "the form of guidance")


def _losses(generator: ImageGenerator, batch_size: int) -> Callable[..., np.ndarray]:
    """A function of codes [N, L] and conditions: cross-entropy of each, float32 [N]."""
    model = generator.model

    def forward(llama: Llama, codes, condition, condition_mask, drop):
        T = llama.config.condition_length
        x = llama.embed_condition(condition, condition_mask, drop)
        x = jnp.concatenate([x, llama.embed_codes(codes[:, :-1])], axis=1)
        x, _ = llama.transform(x, jnp.arange(x.shape[1])[None], condition_mask)
        return llama.logits(x[:, T - 1 :])

    @jax.jit
    def losses(params: dict, codes, condition, drop, condition_mask=None) -> jax.Array:
        arguments = codes, condition, condition_mask, drop
        logits: Any = model.apply({"params": params}, *arguments, method=forward)
        return cross_entropy(logits, codes)

    def of(codes: np.ndarray, conditions: Mapping[str, np.ndarray], drop: bool = False):
        mesh = sharding.make_mesh(data=-1, fsdp=1, tensor=1)
        size = batch_size + -batch_size % jax.device_count()
        arrays = {"codes": codes, "drop": np.full(len(codes), drop), **conditions}
        parts = []
        for start in range(0, len(codes), size):
            rows = {name: array[start : start + size] for name, array in arrays.items()}
            rows = {
                name: np.resize(array, (size, *array.shape[1:])) for name, array in rows.items()
            }
            found = losses(generator.params, **sharding.put_batch(rows, mesh))
            parts.append(sharding.fetch(found)[: len(codes) - start])
        return np.concatenate(parts)

    return of


def _conditions(generator: ImageGenerator, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What `ImageGenerator.sample` takes for the images of a batch of `_read`."""
    if "caption" in batch:
        return generator.read(batch["caption"].tolist())
    if "features" in batch:
        return {"condition": batch["features"], "condition_mask": batch["mask"]}
    return {"condition": batch["label"]}


def _read(location: str, size: int, count: int, condition: str | None) -> dict[str, np.ndarray]:
    """Arrays of `pipeline.eval_batches` in one batch; captions of images as strings, "caption"."""
    source = open_source(location)
    if source.manifest and source.manifest.grids:
        raise InputError(f"{location} holds codes of several sizes: give images instead")
    spread = _Spread(source, np.linspace(0, len(source), count, endpoint=False, dtype=int))
    if len(source) <= count:
        spread = _Spread(source, np.arange(len(source)))
    captions: tuple = ()
    if condition == "text":
        names = spread[0].get("captions") or spread[0].get("text")
        if not names:
            raise InputError(f"{location} has no captions, which the generator reads: give some")
        captions = ((next(iter(names)), 1.0),)
    config = DataConfig(
        source="image_folder",
        train=LocalPath(location),
        eval=LocalPath(""),
        image_size=size,
        random_crop=False,
        random_flip=False,
        fast_decode=False,
        workers=0,
        caption_weights=captions,
        skip_small=False,
        background="white",
        exif_orientation=False,
    )
    reads: Any = "stored" if condition else None
    if captions and "captions" in spread[0]:
        reads = lambda caption: {"caption": np.array(caption)}  # noqa: E731
    batches = pipeline.eval_batches(spread, config, batch_size=len(spread), condition=reads)
    batch = next(batches)
    return {name: rows[batch["weight"] > 0] for name, rows in batch.items()}


@dataclasses.dataclass(frozen=True)
class _Spread:
    """A `Source` of some of another's records."""

    source: Source
    indices: np.ndarray

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    @property
    def credit(self) -> str:
        return self.source.credit

    @property
    def manifest(self) -> Manifest | None:
        return self.source.manifest

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict:
        return self.source[int(self.indices[index])]

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))

    def __repr__(self) -> str:
        return repr(self.source)


def _split(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
