"""Tar shards of images, captions and labels, as img2dataset and webdataset write them.

A sample is the members of a shard whose names differ in their suffix alone: `000000123.jpg` (or any
other that Pillow reads), `000000123.txt`, `000000123.json` and `000000123.cls`. They are read in
place by an index.
"""

import bisect
import contextlib
import itertools
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import xxhash
from absl import logging
from tqdm import tqdm

from llamagen_jax.data.image_files import image_suffixes
from llamagen_jax.errors import InputError
from llamagen_jax.files import is_hidden, staged_apart

# Which column of an index holds a member; images are in column 0.
_PARTS = {".txt": 1, ".json": 2, ".cls": 3}
_COLUMNS = 4
# Of the layout of index files.
_VERSION = 2
_ZEROS = bytes(tarfile.BLOCKSIZE)
# Strings of the .json member that img2dataset keeps of every image, beside captions.
_NO_CAPTIONS = ("url", "key", "status", "error_message", "exif", "md5", "sha256", "sha512")


class TarShardsSource:
    """The samples of a folder of uncompressed `*.tar` shards, in the order of names and positions.

    Records are {"image": encoded bytes, "captions": {name: text}}, with the number in a .cls member
    as "label". The captions are the .txt member as "txt" and the strings of the .json member under
    their keys, those of a list as "KEY_0", "KEY_1" and so on; empty ones and what img2dataset keeps
    besides ("url", "sha256" and the like) are left out. Reading a sample raises that has no image,
    a damaged .json, text that is not UTF-8, or other bytes than when its shard was indexed.

    Where the members lie in a shard, and a digest of each sample, are kept beside it in
    SHARD.index, which is made anew when the shard's size or time of change is another; where it
    cannot be written it is held in memory alone. `unreadable` counts the shards that are left out,
    with a warning, because they are cut off, compressed or no tar files.
    """

    class_names: tuple[str, ...] = ()
    manifest = None
    credit = ""

    def __init__(self, folder: str | os.PathLike):
        """Raises InputError if the folder is missing or has no shard that can be read."""
        self._folder = Path(folder)
        paths = _shards(self._folder)
        self._shards: list[Path] = []
        self._indexes: list[np.ndarray] = []
        self.unreadable = 0
        for path in tqdm(paths, desc="index", unit="shard", disable=len(paths) < 10, leave=False):
            try:
                index = _cached_index(path)
            except (tarfile.TarError, OSError) as error:
                logging.warning("left out shard '%s': %s", path, error)
                self.unreadable += 1
            else:
                self._shards.append(path)
                self._indexes.append(index)
        if self.unreadable:
            counts = self.unreadable, len(paths)
            logging.warning("left out %d of the %d shards in '%s'", *counts, folder)
        self._ends = list(itertools.accumulate(map(len, self._indexes)))
        if not self._ends or not self._ends[-1]:
            raise InputError(
                f"no shard in '{folder}' can be read: they must be whole, uncompressed tar files "
                "with images; copy or download them again"
            )

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict:
        (image, text, fields, label), whole = self._read(index)
        if not whole:
            raise ValueError("its bytes have changed since the shard was indexed")
        if not image:
            raise ValueError("it has no image")
        captions = {"txt": text.decode()} | _strings(json.loads(fields) if fields else {})
        captions = {
            name: text
            for name, text in captions.items()
            if name not in _NO_CAPTIONS and isinstance(text, str) and text.strip()
        }
        "".join(captions.values()).encode()  # JSON can hold halves of characters
        return {"image": image, "captions": captions} | ({"label": int(label)} if label else {})

    def changed(self, index: int) -> bool:
        """Whether a sample has other bytes than when its shard was indexed."""
        return not self._read(index)[1]

    def _read(self, index: int) -> tuple[list[bytes], bool]:
        """The parts of a sample, and whether they are those of its digest."""
        shard, position = self._locate(index)
        row = self._indexes[shard][position]
        # Opened for each sample: thousands of shards would exhaust a process's descriptors.
        with self._shards[shard].open("rb", buffering=0) as file:
            parts = _read(file, row)
        return parts, _digest(parts) == row["digest"]

    def name(self, index: int) -> str:
        shard, position = self._locate(index)
        return f"sample {position} of '{self._shards[shard]}'"

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = bisect.bisect_right(self._ends, index)
        return shard, index - self._ends[shard] + len(self._indexes[shard])

    def __repr__(self) -> str:
        return f"TarShardsSource('{self._folder}', {len(self)} records, {len(self._shards)} shards)"


def verify(folder: str | os.PathLike) -> None:
    """Compares every sample of a folder of shards with its digest, showing a bar.

    Raises:
      InputError: a shard cannot be read, or samples are not what they were when it was indexed.
    """
    source = TarShardsSource(folder)
    if source.unreadable:
        raise InputError(
            f"{source.unreadable} shards in '{folder}' cannot be read: copy them again"
        )
    numbers = tqdm(range(len(source)), desc="check", unit="sample")
    changed = [number for number in numbers if source.changed(number)]
    if changed:
        raise InputError(
            f"{len(changed)} samples in '{folder}' have changed since their shards were indexed, "
            f"the first: {source.name(changed[0])}; copy the shards again"
        )


