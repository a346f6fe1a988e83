"""Every source gives its records by index, from any process, and names what is wrong."""

import pickle
import sys

import numpy as np
import pytest

from llamagen_jax.data.records import write_dataset
from llamagen_jax.data.sources import (
    ArrayRecordSource,
    DigitsSource,
    ImageFolderSource,
    PhotosSource,
    open_source,
)
from llamagen_jax.errors import InputError


def test_digits_splits_are_disjoint_and_cover_all():
    train, test = DigitsSource("train"), DigitsSource("test")
    assert (len(train), len(test)) == (1437, 360)
    pixels = [record["image"].tobytes() for split in (train, test) for record in split]
    assert len(set(pixels)) == 1797


def test_digits_splits_are_stratified():
    train, test = (
        np.bincount([record["label"] for record in DigitsSource(split)])
        for split in ("train", "test")
    )
    np.testing.assert_allclose(test, 0.2 * (train + test), atol=1)


def test_digits_are_deterministic():
    a, b = DigitsSource("test"), DigitsSource("test")
    for index in (0, 100, 359):
        assert a[index]["label"] == b[index]["label"]
        np.testing.assert_array_equal(a[index]["image"], b[index]["image"])


def test_digit_record():
    source = DigitsSource("train")
    image = source[0]["image"]
    assert image.shape == (32, 32, 3)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image[..., 0], image[..., 2])
    assert image.min() == 0
    assert image.max() > 200
    assert source.class_names == tuple("0123456789")


def test_digits_refuse_another_split():
    with pytest.raises(InputError, match="no split 'trian': did you mean 'train'"):
        DigitsSource("trian")


def test_photos_splits_share_no_tile_and_have_every_photo():
    train, test = PhotosSource("train"), PhotosSource("test")
    assert (len(train), len(test)) == (300, 72)
    tiles = [record["image"].tobytes() for split in (train, test) for record in split]
    assert len(set(tiles)) == 372
    for split in (train, test):
        assert {record["label"] for record in split} == set(range(len(split.class_names)))
        assert split[0]["image"].shape == (96, 96, 3)
        assert split[0]["image"].dtype == np.uint8


def test_photos_refuse_another_split_and_need_scikit_image(monkeypatch):
    with pytest.raises(InputError, match="no split 'tset': did you mean 'test'"):
        PhotosSource("tset")
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(InputError, match=r'pip install "llamagen_jax\[eval\]"'):
        PhotosSource("train")


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match=r'pip install "llamagen_jax\[eval\]"'):
        DigitsSource("train")


@pytest.fixture
def image_folder(tmp_path):
    files = {
        "zebra/1.png": b"z1",
        "ant/b.JPG": b"ab",
        "ant/a.webp": b"aa",
        "ant/notes.txt": b"not an image",
        "Bee/x.jpeg": b"bx",
        "readme.png": b"outside any class",
    }
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    return tmp_path


def test_image_folder(image_folder):
    source = ImageFolderSource(image_folder)
    assert source.class_names == ("Bee", "ant", "zebra")
    assert list(source) == [
        {"image": b"bx", "label": 0},
        {"image": b"aa", "label": 1},
        {"image": b"ab", "label": 1},
        {"image": b"z1", "label": 2},
    ]
    assert source.name(3) == f"'{image_folder}/zebra/1.png'"


def test_image_folder_missing_or_without_images(tmp_path):
    with pytest.raises(InputError, match=r"no image folder '.*absent'"):
        ImageFolderSource(tmp_path / "absent")
    (tmp_path / "cat").mkdir()
    with pytest.raises(InputError, match=f"'{tmp_path}' has no images"):
        ImageFolderSource(tmp_path)


@pytest.fixture
def dataset(tmp_path):
    records = [{"image": b"%d" % i, "label": i} for i in range(5)]
    write_dataset(tmp_path / "set", records, shard_size=2, class_names=("cat", "dog"))
    return tmp_path / "set"


def test_array_record(dataset):
    source = ArrayRecordSource(dataset)
    assert len(source) == 5
    assert [source[i]["label"] for i in (4, 0, 3, 1, 2)] == [4, 0, 3, 1, 2]
    assert source.class_names == ("cat", "dog")
    assert source.manifest.shards[2].records == 1
    assert source.name(3) == f"record 1 of '{dataset}/00001.array_record'"
    for outside in (5, -1):
        with pytest.raises(IndexError):
            source[outside]


@pytest.mark.parametrize("kind", ["digits", "image_folder", "array_record"])
def test_sources_open_by_kind_and_survive_pickling(kind, dataset, image_folder):
    location = {"digits": "test", "image_folder": image_folder, "array_record": dataset}[kind]
    source = open_source(kind, location)
    first = source[0]
    copy = pickle.loads(pickle.dumps(source))
    assert repr(copy) == repr(source)
    assert str(location) in repr(source)
    assert copy[0]["label"] == first["label"]
    np.testing.assert_array_equal(copy[0]["image"], first["image"])


def test_unknown_kind():
    with pytest.raises(InputError, match="no data source 'digit': did you mean 'digits'"):
        open_source("digit", "train")
