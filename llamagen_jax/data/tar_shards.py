"""Tar shards of images and captions, as img2dataset writes them, read in place by index.

A sample is the members of a shard that share a name up to the first dot: `000000123.jpg` (or .jpeg,
.png, .webp), `000000123.txt` and `000000123.json`.
"""

import bisect
import contextlib
import itertools
import json
import os
import tarfile
from pathlib import Path

import numpy as np
from absl import logging
from tqdm import tqdm

from llamagen_jax.errors import InputError
from llamagen_jax.files import staged_apart

# Which column of an index holds a member.
_PARTS = {"jpg": 0, "jpeg": 0, "png": 0, "webp": 0, "txt": 1, "json": 2}
_END = bytes(2 * tarfile.BLOCKSIZE)
# Strings of the .json member that img2dataset keeps of every image, beside captions.
_NO_CAPTIONS = ("url", "key", "status", "error_message", "exif", "md5", "sha256", "sha512")


class TarShardsSource:
    """The samples of a folder of uncompressed `*.tar` shards, in the order of names and positions.

    Records are {"image": encoded bytes, "captions": {name: text}}. The captions are the .txt member
    as "txt" and the strings of the .json member under their keys; empty ones and what img2dataset
    keeps besides ("url", "sha256" and the like) are left out. Reading a sample raises that has no
    image, a damaged .json or text that is not UTF-8.

    Where the members lie in a shard is kept beside it in SHARD.index, which is made anew when the
    shard's size or time of change is another; where it cannot be written it is held in memory
    alone. `unreadable` counts the shards that are left out, with a warning, because they are cut
    off, compressed or no tar files.
    """

    class_names: tuple[str, ...] = ()
    manifest = None

    def __init__(self, folder: str | os.PathLike):
        """Raises InputError if the folder is missing or has no shard that can be read."""
        self._folder = Path(folder)
        paths = sorted(self._folder.glob("*.tar"))
        if not paths:
            raise InputError(f"there are no .tar shards in '{folder}': check the path")
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
        shard, position = self._locate(index)
        # Opened for each sample: thousands of shards would exhaust a process's descriptors.
        with self._shards[shard].open("rb", buffering=0) as file:
            image, text, fields = (
                os.pread(file.fileno(), size, offset)
                for offset, size in self._indexes[shard][position].tolist()
            )
        if not image:
            raise ValueError("it has no image")
        captions = {"txt": text.decode()} | (json.loads(fields) if fields else {})
        captions = {
            name: text
            for name, text in captions.items()
            if name not in _NO_CAPTIONS and isinstance(text, str) and text.strip()
        }
        "".join(captions.values()).encode()  # JSON can hold halves of characters
        return {"image": image, "captions": captions}

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


def _cached_index(path: Path) -> np.ndarray:
    """int64 [samples, 3, 2]: offset and size of image, text and json; size 0 where there is none.

    Raises TarError or OSError if the shard cannot be read.
    """
    status = path.stat()
    stamp = np.array([status.st_size, status.st_mtime_ns], np.int64)
    cache = path.with_name(path.name + ".index")
    # A damaged file raises errors of any type; the index is then made again.
    with contextlib.suppress(Exception), np.load(cache) as stored:
        if np.array_equal(stored["stamp"], stamp):
            return stored["index"]
    index = _index(path)
    with contextlib.suppress(OSError), staged_apart(cache) as partial, partial.open("wb") as file:
        np.savez(file, stamp=stamp, index=index)
    return index


def _index(path: Path) -> np.ndarray:
    samples: dict[str, np.ndarray] = {}
    with tarfile.open(path, "r:") as shard:
        for member in shard:
            folder, _, base = member.name.rpartition("/")
            stem, _, suffix = base.partition(".")
            part = _PARTS.get(suffix.lower())
            if member.isfile() and part is not None:
                sample = samples.setdefault(f"{folder}/{stem}", np.zeros((3, 2), np.int64))
                sample[part] = member.offset_data, member.size
        # tarfile takes what is left of a header, or a damaged one, for the end.
        shard.fileobj.seek(shard.offset)
        if shard.fileobj.read(len(_END)) != _END:
            raise tarfile.ReadError(f"no tar header and no end of the file at byte {shard.offset}")
    return np.stack(list(samples.values())) if samples else np.zeros((0, 3, 2), np.int64)
