"""How good a set of images is beside a reference; part of the command `evaluate`."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from llamagen_jax import commands
from llamagen_jax.errors import InputError
from llamagen_jax.evaluate import distances, features, image_sets, manifolds, scores
from llamagen_jax.evaluate.features import PROTOCOLS, Features, Network
from llamagen_jax.evaluate.figures import Figure
from llamagen_jax.evaluate.kept import folder_for
from llamagen_jax.evaluate.statistics import (
    Statistics,
    load_statistics,
    rank_warning,
    save_statistics,
    standard_error,
)
from llamagen_jax.sampling.options import add_settings


class Reference(NamedTuple):
    """What samples are compared with.

    Attributes:
      statistics: for FID and sFID.
      features: for precision, recall, KID and CMMD; None where only statistics are known.
    """

    statistics: Statistics
    features: Features | None


def evaluate(
    samples: str,
    reference: str,
    *,
    network: str,
    protocol: str = "adm",
    size: int | None = None,
    batch_size: int = 64,
    keep: str | None = None,
    float16: bool = False,
    clip: str | None = None,
    save: str | None = None,
    tokenizer: str | None = None,
    count: int = 50_000,
    resize: int | None = None,
    **settings: Any,
) -> tuple[list[Figure], dict]:
    """Figures of the samples, and what they are of.

    Args:
      samples, reference: of `image_sets.open_images`; the samples may also be a generator, see
        `image_sets.generated`, and the reference a file of statistics, with images or without.
      network: of `Network.open`.
      protocol: one of `PROTOCOLS`.
      size: of `image_sets.open_images`.
      batch_size: images at a time.
      keep: folder to keep the features in, so that the same call goes on where it was stopped.
      float16: compute distances of precision and recall as ADM's evaluator does.
      clip: folder of `weights.clip.load`, for CMMD; None leaves it out.
      tokenizer, count, resize, **settings: of `image_sets.generated`, for a generator.
      save: file to write the samples' statistics to.

    Raises:
      InputError: something cannot be read, or the two cannot be compared.
    """
    if image_sets.is_generator(samples):
        options = {"count": count, "batch_size": batch_size, "size": resize, **settings}
        opened = image_sets.generated(samples, tokenizer, **options)
    else:
        opened = image_sets.open_images(samples, size)
    net = Network.open(network, protocol)
    if clip:
        if Path(reference).is_file() and not image_sets.holds_images(reference):
            raise InputError(f"CMMD needs images, and {reference} holds none: leave --clip out")
        net = net.with_clip(clip)
    with folder_for(keep) as folder:
        found = features.compute(opened, net, folder / "samples", batch_size)
        statistics = found.statistics()
        if save:
            save_statistics(save, statistics)
        against = open_reference(reference, net, size, batch_size, folder)
        if against.statistics.images_digest == statistics.images_digest:
            logging.warning(
                "%s and %s hold the same images: that proves nothing", samples, reference
            )
        if warning := rank_warning(len(found), found.pool.shape[1]):
            logging.warning(warning)
        found_figures = _figures(protocol, found, statistics, against, float16)
        figures = [net.noted(figure) for figure in found_figures]
        if clip and against.features:
            figures.append(_cmmd(Path(clip).name, against.features["clip"], found["clip"]))
    about = {
        "samples": samples,
        "reference": reference,
        "protocol": protocol,
        "network": net.hash,
        "images": len(found),
        "reference_images": against.statistics.count,
        "broken_images": opened.count - len(found),
    }
    return figures, about


def open_reference(
    path: str, network: Network, size: int | None, batch_size: int, folder: Path
) -> Reference:
    """What samples are compared with, from images or from their statistics.

    Args:
      path, size: of `image_sets.open_images`; the path may also be of a file of statistics.
      batch_size: images at a time.
      folder: where features of images are kept.

    Raises:
      InputError: it cannot be read, or was made by another network or protocol.
    """
    is_file = Path(path).is_file()
    statistics = None
    if is_file and image_sets.has_statistics(path):
        spatial = network.protocol == "adm"
        statistics = load_statistics(
            path, spatial=spatial, network=network.hash, protocol=network.protocol
        )
    if is_file and not image_sets.holds_images(path):
        if statistics is None:
            raise InputError(f"{path} holds neither images (arr_0) nor statistics (mu, sigma)")
        return Reference(statistics, None)
    images = image_sets.open_images(path, size)
    found = features.compute(images, network, folder / "reference", batch_size)
    return Reference(statistics or found.statistics(), found)


def statistics_figures(
    protocol: str, found: Features, own: Statistics, theirs: Statistics
) -> Iterator[Figure]:
    """FID, sFID and Inception Score: what statistics of the reference suffice for.

    Args:
      protocol: one of `PROTOCOLS`, which tells which of the three there are.
      found, own: features of the samples, and their statistics.
      theirs: statistics of the reference, with those of sFID where the protocol is "adm".
    """
    same = _same(protocol, found)
    gaussians = theirs.mu, theirs.sigma, own.mu, own.sigma
    influence = distances.frechet_influence(*gaussians, found.pool)
    yield Figure("FID", distances.frechet_distance(*gaussians), standard_error(influence), same)
    if protocol == "adm":
        assert theirs.mu_s is not None and theirs.sigma_s is not None
        assert own.mu_s is not None and own.sigma_s is not None
        gaussians = theirs.mu_s, theirs.sigma_s, own.mu_s, own.sigma_s
        influence = distances.frechet_influence(*gaussians, found.spatial)
        error = standard_error(influence)
        yield Figure("sFID", distances.frechet_distance(*gaussians), error, same)
    if protocol != "clean-fid":
        yield from _inception_scores(protocol, found.probabilities)


def _same(protocol: str, found: Features) -> str:
    return f"{protocol}'s figures of {len(found)} images against the same reference"


def _figures(
    protocol: str, found: Features, own: Statistics, reference: Reference, float16: bool
) -> Iterator[Figure]:
    yield from statistics_figures(protocol, found, own, reference.statistics)
    if reference.features is None:
        logging.warning("the reference has no images: precision, recall and KID are left out")
        return
    theirs = reference.features.pool
    if protocol == "adm":
        dtype = "float16" if float16 else "float32"
        hits = manifolds.manifold_hits(theirs, found.pool, dtype=dtype)
        for name, hit in zip(("precision", "recall"), hits, strict=True):
            compare = f"{_same(protocol, found)}; k = 3, distances in {dtype}"
            yield Figure(name, float(hit.mean()), standard_error(hit), compare)
    else:
        subset = min(1000, len(found), len(theirs))
        influence = distances.kid_influence(theirs, found.pool)
        kid = distances.kid(theirs, found.pool, subset_size=subset)
        compare = f"KID of subsets of {subset}, whatever the number of images"
        yield Figure("KID", kid, standard_error(influence), compare)


def _cmmd(name: str, reference: np.ndarray, samples: np.ndarray) -> Figure:
    """Of embeddings [M, E] and [N, E] by the CLIP of that name."""
    error = standard_error(distances.cmmd_influence(reference, samples))
    compare = f"CMMD by {name}; published ones are by ViT-L/14 at 336 px"
    return Figure("CMMD", distances.cmmd(reference, samples), error, compare)


def _inception_scores(protocol: str, probabilities: np.ndarray) -> Iterator[Figure]:
    error = standard_error(scores.inception_score_influence(probabilities))
    count = len(probabilities)
    if protocol == "adm":
        value = scores.inception_score(probabilities)
        yield Figure("IS", value, error, "ADM's IS: chunks of 5000 in the order of the samples")
        whole = scores.inception_score(probabilities, count)
        yield Figure("IS, whole", whole, error, f"IS of {count} images in one chunk, in any order")
    else:
        value = scores.shuffled_inception_score(probabilities, splits=min(10, count))
        yield Figure("IS", value, error, "torch-fidelity's IS: 10 shuffled splits")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `evaluate images`."""
    parser.add_argument(
        "samples",
        type=commands.path,
        metavar="SAMPLES",
        help=f"{image_sets.KINDS}; or a class-conditional generator, as an export or work folder, "
        "file or name, which then draws them",
    )
    parser.add_argument(
        "reference",
        type=commands.path,
        metavar="REFERENCE",
        help="any of these, or a file of statistics (mu, sigma) as ADM's or --save-statistics' are",
    )
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default="adm",
        help="whose figures: the papers' (adm: FID, sFID, IS, precision, recall), or those of "
        "torch-fidelity (FID, IS, KID) or clean-fid (FID, KID) (adm)",
    )
    parser.add_argument(
        "--size",
        type=commands.whole,
        help="side of a centre crop of every image (images as they are)",
    )
    parser.add_argument(
        "--float16",
        action="store_true",
        help="distances of precision and recall as ADM's evaluator rounds them",
    )
    parser.add_argument(
        "--clip",
        type=commands.path,
        metavar="FOLDER",
        help="also CMMD, by a CLIP from Hugging Face (the published: clip-vit-large-patch14-336)",
    )
    parser.add_argument(
        "--save-statistics",
        type=commands.path,
        dest="save",
        metavar="FILE.npz",
        help="write mu, sigma, mu_s and sigma_s of SAMPLES, to be a REFERENCE",
    )
    drawn = parser.add_argument_group("for a generator")
    drawn.add_argument(
        "--tokenizer", type=commands.path, help="its VQGAN (the one that its run named)"
    )
    drawn.add_argument(
        "--count", type=commands.whole, default=50_000, help="images, classes in turn (50000)"
    )
    drawn.add_argument(
        "--resize", type=commands.whole, metavar="N", help="to N px, as for the published FIDs"
    )
    add_settings(drawn)
