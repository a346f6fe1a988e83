"""Random-access sources of labelled or captioned images, or of their codes."""

import bisect
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
from absl import logging

from llamagen_jax.data import image_files
from llamagen_jax.data.emoji_source import EmojiSource
from llamagen_jax.data.package_sources import DigitsSource, PhotosSource, TfdsSource
from llamagen_jax.data.records import Manifest, from_bytes, open_shards
from llamagen_jax.data.tar_shards import TarShardsSource
from llamagen_jax.errors import InputError, nearest
from llamagen_jax.files import is_hidden


class Source(Protocol):
    """Records by index; opened once and handed on.

    A source can be pickled: files are opened in the process that reads them. Its `repr` names it
    in messages.
    """

    @property
    def class_names(self) -> tuple[str, ...]:
        """By label; () without classes."""
        ...

    @property
    def credit(self) -> str:
        """What must be told of the images' authors; "" where that is not known."""
        ...

    @property
    def manifest(self) -> Manifest | None:
        """What describes the records of a dataset folder; None for any other source."""
        ...

    def __len__(self) -> int:
        """The number of records."""
        ...

    def __getitem__(self, index: int) -> dict:
        """A record, see `records` for its keys.

        Raises IndexError for indices outside of 0 ... len - 1, and whatever the reader raises on a
        damaged record.
        """
        ...

    def name(self, index: int) -> str:
        """What the record is called in messages."""
        ...


class ImageFolderSource:
    """Images in a folder per class, or in one folder with or without captions.

    `FOLDER/CLASS NAME/.../IMAGE`: labels number the sorted names of the folders that hold images.
    Records are {"image": encoded bytes, "label": int}.

    `FOLDER/IMAGE`: there are no classes. Captions are those of FOLDER/metadata.jsonl or
    metadata.csv, see `image_files.read_captions`, which may name images in sub-folders too, or else
    of IMAGE.txt, called "txt". Records are {"image": encoded bytes} with "captions" where there are
    any at all.

    Sub-folders and links are followed, every format that Pillow reads is taken, hidden files are
    not. What else is left out is counted in a warning, such as images beside folders of classes.
    """

    manifest = None
    credit = ""

    def __init__(self, folder: str | os.PathLike):
        """Raises InputError if the folder is missing or has no images."""
        self._folder = Path(folder)
        if not self._folder.is_dir():
            raise InputError(f"there is no image folder '{folder}': check the path")
        self.class_names: tuple[str, ...] = ()
        self._captions: dict[str, dict[str, str]] = {}
        files = list(image_files.walk(self._folder))
        if described := image_files.read_captions(self._folder):
            self._open_described(files, *described)
        elif any(path.parent != self._folder and _is_image(path) for path in files):
            self._open_classes(files)
        else:
            self._open_flat(files)
        if not self._files:
            raise InputError(
                f"'{folder}' has no images: give a folder of them, or of a subfolder per class"
            )

    def _open_classes(self, files: list[Path]) -> None:
        beside = [path for path in files if path.parent == self._folder]
        if images := list(filter(_is_image, beside)):
            logging.warning(
                "left out of '%s' %d images beside the folders of classes",
                self._folder,
                len(images),
            )
        inside = [path for path in files if path.parent != self._folder]
        paths = image_files.images_of(inside, self._folder)
        names = [path.relative_to(self._folder).parts[0] for path in paths]
        self.class_names = tuple(sorted(set(names)))
        labels = {name: label for label, name in enumerate(self.class_names)}
        self._files = sorted(zip(map(str, paths), map(labels.get, names), strict=True), key=_label)
        empty = sorted(
            path.name
            for path in self._folder.iterdir()
            if path.is_dir() and not is_hidden(path.name) and path.name not in labels
        )
        if empty:
            logging.warning("no classes, as they hold no images: %s", ", ".join(empty))

    def _open_flat(self, files: list[Path]) -> None:
        images = {path for path in files if _is_image(path)}
        texts = {path for path in files if path.suffix == ".txt" and _image_of(path, images)}
        paths = image_files.images_of((p for p in files if p not in texts), self._folder)
        self._files = [(str(path), None) for path in paths]
        for path in texts:
            image = _image_of(path, images)
            self._captions[str(image)] = {"txt": path.read_text(errors="surrogateescape")}

    def _open_described(
        self, files: list[Path], captions: dict[str, dict[str, str]], name: str
    ) -> None:
        described = {str(self._folder / path): texts for path, texts in captions.items()}
        files = [path for path in files if path != self._folder / name]
        images = list(map(str, image_files.images_of(files, self._folder)))
        self._files = [(path, None) for path in images if path in described]
        self._captions = {path: described[path] for path, _ in self._files}
        for count, what in (
            (len(images) - len(self._files), f"images that {name} does not name"),
            (len(described) - len(self._files), f"rows of {name} without their image"),
        ):
            if count:
                logging.warning("left out of '%s' %d %s", self._folder, count, what)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict:
        path, label = self._files[index]
        record: dict = {"image": Path(path).read_bytes()}
        if label is not None:
            record["label"] = label
        if self._captions:
            captions = self._captions.get(path, {})
            "".join(captions.values()).encode()  # raises for text that is no UTF-8
            record["captions"] = captions
        return record

    def name(self, index: int) -> str:
        return f"'{self._files[index][0]}'"

    def path(self, index: int) -> Path:
        """Of an image, from the folder on."""
        return Path(self._files[index][0]).relative_to(self._folder)

    def __repr__(self) -> str:
        return (
            f"ImageFolderSource('{self._folder}', {len(self)} records, "
            f"{len(self.class_names)} classes)"
        )


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in image_files.image_suffixes()


