"""Sources of labelled images that come with, or are built by, other Python packages."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from llamagen_jax.errors import InputError, nearest


class DigitsSource:
    """The 1797 handwritten digits that come with scikit-learn, 20 % of each class held out.

    Records are {"image": uint8 [32, 32, 3] grey, "label": int}. `split` is "train" or "test".
    """

    manifest = None
    credit = (
        "E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, "
        "UCI Machine Learning Repository (CC BY 4.0), https://doi.org/10.24432/C50P49."
    )

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
        digits: Any = load_digits()
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

    manifest = None
    credit = ""

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


class TfdsSource:
    """A split of a built TensorFlow dataset of labelled images, read without TensorFlow.

    Records are {"image": encoded bytes, "label": int}.
    """

    manifest = None
    credit = ""

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
            builder: Any = tfds.builder(name)
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
