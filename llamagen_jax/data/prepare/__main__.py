"""Prepares data: codes and text features to train on, folders of images to codes and back."""

import argparse
import functools
from collections.abc import Callable

from llamagen_jax import commands
from llamagen_jax.data.prepare import (
    captions,
    check,
    image_codes,
    pack,
    text_features,
    word_encoder,
)
from llamagen_jax.data.prepare import filter as metadata_filter
from llamagen_jax.data.prepare.extract import Extraction, extract
from llamagen_jax.data.prepare.folders import decode_folder, encode_folder
from llamagen_jax.errors import one_line_errors
from llamagen_jax.scenes import encoder as scene_encoder
from llamagen_jax.scenes import files as scene_files


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    arguments = vars(_parser().parse_args(argv))
    run = arguments.pop("run")
    with one_line_errors():
        run(**arguments)


def _extract(make: Callable[..., Extraction], output: str, **arguments) -> None:
    names = ("engine", "ray_address", "process_index", "process_count")
    sharing = {name: arguments.pop(name) for name in names}
    extract(output, functools.partial(make, **arguments), **sharing)


def _parser() -> argparse.ArgumentParser:
    parser = commands.Parser(prog="python -m llamagen_jax.data.prepare", description=__doc__)
    subparsers = parser.add_subparsers(required=True)

    codes = subparsers.add_parser(
        "codes",
        help="images with labels or captions -> dataset of codes to train on",
        description="Encodes images to train a generator on. Killed at any moment and started "
        "again with the same command, it goes on at the first missing shard of OUTPUT.partial, "
        "which becomes OUTPUT when it is complete. Several machines with one file system share "
        "the work: as a Ray cluster (--engine ray), or each with the same command, --process-count "
        "and its own --process-index.",
    )
    codes.set_defaults(run=functools.partial(_extract, image_codes.codes_extraction))
    image_codes.add_arguments(codes)

    text = subparsers.add_parser(
        "text",
        help="dataset of captions -> the same with text features",
        description="Encodes captions to train a text-conditional generator on. It goes on and "
        "shares its work as `codes` does.",
    )
    text.set_defaults(run=functools.partial(_extract, text_features.text_extraction))
    text_features.add_arguments(text)

    for command in (codes, text):
        command.add_argument(
            "--engine",
            choices=("local", "ray"),
            default="local",
            help="compute here, or on every GPU, or else machine, of a Ray cluster (local)",
        )
        command.add_argument(
            "--ray-address",
            metavar="HOST:PORT",
            help="cluster to join; auto finds this machine's (RAY_ADDRESS, or one that is started)",
        )
        command.add_argument(
            "--process-index",
            type=commands.whole_or_zero,
            default=0,
            help="which share to do (0)",
        )
        command.add_argument(
            "--process-count", type=commands.whole, default=1, help="shares of the work (1)"
        )

    encode = subparsers.add_parser("encode", help="folder of images -> file of codes")
    encode.set_defaults(run=encode_folder)
    encode.add_argument(
        "images",
        type=commands.path,
        metavar="IMAGES",
        help="folder, searched with its subfolders",
    )
    encode.add_argument(
        "output",
        type=commands.path,
        metavar="OUTPUT",
        help=".npz file to write: codes [h, w] by the images' paths",
    )
    encode.add_argument(
        "--image-size",
        type=commands.whole,
        help="side of a centre crop (every image as it is)",
    )

    decode = subparsers.add_parser("decode", help="file of codes -> folder of images")
    decode.set_defaults(run=decode_folder)
    decode.add_argument(
        "codes", type=commands.path, metavar="CODES", help="file that `encode` wrote"
    )
    decode.add_argument(
        "output", type=commands.path, metavar="OUTPUT", help="folder of PNGs to write"
    )
    decode.add_argument(
        "--tile",
        type=commands.whole,
        metavar="N",
        help="decode in overlapping tiles of N px, where whole images do not fit into memory",
    )

    metadata_filter.add_arguments(
        subparsers.add_parser(
            "filter",
            help="metadata of images and captions -> the rows worth downloading",
            description=(metadata_filter.__doc__ or "").partition("\n\n")[2],
        )
    )

    pack.add_arguments(subparsers.add_parser("pack", help="images of any source -> dataset folder"))

    captions.add_arguments(
        subparsers.add_parser("captions", help="captions of any source -> text file of prompts")
    )

    word_encoder.add_arguments(
        subparsers.add_parser(
            "word-encoder",
            help="dataset of captions -> a small text encoder of random weights that knows their "
            "words",
        )
    )

    check.add_arguments(
        subparsers.add_parser("check", help="whether files and folders are still what was written")
    )

    scene_files.add_scenes_arguments(
        subparsers.add_parser(
            "scenes", help="metadata of a world of captioned shapes, to try all on"
        )
    )
    scene_files.add_render_arguments(
        subparsers.add_parser("render", help="tar shards of the images of those metadata")
    )

    scene_files.add_prompts_arguments(
        subparsers.add_parser("scene-prompts", help="captions of scenes that are never trained on")
    )
    scene_encoder.add_arguments(
        subparsers.add_parser(
            "scene-encoder", help="a small text encoder of random weights for their captions"
        )
    )

    for command in (codes, encode, decode):
        command.add_argument(
            "--tokenizer",
            type=commands.path,
            required=True,
            help="work folder, export, file or name",
        )
        command.add_argument(
            "--batch-size", type=commands.whole, default=32, help="images per step (32)"
        )
    return parser


if __name__ == "__main__":
    main()
