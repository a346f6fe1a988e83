"""Whether a published model gives its published figure here; part of the command `evaluate`."""

import argparse
from typing import Any

import numpy as np

from llamagen_jax import commands
from llamagen_jax.errors import InputError, nearest
from llamagen_jax.evaluate import distances, images, tokenizers
from llamagen_jax.evaluate.figures import Figure
from llamagen_jax.weights.published import PUBLISHED, Published

# FIDs of 50,000 samples with other seeds and class labels differ by less than half of it; with
# another guidance scale, tokenizer or resize they differ by a multiple of it (LlamaGen's issues 48
# and 86 tell of 6.84 instead of 3.80 with guidance 2 instead of 1.75).
_TOLERANCE = 0.15
# Side in pixels at which all are evaluated.
_SIZE = 256


def evaluate(
    name: str,
    *,
    network: str,
    reference: str,
    weights: str | None,
    tokenizer: str,
    size: int,
    count: int,
    batch_size: int,
    keep: str | None,
) -> tuple[list[Figure], dict]:
    """The published figure measured anew, with the settings that it was published with.

    Args:
      name: of `PUBLISHED`.
      network: file of `weights.inception.load`.
      reference: of `images.evaluate` for a generator: ADM's VIRTUAL_imagenet256_labeled.npz; for a
        tokenizer the images of ImageNet's validation set.
      weights: file or folder of the model; None fetches it by its name.
      tokenizer: of a generator.
      size: of the images that a tokenizer reconstructs; they are compared at 256 px.
      count, batch_size, keep: of `images.evaluate`.

    Returns:
      The figures, and what they are of: "passed" tells whether the published one was reached.

    Raises:
      InputError: nothing is published of the model, or of `images.evaluate`.
    """
    if name not in PUBLISHED:
        raise InputError(f"there is no published model {name}; {nearest(name, PUBLISHED)}")
    published, model = PUBLISHED[name], weights or name
    check_distance()
    if published.fid is not None:
        found, about = images.evaluate(
            model,
            reference,
            network=network,
            tokenizer=tokenizer,
            count=count,
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
        "name", metavar="NAME", help="such as c2i_L_384 or vq_ds16_c2i, see the model zoo"
    )
    parser.add_argument(
        "reference",
        type=commands.path,
        metavar="REFERENCE",
        help="for a generator ADM's VIRTUAL_imagenet256_labeled.npz, for a tokenizer the folder of "
        "ImageNet's validation images",
    )
    parser.add_argument(
        "--weights", type=commands.path, help="file or folder of the model (fetched by its name)"
    )
    parser.add_argument(
        "--tokenizer",
        type=commands.path,
        default="vq_ds16_c2i",
        help="of a generator: file, folder or name (vq_ds16_c2i)",
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
        default=50_000,
        help="samples; fewer give a larger FID, which then fails (50000)",
    )
