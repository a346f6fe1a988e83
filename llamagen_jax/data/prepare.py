"""Prepares data: codes and text features to train on, folders of images to codes and back."""

import argparse
import functools
from collections.abc import Callable

import jax
import numpy as np

from llamagen_jax.data import filter as metadata_filter
from llamagen_jax.data import pack, scene_files, text_features, transforms
from llamagen_jax.data.extract import Extraction, extract, starting_programs
from llamagen_jax.data.latents import (
    decode_folder,
    encode_folder,
    encoder,
    on_all_devices,
    open_tokenizer,
)
from llamagen_jax.data.records import Manifest, TokenizerId
from llamagen_jax.data.sources import SOURCES, open_source
from llamagen_jax.errors import InputError, one_line_errors
from llamagen_jax.export import weights_hash
from llamagen_jax.models.vqgan import VQGAN


def extract_codes(
    kind: str,
    location: str,
    tokenizer: str,
    output: str,
    *,
    image_size: int,
    crops: str,
    crop_range: float | None,
    batch_size: int,
    shard_size: int,
    process_index: int,
    process_count: int,
) -> None:
    """Encodes crops of every image of a source into a dataset folder of packed codes.

    Records are {"codes": uint16 [crops, L]} with the image's "label", "captions" or both, in the
    order of the source; broken images and those without a label or any caption are left out with a
    warning. A run that was killed goes on when it is started again.

    Args:
      kind, location: of `sources.open_source`.
      tokenizer: of `zoo.load`.
      output: folder to write, which appears when it is complete.
      image_size: side of a crop in pixels.
      crops, crop_range: of `transforms.code_crops`; None is the original's 1.1.
      batch_size: images per step over all devices, rounded up to a multiple of their number.
      shard_size: images per file.
      process_index, process_count: of `extract.extract`.

    Raises:
      InputError: a path, size or model is wrong, or see `extract.extract`.
    """
    crop_range = _crop_range(crops, crop_range, image_size)
    model, params = open_tokenizer(tokenizer, batch_size=batch_size, image_size=image_size)
    batch_size += -batch_size % jax.device_count()
    c, source = model.config, open_source(kind, location)
    made_by = TokenizerId(tokenizer, weights_hash(params), c.codebook_size)
    extract(
        output,
        Extraction(
            source=source,
            load=functools.partial(
                _load_crops, image_size=image_size, crops=crops, crop_range=crop_range
            ),
            run=_encode_crops(model, params, batch_size),
            settings={
                "source": kind,
                "location": location,
                "tokenizer": made_by.sha256,
                "image_size": image_size,
                "crops": crops,
                "crop_range": crop_range,
            },
            manifest=Manifest(
                shards=(),
                image_size=image_size,
                class_names=source.class_names,
                tokenizer=made_by,
                code_shape=(
                    transforms.CODE_CROPS[crops],
                    (image_size // c.downsampling) ** 2,
                ),
                crops=crops,
                crop_range=crop_range,
            ),
            batch_size=batch_size,
            shard_size=shard_size,
        ),
        process_index=process_index,
        process_count=process_count,
    )


def _crop_range(crops: str, crop_range: float | None, image_size: int) -> float | None:
    if crops != "ten-crop":
        if crop_range is not None:
            raise InputError(f"crop range {crop_range} is for ten-crop only, not for {crops}")
        return None
    crop_range = 1.1 if crop_range is None else crop_range
    if not 1 <= crop_range <= 10:  # not even NaN
        raise InputError(f"crop range {crop_range} must be at least 1 and at most 10")
    return crop_range


def _load_crops(
    record: dict, image_size: int, crops: str, crop_range: float | None
) -> tuple[np.ndarray, dict]:
    """Crops [crops, S, S, 3], and what of the record is kept."""
    kept = {key: record[key] for key in ("label", "captions") if key in record}
    if "image" not in record or not kept:
        raise InputError(
            f"codes are made of images with labels or captions, not of: {', '.join(record)}"
        )
    if kept == {"captions": {}}:
        raise ValueError("it has no caption")
    image = transforms.decode(record["image"])
    return transforms.code_crops(image, image_size, crops, crop_range), kept


def _encode_crops(
    model: VQGAN, params: dict, batch_size: int
) -> Callable[[list[tuple[np.ndarray, dict]]], list[dict]]:
    """Makes records of up to `batch_size` pairs of `_load_crops`."""
    encode = on_all_devices(encoder(model), params)

    def run(examples: list[tuple[np.ndarray, dict]]) -> list[dict]:
        arrays, kept = zip(*examples, strict=True)
        images = np.concatenate(arrays + arrays[-1:] * (batch_size - len(arrays)))
        with starting_programs:
            codes = encode(images)
        rows = np.asarray(codes, np.uint16).reshape(batch_size, len(arrays[0]), -1)
        return [{"codes": row} | fields for row, fields in zip(rows, kept, strict=False)]

    return run


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    arguments = vars(_parser().parse_args(argv))
    run = arguments.pop("run")
    with one_line_errors():
        run(**arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llamagen_jax.data.prepare", description=__doc__
    )
    commands = parser.add_subparsers(required=True)

    codes = commands.add_parser(
        "codes",
        help="images with labels or captions -> dataset of codes to train on",
        description="Encodes images to train a generator on. Killed at any moment and started "
        "again with the same command, it goes on at the first missing shard of OUTPUT.partial, "
        "which becomes OUTPUT when it is complete. Several machines with one file "
        "system share the work: give each the same command, --process-count and its own "
        "--process-index.",
    )
    codes.set_defaults(run=extract_codes)
    codes.add_argument("output", metavar="OUTPUT", help="dataset folder to write")
    codes.add_argument("--source", dest="kind", choices=SOURCES, required=True)
    codes.add_argument(
        "--location", required=True, help="folder; split of the digits; NAME:VERSION/SPLIT of tfds"
    )
    codes.add_argument("--image-size", type=int, default=256, help="side of the crop (256)")
    codes.add_argument(
        "--crops",
        choices=transforms.CODE_CROPS,
        default="center",
        help="centre crop, that and its mirror image, or ten crops of each image (center)",
    )
    codes.add_argument(
        "--crop-range",
        type=float,
        help="ten-crop only: crops come from the centre crop this many times larger (1.1)",
    )
    codes.add_argument("--shard-size", type=int, default=10_000, help="images per file (10000)")

    text = commands.add_parser(
        "text",
        help="dataset of captions -> the same with text features",
        description="Encodes captions to train a text-conditional generator on. It goes on and "
        "shares its work as `codes` does.",
    )
    text_features.add_arguments(text)

    for command in (codes, text):
        command.add_argument("--process-index", type=int, default=0, help="which share to do (0)")
        command.add_argument("--process-count", type=int, default=1, help="shares of the work (1)")

    encode = commands.add_parser("encode", help="folder of images -> file of codes")
    encode.set_defaults(run=encode_folder)
    encode.add_argument("images", metavar="IMAGES", help="folder, searched with its subfolders")
    encode.add_argument(
        "output", metavar="OUTPUT", help=".npz file to write: codes [h, w] by the images' paths"
    )
    encode.add_argument(
        "--image-size", type=int, help="side of a centre crop (every image as it is)"
    )

    decode = commands.add_parser("decode", help="file of codes -> folder of images")
    decode.set_defaults(run=decode_folder)
    decode.add_argument("codes", metavar="CODES", help="file that `encode` wrote")
    decode.add_argument("output", metavar="OUTPUT", help="folder of PNGs to write")

    metadata_filter.add_arguments(
        commands.add_parser(
            "filter",
            help="metadata of images and captions -> the rows worth downloading",
            description=metadata_filter.__doc__.partition("\n\n")[2],
        )
    )

    pack.add_arguments(commands.add_parser("pack", help="images of any source -> dataset folder"))

    scene_files.add_scenes_arguments(
        commands.add_parser("scenes", help="metadata of a world of captioned shapes, to try all on")
    )
    scene_files.add_render_arguments(
        commands.add_parser("render", help="tar shards of the images of those metadata")
    )

    for command in (codes, encode, decode):
        command.add_argument("--tokenizer", required=True, help="work folder, export, file or name")
        command.add_argument("--batch-size", type=int, default=32, help="images per step (32)")
    return parser


if __name__ == "__main__":
    main()
