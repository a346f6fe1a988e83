"""Dataset folders: what is written comes back, and what is damaged is named."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest

from llamagen_jax.data.records import (
    Manifest,
    TokenizerId,
    from_bytes,
    open_shards,
    to_bytes,
    verify,
    write_dataset,
)
from llamagen_jax.errors import InputError


def rows(count):
    return [{"codes": np.full((2, 3), i, np.uint16), "label": i} for i in range(count)]


@pytest.fixture
def dataset(tmp_path):
    """A folder of two shards, of 3 and 2 records."""
    folder = tmp_path / "codes"
    write_dataset(folder, rows(5), shard_size=3)
    return folder


def edit_manifest(folder, **changes):
    path = folder / "manifest.json"
    values = json.loads(path.read_text()) | changes
    del values["digest"]
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.uint16).reshape(2, 6),
        np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 1, 2),
        np.array([1.5, -2.0], ml_dtypes.bfloat16),
        np.arange(12, dtype=np.int64).reshape(3, 4)[:, ::2],
        np.array(True),
        np.zeros((0, 4), np.uint8),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_arrays_round_trip(array):
    back = from_bytes(to_bytes({"x": array}))["x"]
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array, strict=True)


def test_other_values_round_trip():
    record = {"image": b"\xff\x00", "label": 7, "captions": ["a red fox", "räv"]}
    assert from_bytes(to_bytes(record)) == record


@pytest.mark.parametrize("value", [np.array(["a"], object), np.arange(3, dtype=">u2"), 1j])
def test_values_that_would_change_are_refused(value):
    with pytest.raises(TypeError, match="cannot hold"):
        to_bytes({"x": value})


def test_manifest_round_trips(tmp_path):
    written = write_dataset(
        tmp_path / "codes",
        rows(3),
        image_size=384,
        class_names=("cat", "dog"),
        tokenizer=TokenizerId("VQ-16", "ab12", 16384),
        code_shape=(2, 3),
    )
    assert Manifest.read(tmp_path / "codes") == written
    changed = dataclasses.replace(written, class_names=("cat", "fox"))
    changed.write(tmp_path / "codes")
    assert Manifest.read(tmp_path / "codes") == changed


def test_records_are_split_into_shards_in_order(dataset):
    manifest = Manifest.read(dataset)
    assert [(shard.name, shard.records) for shard in manifest.shards] == [
        ("00000.array_record", 3),
        ("00001.array_record", 2),
    ]
    shards = open_shards(dataset, manifest)
    labels = [from_bytes(shard[i])["label"] for shard in shards for i in range(len(shard))]
    assert labels == [0, 1, 2, 3, 4]
    assert sorted(p.name for p in dataset.parent.iterdir()) == ["codes"]
    verify(dataset)


def open_dataset(folder):
    return open_shards(folder, Manifest.read(folder))


def test_folder_without_manifest(tmp_path):
    with pytest.raises(InputError, match=r"not a dataset folder.*no manifest\.json"):
        open_dataset(tmp_path)
    with pytest.raises(InputError, match=r"'.*absent' is not a dataset folder"):
        open_dataset(tmp_path / "absent")


def test_other_schema_version(dataset):
    edit_manifest(dataset, version=99)
    with pytest.raises(InputError, match="schema version 99 but only 1"):
        open_dataset(dataset)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "holds no JSON object"),
        ("{}", "is damaged"),
        ('{"version": 1}', "is damaged"),
        ('{"version": 1, "digest": "0"}', "is damaged, or was edited"),
    ],
)
def test_damaged_manifest(dataset, text, message):
    (dataset / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=rf"manifest\.json'? {message}"):
        open_dataset(dataset)


def test_missing_shard(dataset):
    (dataset / "00001.array_record").unlink()
    with pytest.raises(InputError, match=r"00001\.array_record' is missing"):
        open_dataset(dataset)


def test_truncated_shard(dataset):
    path = dataset / "00001.array_record"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"00001\.array_record' has \d+ bytes instead of \d+"):
        open_dataset(dataset)


def test_shard_that_cannot_be_opened(dataset):
    path = dataset / "00001.array_record"
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(InputError, match=r"00001\.array_record' cannot be opened"):
        open_dataset(dataset)


def test_shard_with_another_record_count(dataset):
    shards = json.loads((dataset / "manifest.json").read_text())["shards"]
    shards[1]["records"] = 4
    edit_manifest(dataset, shards=shards)
    with pytest.raises(InputError, match=r"00001\.array_record' has 2 records instead of 4"):
        open_dataset(dataset)


def test_shard_that_the_manifest_does_not_list(dataset):
    (dataset / "00002.array_record").write_bytes(b"")
    with pytest.raises(InputError, match=r"00002\.array_record' is not in the manifest"):
        open_dataset(dataset)


def test_verify_finds_a_flipped_byte(dataset):
    path = dataset / "00001.array_record"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    open_dataset(dataset)
    with pytest.raises(InputError, match=r"00001\.array_record' has changed"):
        verify(dataset)


def test_existing_folder_is_left_alone(dataset):
    before = Manifest.read(dataset)
    with pytest.raises(InputError, match="codes exists already"):
        write_dataset(dataset, rows(1))
    assert Manifest.read(dataset) == before


def test_no_records(tmp_path):
    with pytest.raises(InputError, match=r"no records to write to '.*codes'"):
        write_dataset(tmp_path / "codes", [])
    assert not (tmp_path / "codes").exists()


def test_interrupted_writer_leaves_no_dataset_and_can_run_again(tmp_path):
    folder = tmp_path / "codes"

    def interrupted():
        yield from rows(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(folder, interrupted(), shard_size=2)
    assert not folder.exists()
    write_dataset(folder, rows(1))
    assert [shard.records for shard in Manifest.read(folder).shards] == [1]
    assert [p.name for p in tmp_path.iterdir()] == ["codes"]
