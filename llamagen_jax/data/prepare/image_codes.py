"""Images of any source to packed codes; part of the command `prepare`."""

import argparse
import functools
import math
from collections.abc import Callable

import jax
import numpy as np
from PIL import Image

from llamagen_jax import commands
from llamagen_jax.control_maps import DETECTORS, check_detector, detect
from llamagen_jax.data import transforms
from llamagen_jax.data.prepare.control_folders import WithControl, kind_and_folder
from llamagen_jax.data.prepare.extract import Extraction, starting_programs
from llamagen_jax.data.prepare.folders import open_discrete
from llamagen_jax.data.records import Manifest
from llamagen_jax.data.sources import SOURCES, open_source
from llamagen_jax.errors import InputError
from llamagen_jax.image_tokenizer import ModelTokenizer, code_grid, on_all_devices
from llamagen_jax.images import encode, from_uint8


def codes_extraction(
    kind: str,
    location: str,
    tokenizer: str,
    *,
    image_size: int,
    sizes: list[tuple[int, int]] | None,
    crops: str,
    crop_range: float | None,
    skip_small: bool,
    background: str,
    exif_orientation: bool,
    control: list[str],
    control_maps: list[tuple[str, str]],
    batch_size: int,
    shard_size: int,
) -> Extraction:
    """Codes of crops of every image of a source, to train a generator on.

    Records are {"codes": uint16 [crops, L]} with the image's "label", "captions" or both, in the
    order of the source. With `sizes` they also have their "grid", [rows, columns], and within a
    shard those of a grid are together. Broken images, those without a label or any caption and, if
    so told, small ones are left out with a warning.

    Args:
      kind, location: of `sources.open_source`.
      tokenizer: of `zoo.load`.
      image_size: side of a crop in pixels.
      sizes: (width, height) of crops, of which each image takes the nearest in aspect ratio, in the
        place of `image_size`.
      crops, crop_range: of `transforms.code_crops`; None is the original's 1.1.
      skip_small: leave out images smaller than their crop instead of enlarging them.
      background, exif_orientation: of `transforms.decode`.
      control: kinds of `control_maps.detect` to add of every crop, as "control".
      control_maps: kinds and folders of maps to add too, see `control_folders`.
      batch_size: images per step over all devices, rounded up to a multiple of their number.
      shard_size: images per file.

    Raises:
      InputError: a path, size or model is wrong.
    """
    crop_range = _crop_range(crops, crop_range)
    transforms.check_background(background)
    decode = functools.partial(
        transforms.decode, background=background, exif_orientation=exif_orientation
    )
    opened, made_by = open_discrete(tokenizer, batch_size)
    targets = [(height, width) for width, height in sizes or [(image_size, image_size)]]
    if len(set(targets)) < len(targets):
        raise InputError(f"--sizes names a size twice: {_told_sizes(targets)}")
    grids = [code_grid(opened, target) for target in targets]
    batch_size += -batch_size % jax.device_count()
    for name in control:
        check_detector(name)
    source = open_source(kind, location)
    if control_maps:
        source = WithControl(source, dict(control_maps))
    return Extraction(
        source=source,
        load=functools.partial(
            _load_crops,
            decode=decode,
            sizes=targets,
            crops=crops,
            crop_range=crop_range,
            skip_small=skip_small,
            control=control,
        ),
        run=_encode_crops(opened, batch_size, tell_grid=bool(sizes)),
        settings={
            "source": kind,
            "location": location,
            "tokenizer": made_by.sha256,
            "image_size": image_size,
            "sizes": sizes,
            "crops": crops,
            "crop_range": crop_range,
            "skip_small": skip_small,
            "background": background,
            "exif_orientation": exif_orientation,
            **({"control": [control, control_maps]} if control or control_maps else {}),
        },
        manifest=Manifest(
            shards=(),
            image_size=None if sizes else image_size,
            class_names=source.class_names,
            tokenizer=made_by,
            code_shape=(transforms.CODE_CROPS[crops], None if sizes else math.prod(grids[0])),
            crops=crops,
            crop_range=crop_range,
            control=(*control, *dict(control_maps)),
            credit=source.credit,
        ),
        batch_size=batch_size,
        shard_size=shard_size,
        shape_of=_crop_shape if sizes else None,
    )


def _told_sizes(sizes: list[tuple[int, int]]) -> str:
    return ", ".join(f"{width}x{height}" for height, width in sizes)


def _crop_range(crops: str, crop_range: float | None) -> float | None:
    if crops != "ten-crop":
        if crop_range is not None:
            raise InputError(f"crop range {crop_range} is for ten-crop only, not for {crops}")
        return None
    crop_range = 1.1 if crop_range is None else crop_range
    if not 1 <= crop_range <= 10:  # not even NaN
        raise InputError(f"crop range {crop_range} must be at least 1 and at most 10")
    return crop_range


