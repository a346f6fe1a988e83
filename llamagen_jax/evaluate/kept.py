"""Arrays about a set of images, which fill up in a folder: what a stopped command goes on from.

Axes: B batch, N images, H W pixels.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xxhash

from llamagen_jax.digests import read_json, write_json
from llamagen_jax.errors import InputError
from llamagen_jax.evaluate.image_sets import ImageSet
from llamagen_jax.files import staged


@contextlib.contextmanager
def folder_for(keep: str | None) -> Iterator[Path]:
    """The folder that the user named, or one that is removed afterwards."""
    if keep:
        yield Path(keep)
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


class KeptRows:
    """A row of each array for every image of a set that is whole, in a folder.

    Attributes:
      made_with: what the rows depend on, by name.
      read: images of the set that were looked at; broken ones among them have no rows.
      images_digest: of the images that have rows, whatever their order.
    """

    def __init__(
        self,
        folder: Path,
        images: ImageSet,
        columns: Mapping[str, jax.ShapeDtypeStruct],
        made_with: Mapping[str, Any],
    ):
        """Begins the folder, or goes on with what is there.

        Args:
          columns: of a row, by the names of the arrays.
          made_with: JSON values that the rows depend on beside the images.

        Raises:
          InputError: the folder holds rows of other images, or that were made with something else.
        """
        self.made_with = {"images": images.name, "count": images.count, **made_with}
        self._note = folder / "progress.json"
        exists = self._note.exists()
        progress = read_json(self._note) if exists else {"rows": 0, "read": 0, "images_digest": "0"}
        for name, value in self.made_with.items() if exists else ():
            if progress.get(name) != value:
                raise InputError(
                    f"{folder} was made with {name} {progress.get(name)}, not {value}: name "
                    "another folder or remove it"
                )
        self._rows, self.read = progress["rows"], progress["read"]
        self._digest = int(progress["images_digest"], 16)
        folder.mkdir(parents=True, exist_ok=True)
        self._arrays = {
            name: np.lib.format.open_memmap(
                folder / f"{name}.npy",
                "r+" if exists else "w+",
                **({} if exists else {"dtype": c.dtype, "shape": (images.count, *c.shape)}),
            )
            for name, c in columns.items()
        }

    def __len__(self) -> int:
        return self._rows

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def __getitem__(self, name: str) -> np.ndarray:
        """The rows of an array so far, [N, ...]."""
        return self._arrays[name][: self._rows]

    @property
    def images_digest(self) -> str:
        return f"{self._digest:032x}"

    def add(self, images: np.ndarray, rows: Mapping[str, np.ndarray], read: int) -> None:
        """Keeps the rows of the next images.

        Args:
          images: uint8 [B, H, W, 3], the whole ones of `read` that were looked at.
          rows: [B, ...] of every column where B is not 0; others are left out.
        """
        end = self._rows + len(images)
        for name, array in self._arrays.items() if len(images) else ():
            array[self._rows : end] = rows[name]
            array.flush()
        for image in images:
            digest = xxhash.xxh3_128_intdigest(image.tobytes())
            self._digest = (self._digest + digest) % 2**128
        self._rows, self.read = end, self.read + read
        progress = {"rows": self._rows, "read": self.read, "images_digest": self.images_digest}
        # Last of all, so that a batch that was cut off is computed again.
        with staged(self._note, overwrite=True) as partial:
            write_json(partial, self.made_with | progress)
