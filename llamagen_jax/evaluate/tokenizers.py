"""How near an image tokenizer's reconstructions are to the images; part of the command `evaluate`.

Axes: B batch, H W pixels, h w code grid, N images, K codebook entries.
"""

import argparse
import functools
import heapq
import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llamagen_jax import commands
from llamagen_jax import images as pixel_formats
from llamagen_jax.errors import InputError, naming
from llamagen_jax.evaluate import distances, image_sets, reconstructions
from llamagen_jax.evaluate.features import Features, Network, add_features, compute
from llamagen_jax.evaluate.figures import Figure
from llamagen_jax.evaluate.image_sets import ImageSet
from llamagen_jax.evaluate.statistics import Statistics, standard_error
from llamagen_jax.image_tokenizer import (
    ImageTokenizer,
    code_grid,
    decode_tiled,
    on_all_devices,
    open_tokenizer,
    run_filled,
    tile_codes,
)
from llamagen_jax.images import captioned_grid, from_uint8, save_png, to_uint8
from llamagen_jax.models.lpips import LPIPS
from llamagen_jax.weights import lpips as lpips_weights

# Worst and best reconstructions in the picture.
_SHOWN = 8
# LlamaGen's script takes [0, 1] for values of range 2.
_LLAMAGEN_RANGE = 510


class Pairs(NamedTuple):
    """A batch of images, uint8 [B, H, W, 3], their reconstructions, and codes, int32 [B, h, w], or
    latents."""

    images: np.ndarray
    reconstructions: np.ndarray
    codes: np.ndarray


def evaluate(
    images: str,
    tokenizer: str,
    *,
    network: str | None = None,
    vgg16: str | None = None,
    lpips_heads: str | None = None,
    size: int = 256,
    resize: int | None = None,
    tile: int | None = None,
    batch_size: int = 16,
    llamagen_ssim: bool = False,
    picture: str | None = None,
) -> tuple[list[Figure], dict]:
    """Figures of the reconstructions of a set of images, and what they are of.

    Args:
      images: of `image_sets.open_images`.
      tokenizer: of `image_tokenizer.open_tokenizer`.
      network: of `Network.open`, for rFID; None leaves it out.
      vgg16, lpips_heads: of `weights.lpips.load`, for LPIPS; None leaves it out.
      size: side in pixels of the centre crop of every image.
      resize: side to resize images and reconstructions to before they are compared; rFID is then
        against centre crops of that size. LlamaGen compares those of 384 and 512 px at 256.
      tile: side in pixels of the tiles to decode in (`decode_tiled`); None decodes whole images.
      batch_size: images at a time.
      llamagen_ssim: SSIM with twice the right data range, as LlamaGen's tables have it.
      picture: file for the worst and the best reconstructions beside their originals.

    Raises:
      InputError: something cannot be read, or does not fit.
    """
    with naming("--tokenizer"):
        opened = open_tokenizer(tokenizer, continuous=True)
    code_grid(opened, size)
    side = tile_codes(opened, tile) if tile else None
    if bool(vgg16) != bool(lpips_heads):
        raise InputError("LPIPS needs both --vgg16 and --lpips-heads")
    found = image_sets.open_images(images, size)
    rated = _Ratings(opened.codebook_size, _LLAMAGEN_RANGE if llamagen_ssim else 255)
    distance = _lpips(vgg16, lpips_heads) if vgg16 and lpips_heads else None
    with tempfile.TemporaryDirectory() as folder:
        net = Network.open(network, "adm") if network else None
        own = Features(Path(folder) / "own", found, net) if net else None
        for pairs in reconstruct(found, opened, batch_size, resize, side):
            rated.add(pairs, distance)
            if net and own is not None:
                add_features(own, net, pairs.reconstructions, batch_size)
        figures = list(rated.figures(llamagen_ssim))
        if net and own is not None:
            crops = image_sets.open_images(images, resize or size)
            reference = compute(crops, net, Path(folder) / "reference", batch_size)
            figures.insert(0, net.noted(rfid(reference.statistics(), own)))
    if picture:
        save_png(Path(picture), rated.picture())
    sizes = {"size": size, "resize": resize, "tile": tile}
    about = {"samples": images, "tokenizer": tokenizer, "images": len(rated.psnr), **sizes}
    return figures, about