def _image_of(text: Path, images: set[Path]) -> Path | None:
    """The image that a text file is called like."""
    suffixes = sorted({path.suffix for path in images})
    return next((p for s in suffixes if (p := text.with_suffix(s)) in images), None)


def _label(file: tuple[str, int | None]) -> int:
    return file[1] or 0


class ArrayRecordSource:
    """The records of a dataset folder, in the order they were written; `manifest` describes it."""

    def __init__(self, folder: str | os.PathLike):
        """Raises InputError if the folder is not whole (see `records.open_shards`)."""
        self._folder = Path(folder)
        self.manifest = Manifest.read(self._folder)
        self.class_names = self.manifest.class_names
        self.credit = self.manifest.credit
        self._shards = open_shards(self._folder, self.manifest)
        self._ends = list(itertools.accumulate(map(len, self._shards)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict:
        shard, position = self._locate(index)
        return from_bytes(self._shards[shard][position])

    def name(self, index: int) -> str:
        shard, position = self._locate(index)
        return f"record {position} of '{self._folder / self.manifest.shards[shard].name}'"

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = bisect.bisect_right(self._ends, index)
        return shard, index - self._ends[shard] + len(self._shards[shard])

    def __repr__(self) -> str:
        return (
            f"ArrayRecordSource('{self._folder}', {len(self)} records, "
            f"{len(self.class_names)} classes)"
        )


class MixedCodesSource:
    """Several dataset folders of codes of the same images, extracted with different crops.

    Record i is that of the first folder with the rows of its codes in all folders, so that a row
    drawn at random comes from each folder with the same probability, as the original mixes its two
    sets of ten crops. `manifest` is that of the first folder.
    """

    def __init__(self, folders: tuple[str | os.PathLike, ...]):
        """Raises InputError if a folder is not whole or its manifest does not fit the first's."""
        self._folders = tuple(map(str, folders))
        if not folders:
            raise InputError("there are no folders to mix: name at least one")
        self._sources = [ArrayRecordSource(folder) for folder in folders]
        self.manifest = self._sources[0].manifest
        self.class_names = self.manifest.class_names
        self.credit = self.manifest.credit
        first = self.manifest.tokenizer
        for source in self._sources:
            made_by = source.manifest.tokenizer
            if first is None or made_by is None:
                raise InputError(f"{source!r} holds no codes: only folders of codes can be mixed")
            self._check("records", source, len(self._sources[0]), len(source))
            for field in ("code_shape", "grid_runs", "class_names", "control"):
                wanted, found = (getattr(m, field) for m in (self.manifest, source.manifest))
                self._check(field, source, wanted, found)
            self._check("tokenizer", source, first.sha256, made_by.sha256)

    def _check(self, what: str, source: ArrayRecordSource, wanted, found) -> None:
        if found != wanted:
            raise InputError(
                f"{source!r} cannot be mixed with '{self._folders[0]}': its {what} is {found} "
                f"instead of {wanted}; extract both from the same images with the same tokenizer"
            )

    def __len__(self) -> int:
        return len(self._sources[0])

    def __getitem__(self, index: int) -> dict:
        records = [source[index] for source in self._sources]
        for source, record in zip(self._sources, records, strict=True):
            for key in ("label", "captions"):
                what = f"{key} of {source.name(index)}"
                self._check(what, source, records[0].get(key), record.get(key))
        mixed = records[0] | {"codes": np.concatenate([record["codes"] for record in records])}
        if self.manifest.control:
            maps = [record["control"] for record in records]
            mixed["control"] = {
                kind: list(itertools.chain.from_iterable(m[kind] for m in maps)) for kind in maps[0]
            }
        return mixed

    def name(self, index: int) -> str:
        return self._sources[0].name(index)

    def __repr__(self) -> str:
        return f"MixedCodesSource({', '.join(map(repr, self._folders))}, {len(self)} records)"


SOURCES: dict[str, Callable[..., Source]] = {
    "digits": DigitsSource,
    "photos": PhotosSource,
    "emoji": EmojiSource,
    "image_folder": ImageFolderSource,
    "array_record": ArrayRecordSource,
    "tar_shards": TarShardsSource,
    "tfds": TfdsSource,
}


def open_source(kind: str, location: str | tuple[str, ...]) -> Source:
    """A source of one of the `SOURCES`, from its folder (or see its `__init__`).

    Several folders of kind "array_record" are mixed, see `MixedCodesSource`.

    Raises InputError for an unknown kind and for a location that cannot be read.
    """
    if kind not in SOURCES:
        raise InputError(f"there is no data source '{kind}': {nearest(kind, SOURCES)}")
    if isinstance(location, tuple):
        if kind != "array_record":
            raise InputError(f"source '{kind}' takes one location, not {location}")
        return MixedCodesSource(location)
    return SOURCES[kind](location)
