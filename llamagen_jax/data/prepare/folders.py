"""Folders of images to a file of codes and back; part of the command `prepare`."""

import dataclasses
import functools
import itertools
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from absl import logging
from PIL import Image
from tqdm import tqdm

from llamagen_jax.data import image_files, transforms
from llamagen_jax.data.records import TokenizerId
from llamagen_jax.errors import InputError
from llamagen_jax.files import staged
from llamagen_jax.image_tokenizer import (
    ModelTokenizer,
    code_grid,
    decode_tiled,
    on_all_devices,
    open_tokenizer,
    run_filled,
    tile_codes,
)
from llamagen_jax.images import from_uint8, save_png, to_uint8
from llamagen_jax.weights.integrity import weights_hash


def encode_folder(
    images: str, output: str, *, tokenizer: str, image_size: int | None, batch_size: int
) -> None:
    """Encodes every image of a folder and its subfolders, equal sizes batched together.

    Broken images are left out with a warning, and counted.

    Args:
      images: folder of images in any format that Pillow reads.
      output: .npz file to write. It holds codes, uint16 [h, w], under the path that the image has
        in `images`, such as "cats/1.jpg", and a `TokenizerId` as JSON under "tokenizer".
      tokenizer: of `zoo.load`.
      image_size: side of the centre crop in pixels; None takes every image as it is.
      batch_size: images per step over all devices, rounded up to a multiple of their number.

    Raises:
      InputError: a path, size or model is wrong, or the downsampling does not divide the sides of
        an image.
    """
    opened, made_by = open_discrete(tokenizer, batch_size)
    if image_size is not None:
        code_grid(opened, image_size)
    run = on_all_devices(lambda t, pixels: t.encode(from_uint8(pixels)), opened)
    codes = {}
    with staged(output) as partial:
        paths = _image_paths(Path(images))
        groups = [paths] if image_size else _equal_sizes(paths, opened.downsampling)
        with tqdm(total=len(paths), desc="encode", unit="image") as bar:
            for group in groups:
                examples = _read_images(Path(images), group, image_size, bar)
                size = min(batch_size, len(group))
                for names, pixels in _batches(examples, size):
                    rows = run_filled(run, pixels, size).astype(np.uint16)
                    # Bytes of a name that are no UTF-8 are written as their escapes.
                    told = [name.encode(errors="backslashreplace").decode() for name in names]
                    codes.update(zip(told, rows, strict=True))
        if not codes:
            raise InputError(f"every image in {images} is broken: copy them again")
        with partial.open("wb") as file:
            np.savez(file, tokenizer=json.dumps(dataclasses.asdict(made_by)), **codes)
    print(f"wrote codes of {len(codes)} images to {output}; skipped {len(paths) - len(codes)}")


def decode_folder(
    codes: str, output: str, *, tokenizer: str, tile: int | None, batch_size: int
) -> None:
    """Decodes a file of `encode_folder` to PNGs that are called like the images.

    Args:
      codes: the file.
      output: folder to write, which appears when it is complete; "cats/1.jpg" becomes
        "cats/1.png" there.
      tokenizer: of `zoo.load`; the one that made the codes.
      tile: side in pixels of the tiles to decode in (`decode_tiled`); None decodes whole images.
      batch_size: as in `encode_folder`.

    Raises:
      InputError: a path, size or model is wrong, or the file is damaged.
    """
    opened, named = open_discrete(tokenizer, batch_size)
    side = tile_codes(opened, tile) if tile else None
    grids, made_by = _read_codes(codes)
    if named.sha256 != made_by.sha256:
        raise InputError(
            f"{codes} was made by another tokenizer ({made_by.name}) than {tokenizer}; name that"
        )
    run = on_all_devices(lambda t, batch: t.decode(batch), opened)
    groups = defaultdict(list)
    for name, grid in grids.items():
        groups[grid.shape].append((name, grid))
    with staged(output) as partial, tqdm(total=len(grids), desc="decode", unit="image") as bar:
        for group in groups.values():
            size = min(batch_size, len(group))
            decode = functools.partial(run_filled, run, size=size)
            for names, batch in _batches(iter(group), size):
                tile_side = side or max(batch.shape[1:])
                decoded = decode_tiled(decode, batch, tile_side, opened.downsampling)
                for name, image in zip(names, to_uint8(decoded), strict=True):
                    save_png(partial / PurePosixPath(name).with_suffix(".png"), image)
                    bar.update()
    print(f"wrote {len(grids)} images to {output}")


