"""Whether a model is what it should be; part of the command `evaluate`.

A published one is measured as its figure was, which takes hours. Any model, published or own, can
also be checked in minutes for the mistakes that are commonly made (`quick_checks`).
"""

import argparse
from typing import Any

import numpy as np

from llamagen_jax import commands, zoo
from llamagen_jax.errors import InputError, nearest
from llamagen_jax.evaluate import distances, images, quick_checks, tokenizers
from llamagen_jax.evaluate.figures import Figure
from llamagen_jax.generation import ImageGenerator
from llamagen_jax.image_tokenizer import ModelTokenizer
from llamagen_jax.weights import export, kinds
from llamagen_jax.weights.published import PUBLISHED, Published

# FIDs of 50,000 samples with other seeds and class labels differ by less than half of it; with
# another guidance scale, tokenizer or resize they differ by a multiple of it (LlamaGen's issues 48
# and 86 tell of 6.84 instead of 3.80 with guidance 2 instead of 1.75).
_TOLERANCE = 0.15
# Side in pixels at which all are evaluated.
_SIZE = 256
# Samples that the published figures are of, and images that a quick check takes.
_COUNT, _QUICK_COUNT = 50_000, 256
# Of all published class-conditional generators.
_TOKENIZER = "vq_ds16_c2i"


def evaluate(
    name: str,
    *,
    network: str | None,
    reference: str,
    quick: bool,
    weights: str | None,
    tokenizer: str | None,
    text_encoder: str | None,
    size: int,
    count: int | None,
    batch_size: int,
    keep: str | None,
) -> tuple[list[Figure], dict]:
    """The published figure measured anew as it was published, or the checks of `quick_checks`.

    Args:
      name: of `PUBLISHED`; with `quick` also a file or folder of `zoo.load`.
      network: file of `weights.inception.load`; not needed with `quick`.
      reference: of `images.evaluate` for a generator: ADM's VIRTUAL_imagenet256_labeled.npz; for a
        tokenizer the images of ImageNet's validation set. With `quick` of
        `quick_checks.generator_figures`.
      weights: file or folder of the model; None fetches it by its name.
      tokenizer: of a generator; None takes the one that its run named, or the published one.
      text_encoder: of a generator of captions, with `quick`.
      size: of the images that a tokenizer reconstructs; they are compared at 256 px.
      count: samples, or with `quick` images; None for as many as were published, or a few.
      batch_size, keep: of `images.evaluate`.

    Returns:
      The figures, and what they are of: "passed" tells whether all is as it should be.

    Raises:
      InputError: nothing is published of the model, or of `images.evaluate`.
    """
    if quick:
        names = {"tokenizer": tokenizer, "text_encoder": text_encoder}
        return _quick(weights or name, reference, size, count or _QUICK_COUNT, batch_size, **names)
    if name not in PUBLISHED:
        raise InputError(
            f"there is no published model {name}; {nearest(name, PUBLISHED)}, or give --quick"
        )
    if network is None:
        raise InputError("give --inception, the network of FID, or --quick to do without")
    published, model = PUBLISHED[name], weights or name
    check_distance()
    if published.fid is not None:
        found, about = images.evaluate(
            model,
            reference,
            network=network,
            tokenizer=tokenizer or _TOKENIZER,
            count=count or _COUNT,
            batch_size=batch_size,
            keep=keep,
            **settings(published),
        )
        figure, value = "FID", published.fid
    elif size in published.rfid:
        found, about = tokenizers.evaluate(
            reference,
            model,
            network=network,
            size=size,
            resize=None if size == _SIZE else _SIZE,
            batch_size=batch_size,
            keep=keep,
        )
        figure, value = "rFID", published.rfid[size]
    elif published.rfid:
        sizes = ", ".join(map(str, published.rfid))
        raise InputError(f"no rFID of {name} is published at {size} px, but at {sizes}")
    else:
        raise InputError(f"no figure of {name} is published ({published.source})")
    measured = next(f for f in found if f.name == figure)
    passed = abs(measured.value - value) <= _TOLERANCE
    compare = (
        f"published {value} ({published.source}), tolerance {_TOLERANCE}: "
        f"{'pass' if passed else 'FAIL'}"
    )
    verdict = Figure(f"{name} {figure}", measured.value, measured.error, compare)
    return [verdict, *found], about | {"model": name, "published": value, "passed": passed}


def _quick(
    name: str,
    location: str,
    size: int,
    count: int,
    batch_size: int,
    *,
    tokenizer: str | None,
    text_encoder: str | None,
) -> tuple[list[Figure], dict]:
    model, params = zoo.load(name)
    if kinds.kind_of(model.config).role == "tokenizer":
        opened = ModelTokenizer(model, params)
        found = quick_checks.tokenizer_figures(opened, location, size, count, batch_size)
    else:
        recorded = export.recorded(name)
        generator = ImageGenerator.open(
            name,
            tokenizer or recorded.get("tokenizer") or _TOKENIZER,
            text_encoder or recorded.get("text_encoder") or None,
        )
        found = quick_checks.generator_figures(generator, location, count, batch_size)
    passed = not any(figure.compare.startswith("FAIL") for figure in found)
    return found, {"samples": name, "reference": location, "quick": True, "passed": passed}


def settings(published: Published) -> dict[str, Any]:
    """Arguments of `images.evaluate` that a generator's published FID was measured with."""
    return {
        "protocol": "adm",
        "guidance_scale": published.guidance_scale,
        "top_k": 0,
        "top_p": 1.0,
        "temperature": 1.0,
        "resize": None if published.resolution == _SIZE else _SIZE,
    }


def check_distance(features: int = 64) -> None:
    """Compares the distance with its closed form; raises AssertionError where they differ.

    Features that are all shifted by d are |d|^2 away from where they were.
    """
    rng = np.random.default_rng(0)
    mu, root = rng.standard_normal(features), rng.standard_normal((features, features))
    shift = rng.standard_normal(features)
    distance = distances.frechet_distance(mu, root @ root.T, mu + shift, root @ root.T)
    assert np.isclose(distance, shift @ shift, rtol=1e-6), distance


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `evaluate verify`."""
    parser.add_argument(
        "name",
        metavar="NAME",
        help="such as c2i_L_384 or vq_ds16_c2i, see the model zoo; with --quick also a file, "
        "export or work folder",
    )
    parser.add_argument(
        "reference",
        type=commands.path,
        metavar="REFERENCE",
        help="for a generator ADM's VIRTUAL_imagenet256_labeled.npz, for a tokenizer the folder of "
        "ImageNet's validation images; with --quick images of the kind it was trained on: a folder "
        "by class or with captions, a dataset folder or tar shards",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="in minutes and without Inception: whether the model, its tokenizer and its labels or "
        "captions belong together, by the likelihood of real images",
    )
    parser.add_argument(
        "--weights", type=commands.path, help="file or folder of the model (fetched by its name)"
    )
    parser.add_argument(
        "--tokenizer",
        type=commands.path,
        help="of a generator: file, folder or name (the one its run named, or vq_ds16_c2i)",
    )
    parser.add_argument(
        "--text-encoder",
        type=commands.path,
        help="with --quick, of a generator of captions: folder of its T5 (the one its run named)",
    )
    parser.add_argument(
        "--size",
        type=commands.whole,
        default=_SIZE,
        help="of a tokenizer: side of the images, 256, 384 or 512 (256)",
    )
    parser.add_argument(
        "--count",
        type=commands.whole,
        help="samples; fewer give a larger FID, which then fails (50000); with --quick images "
        "(256)",
    )
