"""Sets of images to evaluate, from wherever they are, a batch at a time in a fixed order.

Axes: B batch, H W pixels.
"""

import dataclasses
import functools
import itertools
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from tqdm import tqdm

from llamagen_jax.data import image_files, sources, transforms
from llamagen_jax.data.sources import ArrayRecordSource, Source
from llamagen_jax.data.tar_shards import TarShardsSource
from llamagen_jax.errors import InputError
from llamagen_jax.generation import ImageGenerator
from llamagen_jax.weights import export
from llamagen_jax.weights.published import PUBLISHED
from llamagen_jax.weights.torch_files import SUFFIXES

# What `open_images` takes, for the help of options.
KINDS = ".npz with arr_0, folder of images, dataset folder or folder of tar shards"


@dataclass(frozen=True)
class ImageSet:
    """Images of one size.

    Attributes:
      name: in messages.
      count: how many there are; broken ones are among them until they are read.
      read: yields uint8 images [H, W, 3] from the image of a number on, in their order; None for
        one that is broken.
    """

    name: str
    count: int
    read: Callable[[int], Iterator[np.ndarray | None]]

    def lists(self, size: int, start: int = 0) -> Iterator[list[np.ndarray]]:
        """Yields `size` images at a time, the last fewer; broken ones are left out. Shows a bar.

        Raises:
          InputError: the images cannot be read.
        """
        images = self.read(start)
        with tqdm(total=self.count, initial=start, desc=self.name, unit="image") as bar:
            while chunk := list(itertools.islice(images, size)):
                yield [image for image in chunk if image is not None]
                bar.update(len(chunk))

    def batches(self, size: int, start: int = 0) -> Iterator[np.ndarray]:
        """Those of `lists` as uint8 [B, H, W, 3].

        Raises:
          InputError: the images have different sizes, or cannot be read.
        """
        shape = None
        for whole in self.lists(size, start):
            for image in whole:
                shape = shape or image.shape
                if image.shape != shape:
                    raise InputError(
                        f"{self.name} holds images of {_size(shape)} and of "
                        f"{_size(image.shape)}: give --size to crop them all alike"
                    )
            yield np.stack(whole) if whole else np.zeros((0, *(shape or (1, 1, 3))), np.uint8)


def open_images(path: str, size: int | None = None) -> ImageSet:
    """The images of a .npz file, a dataset folder, a folder of tar shards, or a folder of images.

    Args:
      path: of the file or folder; a .npz holds uint8 [N, H, W, 3] as arr_0.
      size: side in pixels of a centre crop (`transforms.center_crop`) to take of each; None takes
        them as they are.

    Raises:
      InputError: there is nothing of these, or fewer than two images.
    """
    location = Path(path)
    if not location.exists():
        raise InputError(f"{path} does not exist: give a .npz file or a folder of images")
    if location.is_file():
        found = _npz(location, size)
    elif (location / "manifest.json").exists():
        found = _of_source(path, ArrayRecordSource(location), size)
    elif any(location.glob("*.tar")):
        found = _of_source(path, TarShardsSource(location), size)
    else:
        found = _folder(location, size)
    if found.count < 2:
        raise InputError(f"{path} holds {found.count} images; at least 2 are needed")
    # What is kept of one crop is not taken for another's.
    return dataclasses.replace(found, name=f"{path} at {size} px") if size else found


def crop(image: np.ndarray, size: transforms.Size) -> np.ndarray:
    """The centre crop (`transforms.center_crop`) of uint8 [H, W, 3], of that size."""
    return transforms.center_crop(transforms.decode(image), size)


def open_source(location: str) -> Source:
    """The images of a folder with their classes or captions.

    Args:
      location: dataset folder, folder of tar shards, or folder by class or with captions.

    Raises:
      InputError: of `data.sources.open_source`.
    """
    folder = Path(location)
    if (folder / "manifest.json").exists():
        return sources.open_source("array_record", location)
    kind = "tar_shards" if any(folder.glob("*.tar")) else "image_folder"
    return sources.open_source(kind, location)


