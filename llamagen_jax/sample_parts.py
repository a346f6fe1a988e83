"""Samples on their way to a file: kept on disk part by part, so that a stopped command goes on."""

import json
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from llamagen_jax.digests import read_json, write_json
from llamagen_jax.errors import InputError
from llamagen_jax.files import staged
from llamagen_jax.generation import Samples


class SampleParts:
    """The batches that were drawn so far, in the folder OUTPUT.parts, one file each.

    Attributes:
      folder: OUTPUT.parts.
      done: how many images they hold; drawing goes on with the image of that number.
    """

    def __init__(self, output: Path, begun_with: Mapping[str, Any]):
        """Begins the folder, or goes on with what is there.

        Args:
          output: that the samples are for.
          begun_with: everything they depend on, as JSON values.

        Raises:
          InputError: the folder was begun with other values (the message names one), or is damaged.
        """
        self.folder = output.with_name(output.name + ".parts")
        note = self.folder / "begun_with.json"
        if note.exists():
            self._check(note, begun_with)
        else:
            with staged(note, overwrite=True) as partial:
                write_json(partial, begun_with)
        self.done = 0
        while (path := self._path(self.done)).exists():
            self.done += len(_read(path).codes)

    def add(self, samples: Samples) -> None:
        """Keeps the next batch."""
        with staged(self._path(self.done)) as partial, partial.open("wb") as file:
            np.savez(file, **samples._asdict())
        self.done += len(samples.codes)

    def __iter__(self) -> Iterator[Samples]:
        """The batches in their order, one at a time."""
        read = 0
        while read < self.done:
            part = _read(self._path(read))
            yield part
            read += len(part.codes)

    def remove(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.folder)

    def _path(self, first: int) -> Path:
        return self.folder / f"{first:08d}.npz"

    def _check(self, note: Path, begun_with: Mapping[str, Any]) -> None:
        before = read_json(note)
        for name, value in json.loads(json.dumps(begun_with)).items():
            if before.get(name) != value:
                raise InputError(
                    f"{self.folder} holds images of another command, with {name} "
                    f"{_short(before.get(name))} instead of {_short(value)}: go on with that "
                    "command, or remove the folder"
                )


def write_npz(path: Path, parts: Iterable[Samples], **subjects: np.ndarray) -> None:
    """Writes arr_0, the subjects and codes as `np.savez` does, holding one part at a time.

    Args:
      parts: of as many images as there are subjects.
      **subjects: one array, [N], by its name: labels or prompts.
    """
    (total,) = map(len, subjects.values())
    codes = []
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            for part in parts:
                if not codes:
                    _write_header(file, part.images, total)
                file.write(part.images.tobytes())
                codes.append(part.codes)
        for name, array in {**subjects, "codes": np.concatenate(codes)}.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _write_header(file: IO[bytes], images: np.ndarray, total: int) -> None:
    header = np.lib.format.header_data_from_array_1_0(images)
    np.lib.format.write_array_header_1_0(file, header | {"shape": (total, *images.shape[1:])})


def _read(path: Path) -> Samples:
    try:
        with np.load(path) as arrays:
            return Samples(**arrays)
    # A damaged file raises errors of any type.
    except Exception as error:
        raise InputError(f"{path} is damaged: remove it, and start the command again") from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
