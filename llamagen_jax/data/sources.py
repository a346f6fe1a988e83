"""Random-access sources of labelled images or codes.

A source has a length, gives records by index (see `records` for their keys), knows its class
names, names a record for messages, and can be pickled: files are opened in the process that
reads them. Reading a damaged record raises whatever the reader raises.
"""

import bisect
import itertools
import os
from pathlib import Path

import numpy as np
from PIL import Image

from llamagen_jax.data.records import Manifest, open_shards, unpack
from llamagen_jax.data.tar_shards import TarShardsSource
from llamagen_jax.errors import InputError, nearest

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


class DigitsSource:
    """The 1797 handwritten digits that come with scikit-learn, 20 % of each class held out.

    Records are {"image": uint8 [32, 32, 3] grey, "label": int}. `split` is "train" or "test".
    """

    def __init__(self, split: str):
        """Raises InputError for another split, or without scikit-learn."""
        if split not in ("train", "test"):
            raise InputError(
                f"the digits have no split '{split}': {nearest(split, ('train', 'test'))}"
            )
        try:
            from sklearn.datasets import load_digits
            from sklearn.model_selection import train_test_split
        except ImportError:
            raise InputError(
                'the digits need scikit-learn: pip install "llamagen_jax[demo]"'
            ) from None
        digits = load_digits()
        train, test = train_test_split(
            np.arange(len(digits.target)), test_size=0.2, stratify=digits.target, random_state=0
        )
        chosen = train if split == "train" else test
        self._split = split
        self._images = np.round(digits.images[chosen] * (255 / 16)).astype(np.uint8)
        self._labels = digits.target[chosen]
        self.class_names = tuple(map(str, digits.target_names))

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> dict:
        small = Image.fromarray(self._images[index])
        image = small.resize((32, 32), Image.Resampling.BICUBIC).convert("RGB")
        return {"image": np.asarray(image), "label": int(self._labels[index])}

    def name(self, index: int) -> str:
        return f"digit {index} of '{self._split}'"

    def __repr__(self) -> str:
        return f"DigitsSource('{self._split}', {len(self)} records)"


class PhotosSource:
    """Tiles of the photographs that come with scikit-image, every fifth of each photo held out.

    Tiles do not overlap, so that no pixel is both in "train" and in "test", the two `split`s.
    Records are {"image": uint8 [96, 96, 3], "label": int}; labels number the photos.
    """

    # Those that are in scikit-image's wheel itself, without drawings and without the second
    # picture of the stereo pair, which shows what the first does.
    class_names = (
        "astronaut.png",
        "brick.png",
        "camera.png",
        "chelsea.png",
        "coffee.png",
        "coins.png",
        "grass.png",
        "gravel.png",
        "hubble_deep_field.jpg",
        "ihc.png",
        "moon.png",
        "motorcycle_left.png",
        "rocket.jpg",
    )
    _SIDE = 96

    def __init__(self, split: str):
        """Raises InputError for another split, or without scikit-image."""
        if split not in ("train", "test"):
            raise InputError(
                f"the photos have no split '{split}': {nearest(split, ('train', 'test'))}"
            )
        try:
            import skimage.data
        except ImportError:
            raise InputError(
                'the photos need scikit-image: pip install "llamagen_jax[demo]"'
            ) from None
        self._split = split
        self._tiles = []
        for label, name in enumerate(self.class_names):
            with Image.open(Path(skimage.data.__file__).parent / name) as photo:
                tiles = self._cut(np.asarray(photo.convert("RGB")))
            chosen = [tile for i, tile in enumerate(tiles) if (i % 5 == 4) == (split == "test")]
            self._tiles += [(tile, label) for tile in chosen]

    def _cut(self, photo: np.ndarray) -> list[np.ndarray]:
        rows, columns = (range(0, side - self._SIDE + 1, self._SIDE) for side in photo.shape[:2])
        return [photo[y : y + self._SIDE, x : x + self._SIDE] for y in rows for x in columns]

    def __len__(self) -> int:
        return len(self._tiles)

    def __getitem__(self, index: int) -> dict:
        image, label = self._tiles[index]
        return {"image": image, "label": label}

    def name(self, index: int) -> str:
        return f"tile {index} of '{self._split}'"

    def __repr__(self) -> str:
        return f"PhotosSource('{self._split}', {len(self)} records)"


