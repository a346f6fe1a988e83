"""Image files in folders as they lie on disks: with sub-folders, links, and what systems add."""

import collections
import csv
import functools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from absl import logging
from PIL import Image

from llamagen_jax.errors import InputError
from llamagen_jax.files import is_hidden

# Formats that Pillow knows by name but needs other programs for.
_NOT_READ = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
_METADATA = ("metadata.jsonl", "metadata.csv")


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Suffixes, in lower case with their dot, of the formats that Pillow reads."""
    return frozenset(
        suffix
        for suffix, kind in Image.registered_extensions().items()
        if kind in Image.OPEN and kind not in _NOT_READ
    )


def walk(folder: Path) -> Iterator[Path]:
    """Files below the folder that are not hidden, in the order of torchvision's ImageFolder.

    Links are followed, but not back to a folder that they are in.
    """
    found = {}
    # Of each folder the real paths of those that it was reached through.
    above = {str(folder): {os.path.realpath(folder)}}
    for root, names, files in os.walk(folder, followlinks=True):
        found[root] = sorted(name for name in files if not is_hidden(name))
        kept = []
        for name in names:
            path = os.path.join(root, name)  # noqa: PTH118
            if is_hidden(name):
                continue
            if (real := os.path.realpath(path)) in above[root]:
                logging.warning("left out '%s', a link to a folder that it is in", path)
                continue
            above[path] = above[root] | {real}
            kept.append(name)
        names[:] = kept
    for root in sorted(found):
        yield from (Path(root, name) for name in found[root])


def images_of(files: Iterable[Path], folder: Path) -> list[Path]:
    """The images among the files; a warning counts the others by suffix."""
    images, others = [], collections.Counter()
    for path in files:
        if path.suffix.lower() in image_suffixes():
            images.append(path)
        else:
            others[path.suffix or "without a suffix"] += 1
    if others:
        told = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
        logging.warning("left out of '%s' what is no image: %s", folder, told)
    return images


def read_captions(folder: Path) -> tuple[dict[str, dict[str, str]], str] | None:
    """The captions that a folder's metadata file tells, and the file's name; None without one.

    As the image folders of Hugging Face's `datasets` have them: metadata.jsonl or metadata.csv with
    a file_name, relative to the folder, and any texts beside it.

    Returns:
      By file name, texts by their column.

    Raises:
      InputError: the file cannot be read or has no file_name.
    """
    path = next((folder / name for name in _METADATA if (folder / name).is_file()), None)
    if path is None:
        return None
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".csv":
            rows: Iterable[Mapping] = csv.DictReader(text.splitlines(keepends=True))
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        captions = {
            os.path.normpath(row["file_name"]): {
                str(name): value
                for name, value in row.items()
                if name != "file_name" and isinstance(value, str) and value.strip()
            }
            for row in rows
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise InputError(f"'{path}' is damaged or has rows without file_name: {error!r}") from error
    return captions, path.name
