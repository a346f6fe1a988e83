"""How good the images of a run are, in figures, while it trains.

Axes: B batch, N images, H W pixels.
"""

import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from llamagen_jax import seeds, sharding
from llamagen_jax.data.sources import Source
from llamagen_jax.errors import InputError, naming
from llamagen_jax.evaluate import features, images, tokenizers
from llamagen_jax.evaluate.features import Network
from llamagen_jax.evaluate.image_sets import ImageSet
from llamagen_jax.evaluate.statistics import Moments, rank_warning
from llamagen_jax.generation import generate_images
from llamagen_jax.image_tokenizer import ModelTokenizer
from llamagen_jax.images import from_uint8, to_uint8
from llamagen_jax.models.llama import Llama
from llamagen_jax.models.vqgan import VQGAN
from llamagen_jax.sampling.settings import SamplingSettings
from llamagen_jax.training.config import GeneratorTraining, TokenizerTraining

# One pass over the held-out data, as steps take it; called for each pass.
Batches = Callable[[], Iterator[dict[str, jax.Array]]]
# From parameters and held-out batches to figures by name.
Measure = Callable[[dict, Batches], dict[str, float]]

# Names of figures in the log.
_LOGGED = {"FID": "fid", "sFID": "sfid", "IS": "inception_score"}
# Whose figures: of the papers.
_PROTOCOL = "adm"


def open_reconstructions(config: TokenizerTraining, held_out: Source) -> Measure:
    """The rFID of the held-out images, as `evaluate reconstructions` computes it.

    Raises:
      InputError: the network cannot be opened or does not take such images.
    """
    network = _open_network(config, config.data.image_size, len(held_out))
    model, size = VQGAN(config.model), config.batch_size
    reference: list[Moments] = []

    @jax.jit
    def round_trip(params: dict, pixels: jax.Array) -> Any:
        return model.apply({"params": params}, from_uint8(pixels))

    def measure(params: dict, batches: Batches) -> dict[str, float]:
        def reconstruct(pixels: jax.Array) -> np.ndarray:
            return to_uint8(sharding.fetch(round_trip(params, pixels).reconstruction))

        def images_of(function: Callable[[jax.Array], np.ndarray]) -> ImageSet:
            def read(_: int) -> Iterator[np.ndarray]:
                for batch in batches():
                    yield from _whole(batch, function(batch["image"]))

            return ImageSet("held-out images", len(held_out), read)

        with tempfile.TemporaryDirectory() as folder:
            if not reference:
                real = images_of(sharding.fetch)
                found = features.compute(real, network, Path(folder) / "reference", size)
                reference.append(features.moments(found.pool))
            made = images_of(reconstruct)
            found = features.compute(made, network, Path(folder) / "own", size)
            return {"rfid": tokenizers.rfid(reference[0], found.pool).value}

    return measure


def open_samples(config: GeneratorTraining, tokenizer: ModelTokenizer, mesh: Mesh) -> Measure:
    """FID, sFID and Inception Score of samples, as `evaluate images` computes them.

    Samples are drawn as previews are: of the classes in turn, or of the held-out captions or
    controls.

    Raises:
      InputError: the network or the reference cannot be opened, or do not fit.
    """
    count, size = config.evaluate.samples, config.batch_size
    # Stored codes do not depend on the image size in the configuration.
    side = config.model.grid[0] * tokenizer.downsampling
    network = _open_network(config, side, count)
    with naming("config.evaluate.reference"), tempfile.TemporaryDirectory() as folder:
        reference = images.open_reference(
            config.evaluate.reference, network, side, size, Path(folder)
        ).statistics
    tokenizer = jax.device_put(tokenizer, jax.NamedSharding(mesh, jax.P()))

    def measure(params: dict, batches: Batches) -> dict[str, float]:
        def drawn(_: int) -> Iterator[np.ndarray]:
            return itertools.islice(_samples(config, tokenizer, params, batches), count)

        with tempfile.TemporaryDirectory() as folder:
            found = features.compute(ImageSet("samples", count, drawn), network, Path(folder), size)
            figures = images.statistics_figures(_PROTOCOL, found, found.statistics(), reference)
            return {_LOGGED[f.name]: f.value for f in figures if f.name in _LOGGED}

    return measure


def _open_network(config: TokenizerTraining | GeneratorTraining, side: int, count: int) -> Network:
    """The network of FID, which takes images of `side` pixels; `count` will be compared."""
    if jax.process_count() > 1:
        raise InputError(
            f"config.evaluate.every={config.evaluate.every} works in one process alone: set it to "
            "0 and run `python -m llamagen_jax.evaluate` on the work folder"
        )
    with naming("config.evaluate.network"):
        network = Network.open(config.evaluate.network, _PROTOCOL)
        # Whether it takes images of this size shows now, and not after thousands of steps.
        network.run(np.zeros((config.batch_size, side, side, 3), np.uint8))
    if warning := rank_warning(count, network.columns["pool"]):
        logging.warning("config.evaluate: %s", warning)
    return network


def _samples(
    config: GeneratorTraining, tokenizer: ModelTokenizer, params: dict, batches: Batches
) -> Iterator[np.ndarray]:
    """Endless uint8 images [H, W, 3]."""
    model, params = Llama(config.model).for_decoding(params)
    settings = SamplingSettings(
        config.seed, config.sample.guidance_scale, top_k=config.sample.top_k
    )
    of_classes = model.config.condition == "class" and not model.config.control_layers
    drawn = _class_batches(config) if of_classes else _held_out_batches(batches)
    ids = np.arange(config.batch_size)
    for number, batch in enumerate(drawn):
        samples = generate_images(
            model,
            params,
            tokenizer,
            batch["condition"],
            settings,
            condition_mask=batch["condition_mask"],
            control=batch["control"],
            sample_ids=seeds.halves(ids + number * len(ids)),
        )
        yield from _whole(batch, samples.images)


def _class_batches(config: GeneratorTraining) -> Iterator[dict]:
    labels = np.arange(config.batch_size, dtype=np.int32)
    for start in itertools.count(step=config.batch_size):
        condition = (labels + start) % config.model.num_classes
        weight = np.ones(len(labels))
        yield {"condition": condition, "condition_mask": None, "control": None, "weight": weight}


def _held_out_batches(batches: Batches) -> Iterator[dict]:
    while True:
        for batch in batches():
            rows = {name: sharding.fetch(array) for name, array in batch.items()}
            yield {
                "condition": rows["label"] if "label" in rows else rows["features"],
                "condition_mask": rows.get("mask"),
                "control": rows.get("control"),
                "weight": rows["weight"],
            }


def _whole(batch: dict, rows: np.ndarray) -> np.ndarray:
    """Those of the rows that do not pad the batch."""
    return rows[sharding.fetch(batch["weight"]) > 0]