class ImageFolderSource:
    """`FOLDER/CLASS NAME/*.{jpg,jpeg,png,webp}`; labels number the sorted class names.

    Records are {"image": encoded bytes, "label": int}.
    """

    def __init__(self, folder: str | os.PathLike):
        """Raises InputError if the folder is missing or has no images."""
        self._folder = Path(folder)
        if not self._folder.is_dir():
            raise InputError(f"there is no image folder '{folder}': check the path")
        self.class_names = tuple(sorted(p.name for p in self._folder.iterdir() if p.is_dir()))
        self._files = [
            (str(path), label)
            for label, name in enumerate(self.class_names)
            for path in sorted((self._folder / name).iterdir())
            if path.suffix.lower() in IMAGE_SUFFIXES
        ]
        if not self._files:
            raise InputError(
                f"'{folder}' has no images: give a folder with one subfolder per class that "
                f"holds {', '.join(sorted(IMAGE_SUFFIXES))} files"
            )

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict:
        path, label = self._files[index]
        return {"image": Path(path).read_bytes(), "label": label}

    def name(self, index: int) -> str:
        return f"'{self._files[index][0]}'"

    def __repr__(self) -> str:
        return (
            f"ImageFolderSource('{self._folder}', {len(self)} records, "
            f"{len(self.class_names)} classes)"
        )


class ArrayRecordSource:
    """The records of a dataset folder, in the order they were written; `manifest` describes it."""

    def __init__(self, folder: str | os.PathLike):
        """Raises InputError if the folder is not whole (see `records.open_shards`)."""
        self._folder = Path(folder)
        self.manifest = Manifest.read(self._folder)
        self.class_names = self.manifest.class_names
        self._shards = open_shards(self._folder, self.manifest)
        self._ends = list(itertools.accumulate(map(len, self._shards)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict:
        shard, position = self._locate(index)
        return unpack(self._shards[shard][position])

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
        for source in self._sources:
            if source.manifest.tokenizer is None:
                raise InputError(f"{source!r} holds no codes: only folders of codes can be mixed")
            self._check("records", source, len(self._sources[0]), len(source))
            for field in ("code_shape", "class_names"):
                wanted, found = (getattr(m, field) for m in (self.manifest, source.manifest))
                self._check(field, source, wanted, found)
            tokenizers = self.manifest.tokenizer, source.manifest.tokenizer
            self._check("tokenizer", source, *(tokenizer.sha256 for tokenizer in tokenizers))

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
        return records[0] | {"codes": np.concatenate([record["codes"] for record in records])}

    def name(self, index: int) -> str:
        return self._sources[0].name(index)

    def __repr__(self) -> str:
        return f"MixedCodesSource({', '.join(map(repr, self._folders))}, {len(self)} records)"


class TfdsSource:
    """A split of a built TensorFlow dataset of labelled images, read without TensorFlow.

    Records are {"image": encoded bytes, "label": int}.
    """

    def __init__(self, location: str):
        """Opens "NAME[/CONFIG][:VERSION]/SPLIT", such as "imagenet2012:5.1.0/train".

        It is looked for in the folder TFDS_DATA_DIR, by default ~/tensorflow_datasets.

        Raises InputError without tensorflow-datasets, or if the dataset has not been built there
        in a file format of random access, or has no such split or no labelled images.
        """
        try:
            import tensorflow_datasets as tfds
        except ImportError:
            raise InputError(
                "source 'tfds' needs tensorflow-datasets: pip install \"llamagen_jax[prepare]\""
            ) from None
        self._location = location
        name, _, split = location.rpartition("/")
        if not name:
            raise InputError(f"'{location}' names no split: write NAME:VERSION/SPLIT")
        skip = {"image": tfds.decode.SkipDecoding()}
        try:
            builder = tfds.builder(name)
            if not builder.is_prepared():
                raise InputError(
                    f"'{name}' is not in {builder.data_path}: set TFDS_DATA_DIR to where it is, or "
                    f"build it with: tfds build {name} --file_format=array_record"
                )
            self._records = builder.as_data_source(split=split, decoders=skip)
        except InputError:
            raise
        # Unknown names, versions, splits and unfit file formats raise errors of many types.
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(
                f"cannot open the TensorFlow dataset '{location}': {reason} (only the file formats "
                "array_record and parquet can be read)"
            ) from error
        features = builder.info.features
        if not {"image", "label"} <= features.keys():
            raise InputError(f"'{location}' has no image and label but: {', '.join(features)}")
        self.class_names = tuple(features["label"].names)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(index)
        record = self._records[index]
        return {"image": record["image"], "label": int(record["label"])}

    def name(self, index: int) -> str:
        return f"record {index} of '{self._location}'"

    def __repr__(self) -> str:
        return (
            f"TfdsSource('{self._location}', {len(self)} records, {len(self.class_names)} classes)"
        )


Source = (
    DigitsSource
    | PhotosSource
    | ImageFolderSource
    | ArrayRecordSource
    | MixedCodesSource
    | TarShardsSource
    | TfdsSource
)

SOURCES = {
    "digits": DigitsSource,
    "photos": PhotosSource,
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