def _shards(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.glob("*.tar") if not is_hidden(path.name))
    if not paths:
        raise InputError(f"there are no .tar shards in '{folder}': check the path")
    return paths


def _strings(fields: dict) -> dict:
    """The fields, with the items of lists under names of their own."""
    lists = {name: value for name, value in fields.items() if isinstance(value, list)}
    items = {f"{name}_{i}": item for name, value in lists.items() for i, item in enumerate(value)}
    return {name: value for name, value in fields.items() if name not in lists} | items


def _cached_index(path: Path) -> np.ndarray:
    """Of each sample its `_ROW`.

    Raises TarError or OSError if the shard cannot be read.
    """
    status = path.stat()
    stamp = np.array([_VERSION, status.st_size, status.st_mtime_ns], np.int64)
    cache = path.with_name(path.name + ".index")
    # A damaged file raises errors of any type; the index is then made again.
    with contextlib.suppress(Exception), np.load(cache) as stored:
        if np.array_equal(stored["stamp"], stamp):
            return stored["index"]
    index = _index(path)
    with contextlib.suppress(OSError), staged_apart(cache) as partial, partial.open("wb") as file:
        np.savez(file, stamp=stamp, index=index)
    return index


# Offset and size of image, text, json and label, size 0 where there is none; and their digest.
_ROW = np.dtype([("parts", np.int64, (_COLUMNS, 2)), ("digest", np.uint64)])


def _index(path: Path) -> np.ndarray:
    samples: dict[str, np.ndarray] = {}
    twice = sparse = 0
    with path.open("rb") as file:
        for member, (offset, size) in _members(file):
            folder, _, base = member.name.rpartition("/")
            if any(is_hidden(part) for part in member.name.split("/") if part != "."):
                continue
            stem, dot, suffix = base.rpartition(".")
            suffix = dot + suffix.lower()
            column = 0 if suffix in image_suffixes() else _PARTS.get(suffix)
            if column is None:
                continue
            if member.issparse():
                sparse += 1
                continue
            parts = samples.setdefault(f"{folder}/{stem}", np.zeros((_COLUMNS, 2), np.int64))
            twice += bool(parts[column, 1])
            parts[column] = offset, size
        extra = [stem for stem in samples if _belongs_to_another(stem, samples)]
        for stem in extra:
            del samples[stem]
        index = np.zeros(len(samples), _ROW)
        index["parts"] = list(samples.values()) or np.zeros((0, _COLUMNS, 2))
        for row in index:
            row["digest"] = _digest(_read(file, row))
    for count, what in (
        (twice, "members whose place in their sample a later one takes"),
        (sparse, "members that are stored sparsely"),
        (len(extra), "further images of samples"),
    ):
        if count:
            logging.warning("'%s': left out %d %s", path, count, what)
    return index


def _members(file: BinaryIO) -> Iterator[tuple[tarfile.TarInfo, tuple[int, int]]]:
    """Files, and links to them, in a shard: each with offset and size of its bytes.

    Of archives that were put together one after the other, all of them.
    """
    size = os.fstat(file.fileno()).st_size
    end, places = 0, {}
    while end < size:
        file.seek(end)
        with tarfile.open(fileobj=file, mode="r:") as shard:
            for member in shard:
                if member.islnk() and member.linkname in places:
                    places[member.name] = places[member.linkname]
                elif member.isfile():
                    places[member.name] = member.offset_data, member.size
                else:
                    continue
                yield member, places[member.name]
            # tarfile takes what is left of a header, or a damaged one, for the end.
            file.seek(shard.offset)
        if file.read(2 * tarfile.BLOCKSIZE) != 2 * _ZEROS:
            raise tarfile.ReadError(f"no tar header and no end of the file at byte {shard.offset}")
        while (block := file.read(tarfile.BLOCKSIZE)) == _ZEROS:
            pass
        end = file.tell() - len(block) if block.strip(b"\0") else size


def _belongs_to_another(stem: str, samples: dict[str, np.ndarray]) -> bool:
    """Whether it is an image alone, called as a sample with a further suffix, as x.seg of x."""
    if samples[stem][1:, 1].any():
        return False
    while "." in stem.rpartition("/")[2]:
        stem = stem.rpartition(".")[0]
        if stem in samples and samples[stem][0, 1]:
            return True
    return False


def _digest(parts: list[bytes]) -> int:
    return xxhash.xxh3_64_intdigest(b"".join(parts))


def _read(file: BinaryIO, row: np.void) -> list[bytes]:
    return [os.pread(file.fileno(), size, offset) for offset, size in row["parts"].tolist()]
