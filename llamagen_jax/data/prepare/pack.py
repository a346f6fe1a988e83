"""Any source of images -> a dataset folder of ArrayRecord shards; part of the command `prepare`."""

import argparse
import io
from collections.abc import Iterator

import numpy as np
from absl import logging
from PIL import Image
from tqdm import tqdm

from llamagen_jax import commands
from llamagen_jax.data import transforms
from llamagen_jax.data.records import Manifest, write_dataset
from llamagen_jax.data.sources import SOURCES, Source, open_source
from llamagen_jax.errors import InputError


def pack_source(kind: str, location: str, output: str, *, captions: list[str]) -> Manifest:
    """Writes the images of a source, as they are encoded, with their labels or captions.

    Broken images and records without any of the captions are left out with a warning, and counted.

    Args:
      kind, location: of `sources.open_source`.
      output: folder to write, which appears when it is complete.
      captions: names of the captions to keep; all if empty.

    Raises:
      InputError: a path is wrong, or nothing can be packed.
    """
    source = open_source(kind, location)
    manifest = write_dataset(
        output,
        _records(source, captions),
        class_names=source.class_names,
        credit=source.credit,
    )
    count = sum(shard.records for shard in manifest.shards)
    print(f"wrote {count} images to {output}; skipped {len(source) - count}")
    return manifest


def _records(source: Source, captions: list[str]) -> Iterator[dict]:
    first, count = "", 0
    for index in tqdm(range(len(source)), desc="pack", unit="image"):
        try:
            record = _record(source[index], captions)
        # Readers and decoders raise errors of any type on damaged bytes.
        except Exception as error:
            reason = f"{source.name(index)}: {type(error).__name__}: {error}"
            logging.warning("skipped %s", reason)
            first = first or reason
        else:
            count += 1
            yield record
    if not count:
        raise InputError(
            f"every record of {source!r} is broken, the first: {first}; check the input"
        )


def _record(record: dict, names: list[str]) -> dict:
    image = transforms.decode(record["image"])
    if isinstance(record["image"], np.ndarray):
        record = record | {"image": _png(image)}
    if "captions" not in record:
        return record
    captions, wanted = record["captions"], ""
    if names:
        wanted = f" of {', '.join(names)}, only: {', '.join(captions) or 'none'}"
        captions = {name: text for name, text in captions.items() if name in names}
    if not captions:
        raise ValueError(f"it has no caption{wanted}")
    return record | {"captions": captions}


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `prepare pack`."""
    parser.set_defaults(run=pack_source)
    parser.add_argument(
        "output", type=commands.path, metavar="OUTPUT", help="dataset folder to write"
    )
    parser.add_argument("--source", dest="kind", choices=SOURCES, required=True)
    parser.add_argument(
        "--location",
        type=commands.path,
        required=True,
        help="folder of images; split of the digits, or of the emoji and their size: train/64",
    )
    parser.add_argument(
        "--captions", nargs="*", default=[], help="names of the captions to keep (all)"
    )
