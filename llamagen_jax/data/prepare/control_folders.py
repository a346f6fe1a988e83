"""Control maps that exist already, such as depth or poses, beside the images that they are of."""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path

from llamagen_jax import commands
from llamagen_jax.data import image_files
from llamagen_jax.data.sources import ImageFolderSource, Source
from llamagen_jax.errors import InputError


class WithControl:
    """The records of a folder of images with "control": the bytes of their maps by kind.

    The map of FOLDER/A/B.jpg is MAPS/A/B.*, in any format that Pillow reads.
    """

    manifest = None

    def __init__(self, source: Source, folders: Mapping[str, str | os.PathLike]):
        """Raises InputError if the source is no image folder, or a folder of maps is missing."""
        if not isinstance(source, ImageFolderSource):
            raise InputError(
                f"control maps are found by the names of image files, not of {source!r}"
            )
        for folder in folders.values():
            if not Path(folder).is_dir():
                raise InputError(f"there is no folder of control maps '{folder}': check the path")
        self._source = source
        self._folders = {kind: Path(folder) for kind, folder in folders.items()}
        self.class_names = source.class_names
        self.credit = source.credit

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict:
        path = self._source.path(index)
        maps = {kind: _find(folder / path) for kind, folder in self._folders.items()}
        return self._source[index] | {"control": maps}

    def name(self, index: int) -> str:
        return self._source.name(index)

    def __repr__(self) -> str:
        return repr(self._source)


def _find(path: Path) -> bytes:
    suffixes = image_files.image_suffixes()
    found = [path.with_suffix(suffix) for suffix in (path.suffix, *sorted(suffixes))]
    existing = next((candidate for candidate in found if candidate.is_file()), None)
    if existing is None:
        raise ValueError(f"it has no control map '{path.with_suffix('')}.*'")
    return existing.read_bytes()


def kind_and_folder(text: str) -> tuple[str, str]:
    """Reads the option KIND=FOLDER."""
    kind, equals, folder = text.partition("=")
    if not (kind and equals and folder):
        raise argparse.ArgumentTypeError(f"'{text}' is not KIND=FOLDER, such as depth=maps/depth")
    return kind, commands.path(folder)
