"""How near an image tokenizer's reconstructions are to the images; part of the command `evaluate`.

Axes: B batch, H W pixels, h w code grid, N images, D features.
"""

import argparse
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llamagen_jax import commands
from llamagen_jax import images as pixel_formats
from llamagen_jax.data.transforms import Size
from llamagen_jax.errors import InputError, naming
from llamagen_jax.evaluate import distances, image_sets, reconstructions
from llamagen_jax.evaluate.features import Network, moments
from llamagen_jax.evaluate.figures import Figure
from llamagen_jax.evaluate.image_sets import ImageSet
from llamagen_jax.evaluate.kept import KeptRows, folder_for
from llamagen_jax.evaluate.statistics import Moments, standard_error
from llamagen_jax.image_tokenizer import (
    ImageTokenizer,
    ModelTokenizer,
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
from llamagen_jax.weights.integrity import weights_hash

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
    size: Size = 256,
    resize: int | None = None,
    tile: int | None = None,
    batch_size: int = 16,
    keep: str | None = None,
    llamagen_ssim: bool = False,
    picture: str | None = None,
) -> tuple[list[Figure], dict]:
    """Figures of the reconstructions of a set of images, and what they are of.

    Args:
      images: of `image_sets.open_images`.
      tokenizer: of `image_tokenizer.open_tokenizer`.
      network: of `Network.open`, for rFID; None leaves it out.
      vgg16, lpips_heads: of `weights.lpips.load`, for LPIPS; None leaves it out.
      size: side, or (height, width), in pixels of the centre crop of every image.
      resize: side to resize images and reconstructions to before they are compared; rFID is then
        against centre crops of that size. LlamaGen compares those of 384 and 512 px at 256.
      tile: side in pixels of the tiles to decode in (`decode_tiled`); None decodes whole images.
      batch_size: images at a time.
      keep: folder to keep the figures of each image in, so that the same call goes on where it was
        stopped.
      llamagen_ssim: SSIM with twice the right data range, as LlamaGen's tables have it.
      picture: file for the worst and the best reconstructions beside their originals.

    Raises:
      InputError: something cannot be read, or does not fit.
    """
    with naming("--tokenizer"):
        opened = open_tokenizer(tokenizer, continuous=True)
    if bool(vgg16) != bool(lpips_heads):
        raise InputError("LPIPS needs both --vgg16 and --lpips-heads")
    if resize and not isinstance(size, int):
        raise InputError("--resize compares squares: leave it out, or give --size as one side")
    found = image_sets.open_images(images)
    batch_size = min(batch_size, found.count)
    rating = _Rating(
        tokenizer=opened,
        round_trip=_round_trip(opened, batch_size, tile_codes(opened, tile) if tile else None),
        network=Network.open(network, "adm") if network else None,
        lpips=_LPIPS.open(vgg16, lpips_heads) if vgg16 and lpips_heads else None,
        size=size,
        resize=resize,
        batch_size=batch_size,
        ssim_range=_LLAMAGEN_RANGE if llamagen_ssim else 255,
    )
    with folder_for(keep) as folder:
        kept = KeptRows(folder, found, rating.columns(), rating.made_with() | {"tile": tile})
        _fill(kept, folder / "shown", found, rating)
        figures = list(_figures(kept, rating))
        if picture:
            save_png(Path(picture), _picture(folder / "shown", kept["psnr"]))
        count = len(kept)
    about = {"samples": images, "tokenizer": tokenizer, "images": count}
    return figures, about | {"size": _told(size), "resize": resize, "tile": tile}