def open_discrete(name: str, batch_size: int) -> tuple[ModelTokenizer, TokenizerId]:
    """A tokenizer whose codes can be stored, and what a folder of them says of it.

    Raises:
      InputError: of `open_tokenizer`, the batch size is not positive, or there are too many codes.
    """
    if batch_size < 1:
        raise InputError(f"batch size {batch_size} must be at least 1")
    tokenizer = open_tokenizer(name)
    assert tokenizer.codebook_size is not None  # of `open_tokenizer`
    if tokenizer.codebook_size > 2**16:
        raise InputError(
            f"{name} has {tokenizer.codebook_size} codes; at most {2**16} can be stored"
        )
    return tokenizer, TokenizerId(name, weights_hash(tokenizer.params), tokenizer.codebook_size)


def _image_paths(folder: Path) -> list[Path]:
    paths = image_files.images_of(image_files.walk(folder), folder)
    if not paths:
        raise InputError(f"{folder} is no folder with images: check the path")
    decoded = {path.with_suffix(""): path for path in paths}
    for path in paths:
        other = decoded[path.with_suffix("")]
        if other != path:
            raise InputError(f"{path} and {other} would decode to the same .png; rename one")
    return paths


def _equal_sizes(paths: list[Path], downsampling: int) -> list[list[Path]]:
    """Groups the images by their size, as their headers tell it."""
    groups, unfit = defaultdict(list), []
    for path in tqdm(paths, desc="sizes", unit="image"):
        try:
            with Image.open(path) as image:
                size = image.size
        # Reported where the image is read, like any other damage.
        except Exception:
            size = None
        if size and any(side % downsampling for side in size):
            unfit.append(f"{path} ({size[0]}x{size[1]})")
        groups[size].append(path)
    if unfit:
        raise InputError(
            f"{len(unfit)} of {len(paths)} images, such as {unfit[0]}, have sides that the "
            f"tokenizer's downsampling {downsampling} does not divide; crop all with --image-size"
        )
    return list(groups.values())


def _read_images(
    folder: Path, paths: list[Path], image_size: int | None, bar: tqdm
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields names and uint8 pixels [H, W, 3] of the images that are whole."""
    for path in paths:
        bar.update()
        try:
            image = transforms.decode(path.read_bytes())
        # Decoders raise errors of any type on damaged bytes.
        except Exception as error:
            logging.warning("skipped %s: %s: %s", path, type(error).__name__, error)
            continue
        pixels = transforms.center_crop(image, image_size) if image_size else np.asarray(image)
        yield path.relative_to(folder).as_posix(), pixels


def _batches(
    examples: Iterator[tuple[str, np.ndarray]], size: int
) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    """Yields names and arrays, `size` at a time, the last fewer."""
    while chunk := list(itertools.islice(examples, size)):
        names, arrays = zip(*chunk, strict=True)
        yield names, np.stack(arrays)


def _read_codes(path: str) -> tuple[dict[str, np.ndarray], TokenizerId]:
    """Codes uint16 [h, w] by the images' paths, and what made them."""
    try:
        with np.load(path) as file:
            grids = dict(file)
        made_by = TokenizerId(**json.loads(str(grids.pop("tokenizer"))))
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    # Damaged and foreign files raise whatever their bytes happen to lead to.
    except Exception as error:
        raise InputError(f"{path} is damaged or not written by `encode`") from error
    for name in grids:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise InputError(f"{path} would write outside of the output folder: {name}")
    return grids, made_by