def reconstruct(
    images: ImageSet,
    tokenizer: ImageTokenizer,
    batch_size: int,
    size: int | None = None,
    tile: int | None = None,
) -> Iterator[Pairs]:
    """Encodes and decodes a set of images on all devices.

    Args:
      size: to resize both to afterwards (`images.resize`); None leaves them.
      tile: side in codes of the tiles to decode in; None decodes whole images.
    """
    batch_size = min(batch_size, images.count)
    encode = on_all_devices(lambda t, pixels: t.encode(from_uint8(pixels)), tokenizer)
    run = on_all_devices(lambda t, codes: t.decode(codes), tokenizer)
    decode = functools.partial(run_filled, run, size=batch_size)
    for batch in images.batches(batch_size):
        if len(batch):
            codes = run_filled(encode, batch, batch_size)
            side, scale = tile or codes.shape[1], tokenizer.downsampling
            image, again = from_uint8(batch), decode_tiled(decode, codes, side, scale)
            if size:
                image, again = (pixel_formats.resize(part, size) for part in (image, again))
            yield Pairs(to_uint8(image), to_uint8(again), codes)


class _Ratings:
    """What is known of the pairs so far: numbers of each, and the worst and best of them.

    Attributes:
      psnr, ssim, lpips: a number per image; `lpips` stays empty without its network.
      counts: how often each code occurs, int [K]; None for latents.
    """

    def __init__(self, codebook_size: int | None, ssim_range: float):
        self.psnr: list[float] = []
        self.ssim: list[float] = []
        self.lpips: list[float] = []
        self.counts = None if codebook_size is None else np.zeros(codebook_size, np.int64)
        self._ssim_range = ssim_range
        self._numbers = itertools.count()
        # Heaps of (how it ranks, number, original, reconstruction), the first to give way first.
        self._worst: list[tuple] = []
        self._best: list[tuple] = []

    def add(self, pairs: Pairs, distance: Callable[[Pairs], np.ndarray] | None) -> None:
        psnr = reconstructions.psnr(pairs.images, pairs.reconstructions)
        self.psnr += psnr.tolist()
        self.ssim += reconstructions.ssim(
            pairs.images, pairs.reconstructions, self._ssim_range
        ).tolist()
        if distance:
            self.lpips += distance(pairs).tolist()
        if self.counts is not None:
            self.counts += np.bincount(pairs.codes.reshape(-1), minlength=len(self.counts))
        for value, image, again in zip(psnr, pairs.images, pairs.reconstructions, strict=True):
            number = next(self._numbers)
            for heap, rank in ((self._worst, -value), (self._best, value)):
                heapq.heappush(heap, (rank, -number, image, again))
                if len(heap) > _SHOWN:
                    heapq.heappop(heap)

    def figures(self, llamagen_ssim: bool) -> Iterator[Figure]:
        same = f"the same {len(self.psnr)} images at the same size"
        range_ = "LlamaGen's SSIM, of twice the data range" if llamagen_ssim else "SSIM"
        for name, values, compare in (
            ("PSNR", self.psnr, f"mean of each image's PSNR, in dB; {same}"),
            ("SSIM", self.ssim, f"{range_}; {same}"),
            ("LPIPS", self.lpips, f"VGG's LPIPS; {same}"),
        ):
            if values:
                array = np.array(values)
                yield Figure(name, float(array.mean()), standard_error(array), compare)
        if self.counts is None:
            return
        usage = reconstructions.codebook_usage(self.counts)
        perplexity = reconstructions.codebook_perplexity(self.counts)
        compare = f"codebooks of {len(self.counts)} entries over as many codes, {self.counts.sum()}"
        yield Figure("codebook usage", usage, float("nan"), compare)
        yield Figure("perplexity", perplexity, float("nan"), compare)

    def picture(self) -> np.ndarray:
        """Rows of the worst images, their reconstructions, the best ones, and theirs.

        The number of an image in its set, and the PSNR of a reconstruction, stand below.
        """
        images, captions = [], []
        for heap in (self._worst, self._best):
            ranked = sorted(heap, reverse=True)
            images += [image for _, _, image, _ in ranked] + [again for *_, again in ranked]
            captions += [f"image {-number}" for _, number, *_ in ranked]
            captions += [f"{abs(rank):.1f} dB" for rank, *_ in ranked]
        return captioned_grid(np.array(images), captions, columns=len(self._worst))


