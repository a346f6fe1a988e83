"""Prepares data: codes to train a generator on, folders of images to codes and back."""

import argparse
from collections.abc import Iterator

import jax
import numpy as np
from tqdm import tqdm

from llamagen_jax.data import filter as metadata_filter
from llamagen_jax.data import pack, scene_files
from llamagen_jax.data.latents import (
    decode_folder,
    encode_folder,
    encoder,
    on_all_devices,
    open_tokenizer,
)
from llamagen_jax.data.pipeline import DataConfig, eval_batches
from llamagen_jax.data.records import Manifest, TokenizerId, write_dataset
from llamagen_jax.data.sources import SOURCES, open_source
from llamagen_jax.errors import one_line_errors
from llamagen_jax.export import weights_hash
from llamagen_jax.models.vqgan import VQGAN


def extract_codes(
    kind: str, location: str, tokenizer: str, output: str, *, image_size: int, batch_size: int
) -> Manifest:
    """Encodes every image of a source into a dataset folder of packed codes.

    Images are centre-cropped; broken ones are left out with a warning.

    Args:
      kind, location: of `sources.open_source`.
      tokenizer: of `zoo.load`.
      output: folder to write, which appears when it is complete.
      image_size: side of the crop in pixels.
      batch_size: images per step over all devices, rounded up to a multiple of their number.

    Raises:
      InputError: a path, size or model is wrong.
    """
    model, params = open_tokenizer(tokenizer, batch_size=batch_size, image_size=image_size)
    batch_size += -batch_size % jax.device_count()
    c, source = model.config, open_source(kind, location)
    manifest = write_dataset(
        output,
        _code_records(kind, location, model, params, image_size, batch_size),
        image_size=image_size,
        class_names=source.class_names,
        tokenizer=TokenizerId(tokenizer, weights_hash(params), c.codebook_size),
        code_shape=(1, (image_size // c.downsampling) ** 2),
    )
    count = sum(shard.records for shard in manifest.shards)
    print(f"wrote codes of {count} images to {output}; skipped {len(source) - count}")
    return manifest


def _code_records(
    kind: str, location: str, model: VQGAN, params: dict, image_size: int, batch_size: int
) -> Iterator[dict]:
    run = on_all_devices(encoder(model), params)
    data = DataConfig(
        source=kind,
        train=location,
        eval=location,
        image_size=image_size,
        random_crop=False,
        random_flip=False,
        workers=0,
    )
    with tqdm(desc="codes", unit="image", total=len(open_source(kind, location))) as bar:
        for batch in eval_batches(data, batch_size=batch_size):
            codes = np.asarray(run(batch["image"]), np.uint16).reshape(batch_size, 1, -1)
            for row in np.flatnonzero(batch["weight"]):
                yield {"codes": codes[row], "label": int(batch["label"][row])}
                bar.update()


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

    codes = commands.add_parser("codes", help="labelled images -> dataset of codes to train on")
    codes.set_defaults(run=extract_codes)
    codes.add_argument("output", metavar="OUTPUT", help="dataset folder to write")
    codes.add_argument("--source", dest="kind", choices=SOURCES, required=True)
    codes.add_argument("--location", required=True, help="folder of images; split of the digits")
    codes.add_argument("--image-size", type=int, default=256, help="side of the crop (256)")

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
