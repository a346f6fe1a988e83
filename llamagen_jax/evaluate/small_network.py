"""A small network of features, trained on the images at hand; part of the command `evaluate`.

It stands in for Inception where its file is not at hand, or where images are as small and simple as
the demos'. Figures by it say which of two sets of samples is nearer to the reference, and compare
with no published ones.

Axes: N images, B batch, S side in pixels, K classes.
"""

import argparse
import collections
import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from flax.traverse_util import flatten_dict
from tqdm import tqdm

from llamagen_jax import commands, seeds
from llamagen_jax.data import transforms
from llamagen_jax.data.sources import Source
from llamagen_jax.digests import write_json
from llamagen_jax.errors import InputError
from llamagen_jax.evaluate import image_sets
from llamagen_jax.evaluate.figures import Figure
from llamagen_jax.evaluate.statistics import standard_error
from llamagen_jax.files import staged
from llamagen_jax.models.classifier import Classifier, ClassifierConfig
from llamagen_jax.weights import export
from llamagen_jax.weights.kinds import make_config
from llamagen_jax.weights.shapes import abstract_params, check_shapes, flat_shapes
from llamagen_jax.weights.torch_files import Tensor, write_safetensors

# The commonest words of captions that are told apart.
_WORDS = 64
_BATCH_SIZE, _LEARNING_RATE = 64, 3e-3


class Examples(NamedTuple):
    """Images, uint8 [N, S, S, 3], and what they show as shares of classes, float32 [N, K]."""

    images: np.ndarray
    targets: np.ndarray