def _load_crops(
    record: dict,
    decode: Callable[[bytes | np.ndarray], Image.Image],
    sizes: list[tuple[int, int]],
    crops: str,
    crop_range: float | None,
    skip_small: bool,
    control: list[str],
) -> tuple[np.ndarray, dict]:
    """Crops [crops, H, W, 3], of one of the (height, width), and what of the record is kept."""
    kept = {key: record[key] for key in ("label", "captions") if key in record}
    if "image" not in record or not kept:
        raise InputError(
            f"codes are made of images with labels or captions, not of: {', '.join(record)}"
        )
    if kept == {"captions": {}}:
        raise ValueError("it has no caption")
    image = decode(record["image"])
    size = transforms.nearest_size(image, sizes)
    if skip_small:
        transforms.refuse_small(image, size)
    crop = functools.partial(transforms.code_crops, size=size, kind=crops, crop_range=crop_range)
    pixels = crop(image)
    maps = {kind: [detect(kind, part) for part in pixels] for kind in control}
    for kind, given in record.get("control", {}).items():
        map_image = decode(given)
        if not transforms.same_shape(map_image.size, image.size):
            raise ValueError(
                f"its control map of {kind} is of {map_image.width}x{map_image.height} px, another "
                f"shape than {image.width}x{image.height}"
            )
        maps[kind] = list(crop(map_image))
    if maps:
        kept["control"] = {kind: [encode(m, "png") for m in parts] for kind, parts in maps.items()}
    return pixels, kept


def _crop_shape(example: tuple[np.ndarray, dict]) -> tuple[int, ...]:
    return example[0].shape


def _encode_crops(
    tokenizer: ModelTokenizer, batch_size: int, tell_grid: bool
) -> Callable[[list[tuple[np.ndarray, dict]]], list[dict]]:
    """Makes records of up to `batch_size` pairs of `_load_crops`, whose crops have one shape."""
    to_codes = on_all_devices(lambda t, images: t.encode(from_uint8(images)), tokenizer)

    def run(examples: list[tuple[np.ndarray, dict]]) -> list[dict]:
        arrays, kept = zip(*examples, strict=True)
        images = np.concatenate(arrays + arrays[-1:] * (batch_size - len(arrays)))
        with starting_programs:
            codes = to_codes(images)
        rows = np.asarray(codes, np.uint16).reshape(batch_size, len(arrays[0]), -1)
        grid = {"grid": list(codes.shape[1:])} if tell_grid else {}
        return [{"codes": row} | grid | fields for row, fields in zip(rows, kept, strict=False)]

    return run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `prepare codes`."""
    parser.add_argument(
        "output", type=commands.path, metavar="OUTPUT", help="dataset folder to write"
    )
    parser.add_argument("--source", dest="kind", choices=SOURCES, required=True)
    parser.add_argument(
        "--location",
        type=commands.path,
        required=True,
        help="folder; split of the digits; NAME:VERSION/SPLIT of tfds",
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--image-size", type=commands.whole, default=256, help="side of the crop (256)"
    )
    size.add_argument(
        "--sizes",
        type=commands.size,
        nargs="+",
        metavar="WIDTHxHEIGHT",
        help="several sizes of crops: each image takes the one of the nearest aspect ratio",
    )
    parser.add_argument(
        "--crops",
        choices=transforms.CODE_CROPS,
        default="center",
        help="centre crop, that and its mirror image, or ten crops of each image (center)",
    )
    parser.add_argument(
        "--crop-range",
        type=commands.number,
        help="ten-crop only: crops come from the centre crop this many times larger (1.1)",
    )
    parser.add_argument(
        "--skip-small",
        action="store_true",
        help="leave out images that are smaller than their crop instead of enlarging them",
    )
    parser.add_argument(
        "--background",
        default="white",
        metavar="COLOUR",
        help="behind transparent pixels; '' for the colour that they have themselves (white)",
    )
    parser.add_argument(
        "--exif-orientation",
        action="store_true",
        help="turn photos as their cameras say (as they are stored, like the original)",
    )
    parser.add_argument(
        "--control",
        nargs="*",
        default=[],
        metavar="KIND",
        help=f"control maps to find in every crop and keep with its codes: {', '.join(DETECTORS)}",
    )
    parser.add_argument(
        "--control-maps",
        nargs="*",
        default=[],
        type=kind_and_folder,
        metavar="KIND=FOLDER",
        help="folders of control maps that exist already, such as depth=DEPTH: for each image of "
        "an image_folder an image of the same name",
    )
    parser.add_argument(
        "--shard-size", type=commands.whole, default=10_000, help="images per file (10000)"
    )