def rfid(theirs: Statistics, own: Features) -> Figure:
    """The Fréchet distance of reconstructions to the images themselves.

    Args:
      theirs: of the images.
      own: of the reconstructions.
    """
    ours = own.statistics()
    gaussians = theirs.mu, theirs.sigma, ours.mu, ours.sigma
    error = standard_error(distances.frechet_influence(*gaussians, own.pool))
    compare = "rFID against the same images, not against the training set's statistics"
    return Figure("rFID", distances.frechet_distance(*gaussians), error, compare)


def _lpips(vgg16: str, lpips_heads: str) -> Callable[[Pairs], np.ndarray]:
    params = lpips_weights.load(vgg16, lpips_heads)

    def distance(params: Any, pairs: jax.Array) -> Any:
        images, again = from_uint8(pairs[:, 0]), from_uint8(pairs[:, 1])
        return LPIPS().apply({"params": params}, images, again)

    run = on_all_devices(distance, jax.tree.map(jnp.asarray, params))

    def of_pairs(pairs: Pairs) -> np.ndarray:
        stacked = np.stack([pairs.images, pairs.reconstructions], axis=1)
        return run_filled(run, stacked, len(stacked))

    return of_pairs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `evaluate reconstructions`."""
    parser.add_argument(
        "images",
        type=commands.path,
        metavar="IMAGES",
        help=image_sets.KINDS,
    )
    parser.add_argument(
        "--tokenizer",
        type=commands.path,
        required=True,
        help="work folder, export, file or name",
    )
    parser.add_argument(
        "--size",
        type=commands.whole,
        default=256,
        help="side of the centre crop of every image, which may be above the tokenizer's own (256)",
    )
    parser.add_argument(
        "--resize",
        type=commands.whole,
        metavar="N",
        help="compare at N px, as LlamaGen's tables do at 256 for 384 and 512 (at --size)",
    )
    parser.add_argument(
        "--tile",
        type=commands.whole,
        metavar="N",
        help="decode in overlapping tiles of N px, where whole images do not fit into memory",
    )
    parser.add_argument(
        "--network",
        "--inception",
        type=commands.path,
        metavar="FILE",
        help="for rFID: pt_inception-2015-12-05-6726825d.pth, classify_image_graph_def.pb, or what "
        "`evaluate network` wrote",
    )
    parser.add_argument(
        "--vgg16", type=commands.path, metavar="FILE", help="for LPIPS: torchvision's vgg16"
    )
    parser.add_argument(
        "--lpips-heads", type=commands.path, metavar="FILE", help="for LPIPS: its linear heads"
    )
    parser.add_argument(
        "--llamagen-ssim",
        action="store_true",
        help="SSIM with twice the right data range, as in LlamaGen's tables",
    )
    parser.add_argument(
        "--batch-size", type=commands.whole, default=16, help="images at a time (16)"
    )
    parser.add_argument(
        "--picture",
        type=commands.path,
        metavar="FILE.png",
        help=f"the {_SHOWN} worst and the {_SHOWN} best by PSNR, each under its original, with the "
        "numbers of the images",
    )