def evaluate(
    images: str, folder: str, *, size: int | None, count: int, steps: int, seed: int
) -> tuple[list[Figure], dict]:
    """Trains a network to tell the images' classes, or the words of their captions; writes it.

    Args:
      images: of `image_sets.open_source`.
      folder: to write, which `Network.open` opens.
      size: side in pixels of a centre crop of every image; None takes them as they are.
      count: images at most, spread over the set.
      steps: of training.
      seed: of weights and batches.

    Returns:
      The loss at the end of training, and what it is of.

    Raises:
      InputError: the images cannot be read, have neither classes nor captions, or have a size that
        is no multiple of 8; or `folder` exists.
    """
    with staged(folder) as partial:
        examples = read(image_sets.open_source(images), size, count)
        model, params, losses = train(examples, steps, seed)
        write(partial, model.config, params, images)
    last = losses[-max(2, steps // 10) :]
    figure = Figure("loss", float(last.mean()), standard_error(last), "the same images and steps")
    about = {"samples": images, "images": len(examples.images), "classes": model.config.classes}
    return [figure], about


def write(folder: Path, config: ClassifierConfig, params: Mapping, trained_on: str) -> None:
    """Writes a new folder for `load`."""
    folder.mkdir()
    described = {"model": "Classifier", "config": dataclasses.asdict(config)}
    write_json(folder / "config.json", described | {"trained_on": trained_on})
    tensors = {path: Tensor.of(leaf) for path, leaf in flatten_dict(params, sep="/").items()}
    write_safetensors(folder / "params.safetensors", tensors)


def load(folder: str) -> tuple[Classifier, dict[str, Any], str]:
    """The network that `write` wrote: the model, its parameters, and what it was trained on.

    Raises:
      InputError: a file is missing or damaged, or holds another model.
    """
    name, fields, metadata, params = export.read(folder)
    if name != "Classifier":
        raise InputError(
            f"{folder} holds a model {name!r}; expected a network of `evaluate network`"
        )
    config = make_config(ClassifierConfig, fields, folder)
    model = Classifier(config)
    expected = flat_shapes(abstract_params(model, _blank(config)))
    what = f"parameters in {folder} do not fit its config"
    check_shapes(flat_shapes(params), expected, what)
    return model, params, metadata.get("trained_on", "other images")


def read(source: Source, size: int | None, count: int) -> Examples:
    """Images of a source, `count` at most, with their classes or the words of their captions.

    Broken images, and those without class and caption, are left out with a warning.

    Raises:
      InputError: of `evaluate`.
    """
    chosen = np.linspace(0, len(source), min(count, len(source)), endpoint=False, dtype=int)
    images, told = [], []
    for index in tqdm(chosen.tolist(), desc="read", unit="image"):
        try:
            record = source[index]
            image = transforms.decode(record["image"])
            pixels = transforms.center_crop(image, size) if size else np.asarray(image)
            names = [record["label"]] if "label" in record else _words(record["captions"])
            if not names:
                raise ValueError("its captions have no words")
            told.append(names)
            images.append(pixels)
        # Readers and decoders raise errors of any type on damaged bytes.
        except Exception as error:
            logging.warning("skipped %s: %s: %s", source.name(index), type(error).__name__, error)
    if len(images) < len(chosen):
        logging.warning("%d of %d images are left out", len(chosen) - len(images), len(chosen))
    sizes = {image.shape[:2] for image in images}
    if len(sizes) != 1 or len({*sizes.pop()}) != 1:
        raise InputError(
            f"{len(images)} images with class or caption were read of {source!r}, not all squares "
            "of one size: give some, and --size to crop them all alike"
        )
    return Examples(np.stack(images), _targets(told))


def _words(captions: dict[str, str]) -> list[str]:
    return sorted({word for text in captions.values() for word in re.findall(r"\w+", text.lower())})


def _targets(told: list[list]) -> np.ndarray:
    """Each image's classes, or those of its words that are common, in equal shares."""
    counts = collections.Counter(name for names in told for name in names)
    common = counts.most_common(_WORDS) if isinstance(next(iter(counts)), str) else counts.items()
    columns = {name: column for column, (name, _) in enumerate(sorted(common))}
    targets = np.zeros((len(told), len(columns)), np.float32)
    for row, names in zip(targets, told, strict=True):
        row[[columns[name] for name in names if name in columns]] = 1
    return targets / np.maximum(targets.sum(axis=1, keepdims=True), 1)


def _config(examples: Examples) -> ClassifierConfig:
    side, classes = examples.images.shape[1], examples.targets.shape[1]
    try:
        return ClassifierConfig(side, classes)
    except ValueError as error:
        raise InputError(f"the images make no network: {error}") from error


def _features(model: Classifier, params: Any, images: jax.Array) -> Any:
    return model.apply({"params": params}, images)


def _blank(config: ClassifierConfig) -> jax.Array:
    return jnp.zeros((1, config.image_size, config.image_size, 3), jnp.uint8)


def train(examples: Examples, steps: int, seed: int) -> tuple[Classifier, Any, np.ndarray]:
    """A classifier of the examples, its trained parameters, and the loss of every step [steps].

    Raises:
      InputError: their size or number of classes is impossible.
    """
    config = _config(examples)
    model = Classifier(config)
    params: Any = model.init(seeds.key(seed), _blank(config))["params"]
    optimizer = optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, steps))

    def loss_of(params: Any, images: jax.Array, targets: jax.Array) -> jax.Array:
        logits = _features(model, params, images).logits
        return optax.softmax_cross_entropy(logits, targets).mean()

    @jax.jit
    def step(params: Any, state: Any, images: jax.Array, targets: jax.Array) -> tuple:
        loss, gradients = jax.value_and_grad(loss_of)(params, images, targets)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state, loss

    state, losses = optimizer.init(params), []
    rng = np.random.default_rng(seed)
    for _ in tqdm(range(steps), desc="train", unit="step"):
        rows = rng.integers(len(examples.images), size=_BATCH_SIZE)
        batch = examples.images[rows], examples.targets[rows]
        params, state, loss = step(params, state, *batch)
        losses.append(loss)
    return model, params, np.asarray(jnp.stack(losses))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `evaluate network`."""
    parser.add_argument(
        "images",
        type=commands.path,
        metavar="IMAGES",
        help="folder by class or with captions, dataset folder or tar shards",
    )
    parser.add_argument(
        "folder", type=commands.path, metavar="FOLDER", help="to write, for --network"
    )
    parser.add_argument(
        "--size",
        type=commands.whole,
        help="side of a centre crop of every image (images as they are)",
    )
    parser.add_argument(
        "--count", type=commands.whole, default=20_000, help="images at most (20000)"
    )
    parser.add_argument("--steps", type=commands.whole, default=400, help="of training (400)")
    parser.add_argument("--seed", type=commands.seed, default=0, help="of weights and batches (0)")