def generated(
    name: str,
    tokenizer: str | None,
    *,
    count: int,
    batch_size: int,
    size: int | None,
    draft: str | None = None,
    **fields: Any,
) -> ImageSet:
    """Images that a class-conditional generator draws when they are read, the classes in turn.

    Args:
      name, tokenizer, draft: of `ImageGenerator.open`; None takes the tokenizer that a work folder
        names.
      count: how many.
      batch_size: drawn at a time.
      size: of `generate_images`.
      **fields: of `ImageGenerator.settings`.

    Raises:
      InputError: a model is missing or damaged, or is conditioned on text.
    """
    tokenizer = tokenizer or export.recorded(name).get("tokenizer")
    if not tokenizer:
        raise InputError("give --tokenizer, the VQGAN that the generator was trained with")
    generator = ImageGenerator.open(name, tokenizer, draft=draft)
    if generator.config.condition != "class":
        raise InputError(f"{name} draws from prompts: evaluate what `sample.py` writes of it")
    settings = generator.settings(**fields)
    labels = np.arange(count, dtype=np.int32) % generator.config.num_classes

    def read(start: int) -> Iterator[np.ndarray]:
        options = {"start": start, "batch_size": batch_size, "size": size}
        for samples in generator.sample({"condition": labels}, settings, **options):
            yield from samples.images

    resized = f" at {size} px" if size else ""
    return ImageSet(f"{name}{resized} with {settings}", count, read)


def is_generator(name: str) -> bool:
    """Whether it is a model: an export or work folder, a file of weights or a published name."""
    path = Path(name)
    is_file = path.is_file() and path.suffix in SUFFIXES
    return is_file or (path / "config.json").exists() or name in PUBLISHED


def holds_images(path: str) -> bool:
    """Whether a .npz file has images."""
    return "arr_0.npy" in _members(path)


def has_statistics(path: str) -> bool:
    """Whether a .npz file has a mean and a covariance."""
    return {"mu.npy", "sigma.npy"} <= set(_members(path))


def _members(path: str) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(
            f"{path} is no whole .npz file ({error}): make or copy it again"
        ) from error


def _folder(folder: Path, size: int | None) -> ImageSet:
    paths = image_files.images_of(image_files.walk(folder), folder)

    def read(start: int) -> Iterator[np.ndarray | None]:
        for path in paths[start:]:
            yield _decode(str(path), path.read_bytes, size)

    return ImageSet(str(folder), len(paths), read)


def _of_source(name: str, source: Source, size: int | None) -> ImageSet:
    def read(start: int) -> Iterator[np.ndarray | None]:
        for index in range(start, len(source)):
            yield _decode(source.name(index), functools.partial(_image, source, index), size)

    return ImageSet(name, len(source), read)


def _image(source: Source, index: int) -> bytes | np.ndarray:
    return source[index]["image"]


def _decode(
    name: str, image: Callable[[], bytes | np.ndarray], size: int | None
) -> np.ndarray | None:
    try:
        decoded = transforms.decode(image())
        return transforms.center_crop(decoded, size) if size else np.asarray(decoded)
    # Readers and decoders raise errors of any type on damaged bytes.
    except Exception as error:
        logging.warning("skipped %s: %s: %s", name, type(error).__name__, error)
        return None


def _npz(path: Path, size: int | None) -> ImageSet:
    shape = _read_header(path)[0]

    def read(start: int) -> Iterator[np.ndarray]:
        try:
            with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
                shape = _npy_header(file)[0]
                each = int(np.prod(shape[1:]))
                # A compressed member can only be read from its beginning.
                for number in range(shape[0]):
                    image = np.frombuffer(file.read(each), np.uint8).reshape(shape[1:])
                    if number >= start:
                        yield crop(image, size) if size else image
                file.read(1)  # ... where the check of its sum is
        except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
            raise InputError(f"{path} is damaged ({error}): make it or copy it again") from error

    return ImageSet(str(path), shape[0], read)


def _read_header(path: Path) -> tuple[tuple[int, ...], np.dtype]:
    if not holds_images(str(path)):
        names = ", ".join(_members(str(path))) or "nothing"
        raise InputError(f"{path} holds {names}; expected images as arr_0")
    try:
        with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
            shape, dtype = _npy_header(file)
    except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
        raise InputError(f"{path} is no whole .npz file ({error}): make it again") from error
    if dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3:
        raise InputError(
            f"{path} holds {dtype} {list(shape)} as arr_0; expected uint8 [N, H, W, 3], RGB from 0 "
            "to 255"
        )
    return shape, dtype


def _npy_header(file) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in read:
        raise ValueError(f"npy version {version}")
    shape, fortran_order, dtype = read[version](file)
    if fortran_order:
        raise ValueError("an array in Fortran order")
    return shape, dtype


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]} px"
