"""Every source gives its records by index, from any process, and names what is wrong."""

import io
import json
import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from llamagen_jax.data.package_sources import DigitsSource, PhotosSource, TfdsSource
from llamagen_jax.data.records import TokenizerId, write_dataset
from llamagen_jax.data.sources import (
    ArrayRecordSource,
    ImageFolderSource,
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
    with pytest.raises(InputError, match=r'pip install "llamagen_jax\[demo\]"'):
        PhotosSource("train")


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match=r'pip install "llamagen_jax\[demo\]"'):
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


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def test_image_folders_as_they_lie_on_disks(tmp_path, caplog):
    put(tmp_path / "d", "cat/1.jpg", "cat/._1.jpg", "cat/Thumbs.db", "dog/images/b.TIFF")
    put(tmp_path / "d", "dog/images-2/a.gif", "dog/images/deep/c.bmp", ".ipynb_checkpoints/x.jpg")
    put(tmp_path / "d", "__MACOSX/cat/1.jpg", "dog/notes.txt", "empty/a.csv", "top.png")
    put(tmp_path / "elsewhere", "2.webp")
    (tmp_path / "d/cat/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "d")
    (tmp_path / "d/dog/loop").symlink_to(tmp_path / "d/dog")
    (tmp_path / "d/cat/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    source = ImageFolderSource(tmp_path / "d")
    assert source.class_names == ("cat", "dog")
    found = [
        (record["image"].decode(), record["label"]) for record in map(source.__getitem__, (0,))
    ]
    assert found == [("cat/1.jpg", 0)]
    names = [source.name(i).removeprefix(f"'{tmp_path}/d/").rstrip("'") for i in range(len(source))]
    assert names == [
        "cat/1.jpg",
        "cat/gone.jpg",
        "cat/link/2.webp",
        # As torchvision sorts them.
        "dog/images/b.TIFF",
        "dog/images-2/a.gif",
        "dog/images/deep/c.bmp",
    ]
    assert "left out of" in caplog.text
    assert "1 .csv, 1 .txt" in caplog.text
    assert "1 images beside the folders of classes" in caplog.text
    assert "no classes, as they hold no images: empty" in caplog.text
    assert "a link to a folder that it is in" in caplog.text


def test_folders_without_classes(tmp_path, caplog):
    put(tmp_path / "flat", "b.jpg", "a.png")
    source = ImageFolderSource(tmp_path / "flat")
    assert (source.class_names, list(source)) == ((), [{"image": b"a.png"}, {"image": b"b.jpg"}])
    put(tmp_path / "flat", "b.txt", "c.txt")
    source = ImageFolderSource(tmp_path / "flat")
    assert list(source) == [
        {"image": b"a.png", "captions": {}},
        {"image": b"b.jpg", "captions": {"txt": "b.txt"}},
    ]
    assert "1 .txt" in caplog.text


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_captions_of_a_metadata_file(tmp_path, caplog, kind):
    put(tmp_path, "b.jpg", "in/a.png", "c.png")
    rows = [("in/a.png", "a cat, é"), ("./b.jpg", ""), ("gone.png", "a dog")]
    if kind == "csv":
        lines = ["file_name,text", *(f'{name},"{text}"' for name, text in rows)]
    else:
        lines = [json.dumps({"file_name": name, "text": text, "n": 1}) for name, text in rows]
    (tmp_path / f"metadata.{kind}").write_text("\n".join(lines))
    assert list(ImageFolderSource(tmp_path)) == [
        {"image": b"b.jpg", "captions": {}},
        {"image": b"in/a.png", "captions": {"text": "a cat, é"}},
    ]
    assert f"1 images that metadata.{kind} does not name" in caplog.text
    assert f"1 rows of metadata.{kind} without their image" in caplog.text
    (tmp_path / f"metadata.{kind}").write_text("x")
    if kind == "jsonl":
        with pytest.raises(InputError, match=r"metadata\.jsonl' is damaged"):
            ImageFolderSource(tmp_path)


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
    assert (source.manifest is not None) == (kind == "array_record")
    assert copy[0]["label"] == first["label"]
    np.testing.assert_array_equal(copy[0]["image"], first["image"])


def codes_folder(folder, first, *, labels=range(6), tokenizer="a", length=3, names=("cat",)):
    """Record i has the codes [first + i, ...] and the label i."""
    write_dataset(
        folder,
        ({"codes": np.full((2, length), first + i, np.uint16), "label": i} for i in labels),
        shard_size=4,
        class_names=names,
        tokenizer=TokenizerId("tiny", tokenizer, 32),
        code_shape=(2, length),
    )
    return str(folder)


def test_mixed_codes_hold_the_rows_of_all_folders(tmp_path):
    folders = codes_folder(tmp_path / "a", 0), codes_folder(tmp_path / "b", 10)
    source = pickle.loads(pickle.dumps(open_source("array_record", folders)))
    assert len(source) == 6
    assert source.class_names == ("cat",)
    assert source.manifest.code_shape == (2, 3)
    assert [record["label"] for record in source] == list(range(6))
    np.testing.assert_array_equal(source[4]["codes"], np.uint16([[4] * 3] * 2 + [[14] * 3] * 2))
    assert all(folder in repr(source) for folder in folders)
    assert f"'{folders[0]}/00001" in source.name(5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": range(5)}, "its records is 5 instead of 6"),
        ({"tokenizer": "b"}, "its tokenizer is b instead of a"),
        ({"length": 4}, r"its code_shape is \(2, 4\) instead of \(2, 3\)"),
        ({"names": ("dog",)}, "its class_names is"),
    ],
)
def test_codes_that_do_not_mix(tmp_path, change, message):
    folders = codes_folder(tmp_path / "a", 0), codes_folder(tmp_path / "b", 10, **change)
    with pytest.raises(InputError, match=f"b'.* cannot be mixed with .*a': {message}"):
        open_source("array_record", folders)


def test_codes_of_other_images_do_not_mix(tmp_path):
    other = codes_folder(tmp_path / "b", 10, labels=[0, 1, 2, 3, 5, 4])
    source = open_source("array_record", (codes_folder(tmp_path / "a", 0), other))
    assert source[3]["label"] == 3
    with pytest.raises(InputError, match=r"label of record 0 of .*b/00001.* is 5 instead of 4"):
        source[4]


def test_codes_with_captions_mix(tmp_path):
    folders = [tmp_path / name for name in "abc"]
    captions = [{"txt": "a cat"}, {"txt": "a cat"}, {"txt": "a dog"}]
    for number, (folder, texts) in enumerate(zip(folders, captions, strict=True)):
        records = [{"codes": np.full((1, 3), number, np.uint16), "captions": texts}]
        write_dataset(folder, records, tokenizer=TokenizerId("t", "0", 32), code_shape=(1, 3))
    record = open_source("array_record", tuple(folders[:2]))[0]
    np.testing.assert_array_equal(record["codes"], [[0] * 3, [1] * 3])
    assert record["captions"] == captions[0]
    with pytest.raises(InputError, match=r"captions of record 0 of .*c/00000"):
        open_source("array_record", tuple(folders))[0]


def test_only_folders_of_codes_mix(dataset, image_folder):
    with pytest.raises(InputError, match="holds no codes"):
        open_source("array_record", (str(dataset), str(dataset)))
    with pytest.raises(InputError, match="'image_folder' takes one location"):
        open_source("image_folder", (str(image_folder), str(image_folder)))
    with pytest.raises(InputError, match="no folders to mix"):
        open_source("array_record", ())


@pytest.fixture(scope="session")
def tiny_photos(tmp_path_factory):
    """Builds "tiny_photos:1.0.0" where tfds looks for datasets."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class TinyPhotos(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(),
                "label": tfds.features.ClassLabel(names=["cat", "dog"]),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(5), "test": self._generate_examples(2)}

        def _generate_examples(self, count):
            for i in range(count):
                file = io.BytesIO()
                Image.fromarray(np.full((9, 8, 3), i, np.uint8)).save(file, "PNG")
                file.seek(0)
                yield i, {"image": file, "label": i % 2}

    folder = tmp_path_factory.mktemp("tfds")
    TinyPhotos(data_dir=folder, file_format="array_record").download_and_prepare()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(folder))
        yield folder


def test_tfds(tiny_photos):
    source = open_source("tfds", "tiny_photos:1.0.0/train")
    copy = pickle.loads(pickle.dumps(source))
    assert (len(copy), copy.class_names) == (5, ("cat", "dog"))
    assert repr(copy) == repr(source)
    # tfds shuffles what it builds.
    grey = [np.asarray(Image.open(io.BytesIO(r["image"])))[8, 7, 0] for r in copy]
    assert sorted(grey) == list(range(5))
    assert [r["label"] for r in copy] == [value % 2 for value in grey]
    assert source.name(3) == "record 3 of 'tiny_photos:1.0.0/train'"
    assert len(TfdsSource("tiny_photos/test")) == 2
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("tiny_photos:1.0.0", "'tiny_photos:1.0.0' names no split"),
        ("tiny_photos:1.0.0/tset", "Unknown split 'tset'"),
        ("tiny_photos:2.0.0/train", "version 2.0.0"),
        ("imagenet2012:5.1.0/train", r"is not in .*: set TFDS_DATA_DIR .* tfds build imagenet2012"),
        ("imagenut/train", "Dataset imagenut not found"),
    ],
)
def test_tfds_that_cannot_be_opened(tiny_photos, location, message):
    with pytest.raises(InputError, match=message) as error:
        TfdsSource(location)
    assert "\n" not in str(error.value)


def test_tfds_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(InputError, match=r'pip install "llamagen_jax\[prepare\]"'):
        TfdsSource("imagenet2012:5.1.0/train")


def test_unknown_kind():
    with pytest.raises(InputError, match="no data source 'digit': did you mean 'digits'"):
        open_source("digit", "train")