@dataclass(frozen=True)
class _Rating:
    """What is computed of every image and its reconstruction.

    Attributes:
      round_trip: of `_round_trip`.
      network: of rFID, or None.
      lpips: or None.
      size, resize, batch_size: of `evaluate`.
      ssim_range: data range of SSIM.
    """

    tokenizer: ModelTokenizer
    round_trip: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    network: Network | None
    lpips: "_LPIPS | None"
    size: Size
    resize: int | None
    batch_size: int
    ssim_range: float

    def columns(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Of `KeptRows`; raises InputError where the tokenizer does not take images of the size."""
        grid, number = code_grid(self.tokenizer, self.size), jax.ShapeDtypeStruct((), np.float64)
        columns = {"psnr": number, "ssim": number}
        if self.tokenizer.codebook_size is not None:
            columns["codes"] = jax.ShapeDtypeStruct(grid, np.int32)
        if self.lpips:
            columns["lpips"] = number
        if self.network:
            pool = jax.ShapeDtypeStruct((self.network.columns["pool"],), np.float32)
            columns |= {"image_pool": pool, "reconstruction_pool": pool}
        return columns

    def made_with(self) -> dict[str, Any]:
        """Of `KeptRows`."""
        return {
            "tokenizer": weights_hash(self.tokenizer.params),
            "network": self.network and self.network.hash,
            "LPIPS": self.lpips and self.lpips.hash,
            "size": _told(self.size),
            "resize": self.resize,
            "SSIM's data range": self.ssim_range,
        }

    def __call__(self, whole: list[np.ndarray]) -> tuple[Pairs, dict[str, np.ndarray]]:
        """Images [H, W, 3] of any sizes beside their reconstructions, and the rows of `columns`."""
        crops = np.stack([image_sets.crop(image, self.size) for image in whole])
        image, (again, codes) = from_uint8(crops), self.round_trip(crops)
        if self.resize:
            image, again = (pixel_formats.resize(part, self.resize) for part in (image, again))
        pairs = Pairs(to_uint8(image), to_uint8(again), codes)
        rows = {
            "psnr": reconstructions.psnr(pairs.images, pairs.reconstructions),
            "ssim": reconstructions.ssim(pairs.images, pairs.reconstructions, self.ssim_range),
            "codes": codes,
        }
        if self.lpips:
            rows["lpips"] = run_filled(self.lpips.run, np.stack(pairs[:2], 1), self.batch_size)
        if self.network:
            if self.resize:
                crops = np.stack([image_sets.crop(image, self.resize) for image in whole])
            for name, shown in (("image", crops), ("reconstruction", pairs.reconstructions)):
                found = run_filled(self.network.run, shown, self.batch_size)
                rows[f"{name}_pool"] = found["pool"]
        return pairs, rows


def _told(size: Size) -> int | str:
    """A size as options tell it."""
    return size if isinstance(size, int) else f"{size[1]}x{size[0]}"


def _round_trip(
    tokenizer: ImageTokenizer, batch_size: int, tile: int | None
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """From uint8 images [B, H, W, 3] to reconstructions, float32, and codes, on all devices.

    Args:
      batch_size: the largest B.
      tile: side in codes of the tiles to decode in; None decodes whole images.
    """
    encode = on_all_devices(lambda t, pixels: t.encode(from_uint8(pixels)), tokenizer)
    run = on_all_devices(lambda t, codes: t.decode(codes), tokenizer)
    decode = functools.partial(run_filled, run, size=batch_size)

    def round_trip(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        codes = run_filled(encode, images, batch_size)
        side = tile or max(codes.shape[1:3])
        return decode_tiled(decode, codes, side, tokenizer.downsampling), codes

    return round_trip


def _fill(kept: KeptRows, shown: Path, images: ImageSet, rating: _Rating) -> None:
    """Rates the images that are not yet; raises InputError where fewer than two are whole."""
    for whole in images.lists(rating.batch_size, kept.read):
        read = min(rating.batch_size, images.count - kept.read)
        if not whole:
            kept.add(np.zeros((0, 1, 1, 3), np.uint8), {}, read)
            continue
        pairs, rows = rating(whole)
        _keep_shown(shown, np.concatenate([kept["psnr"], rows["psnr"]]), len(kept), pairs)
        kept.add(pairs.images, rows, read)
    if len(kept) < 2:
        raise InputError(f"{images.name} has {len(kept)} whole images; give 2 or more")


def _figures(kept: KeptRows, rating: _Rating) -> Iterator[Figure]:
    if rating.network:
        reference = moments(kept["image_pool"])
        yield rating.network.noted(rfid(reference, kept["reconstruction_pool"]))
    same = f"the same {len(kept)} images at the same size"
    original = rating.ssim_range == _LLAMAGEN_RANGE
    range_ = "LlamaGen's SSIM, of twice the data range" if original else "SSIM"
    for name, compare in (
        ("PSNR", f"mean of each image's PSNR, in dB; {same}"),
        ("SSIM", f"{range_}; {same}"),
        ("LPIPS", f"VGG's LPIPS; {same}"),
    ):
        if name.lower() in kept:
            values = kept[name.lower()]
            yield Figure(name, float(values.mean()), standard_error(values), compare)
    size = rating.tokenizer.codebook_size
    if size is not None:
        counts = np.bincount(kept["codes"].reshape(-1), minlength=size)
        usage = reconstructions.codebook_usage(counts)
        perplexity = reconstructions.codebook_perplexity(counts)
        compare = f"codebooks of {size} entries over as many codes, {counts.sum()}"
        yield Figure("codebook usage", usage, float("nan"), compare)
        yield Figure("perplexity", perplexity, float("nan"), compare)


def rfid(theirs: Moments, pool: np.ndarray) -> Figure:
    """The Fréchet distance of reconstructions to the images themselves.

    Args:
      theirs: of the images' pooled features.
      pool: pooled features of the reconstructions, float32 [N, D].
    """
    ours = moments(pool)
    gaussians = theirs.mu, theirs.sigma, ours.mu, ours.sigma
    error = standard_error(distances.frechet_influence(*gaussians, pool))
    compare = "rFID against the same images, not against the training set's statistics"
    return Figure("rFID", distances.frechet_distance(*gaussians), error, compare)


class _LPIPS(NamedTuple):
    """LPIPS on all devices.

    Attributes:
      hash: of its weights.
      run: uint8 [B, 2, H, W, 3] -> float32 [B].
    """

    hash: str
    run: Callable[[np.ndarray], Any]

    @classmethod
    def open(cls, vgg16: str, lpips_heads: str) -> "_LPIPS":
        params = lpips_weights.load(vgg16, lpips_heads)

        def distance(params: Any, pairs: jax.Array) -> Any:
            images, again = from_uint8(pairs[:, 0]), from_uint8(pairs[:, 1])
            return LPIPS().apply({"params": params}, images, again)

        run = on_all_devices(distance, jax.tree.map(jnp.asarray, params))
        return cls(weights_hash(params), run)


def _worst_and_best(psnr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the worst reconstructions, the worst first, and of the best, the best first."""
    worst, best = (np.argsort(ranks, kind="stable")[:_SHOWN] for ranks in (psnr, -psnr))
    return worst, best


def _keep_shown(folder: Path, psnr: np.ndarray, first: int, pairs: Pairs) -> None:
    """Keeps those of the pairs in the folder that are among the worst and the best so far.

    A batch that is computed again keeps the same ones again.

    Args:
      psnr: of all images up to the last of these.
      first: number of the first of these.
    """
    folder.mkdir(exist_ok=True)
    chosen = np.concatenate(_worst_and_best(psnr)).tolist()
    for number in chosen:
        if number >= first:
            pair = np.stack([part[number - first] for part in pairs[:2]])
            np.save(folder / f"{number}.npy", pair)
    for path in folder.iterdir():
        if int(path.stem) not in chosen:
            path.unlink()


def _picture(folder: Path, psnr: np.ndarray) -> np.ndarray:
    """Rows of the worst images, their reconstructions, the best ones, and theirs.

    The number of an image in its set, and the PSNR of a reconstruction, stand below.
    """
    images, captions = [], []
    for numbers in _worst_and_best(psnr):
        pairs = np.stack([np.load(folder / f"{number}.npy") for number in numbers], axis=1)
        images += [*pairs[0], *pairs[1]]
        captions += [f"image {number}" for number in numbers]
        captions += [f"{psnr[number]:.1f} dB" for number in numbers]
    return captioned_grid(np.array(images), captions, columns=min(_SHOWN, len(psnr)))


def _side_or_size(text: str) -> Size:
    if "x" not in text.lower():
        return commands.whole(text)
    width, height = commands.size(text)
    return width if width == height else (height, width)


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
        type=_side_or_size,
        default=256,
        metavar="SIZE",
        help="side, or WIDTHxHEIGHT, of the centre crop of every image, which may be above the "
        "tokenizer's own (256)",
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
