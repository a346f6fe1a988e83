"""Batches: complete, reproducible, resumable, and honest about broken records."""

import contextlib
import dataclasses
import io
import itertools
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from llamagen_jax.data import pipeline
from llamagen_jax.data.records import TokenizerId, write_dataset
from llamagen_jax.data.sources import open_source
from llamagen_jax.errors import InputError

DIGITS = dataclasses.replace(tiny.DATA_CONFIG, random_crop=True, random_flip=True)


def noise(seed):
    return np.random.default_rng(seed).integers(0, 256, (24, 24, 3), np.uint8)


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def as_array(caption):
    """A condition for batches that shows which caption was drawn."""
    return {"caption": np.str_(caption)}


def codes_config(folder, count):
    """A dataset whose labels number the records; record i has the codes [i, i], [-i, -i]."""
    write_dataset(
        folder,
        ({"codes": np.int32([[i, i], [-i, -i]]), "label": i} for i in range(count)),
        shard_size=4,
    )
    return dataclasses.replace(DIGITS, source="array_record", train=str(folder), eval=str(folder))


@pytest.fixture
def broken_config(tmp_path):
    """Eight noise images in two shards; record 5 (position 1 of the second) is damaged."""
    folder = tmp_path / "noise"
    records = [{"image": encoded(noise(i)), "label": i} for i in range(8)]
    write_dataset(folder, records, shard_size=4)
    path = folder / "00001.array_record"
    data = path.read_bytes()
    piece = records[5]["image"][200:260]
    assert piece in data
    path.write_bytes(data.replace(piece, bytes(60)))
    return dataclasses.replace(DIGITS, source="array_record", train=str(folder), eval=str(folder))


@pytest.fixture
def image_folder_config(tmp_path):
    for label, name in enumerate(["ant", "bee", "cat"]):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(encoded(noise(label), "JPEG"))
    return dataclasses.replace(
        DIGITS, source="image_folder", train=str(tmp_path), eval=str(tmp_path)
    )


@pytest.fixture
def captions_config(tmp_path):
    """Eight captioned noise images in two tar shards; those of odd number have no short caption,
    number 2 has no caption, 4 is truncated and 6 is small."""
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for i in range(4 * shard, 4 * shard + 4):
                image = encoded(noise(i)[: 12 if i == 6 else 24])
                captions = {"long": f"long {i} é"} | ({} if i % 2 else {"short": f"short {i}"})
                add(tar, f"{i}.png", image[:900] if i == 4 else image)
                add(tar, f"{i}.json", json.dumps({} if i == 2 else captions).encode())
    return dataclasses.replace(
        DIGITS,
        source="tar_shards",
        train=str(tmp_path),
        eval=str(tmp_path),
        caption_weights=(("long", 0.7), ("short", 0.3)),
        skip_small=True,
    )


def add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def take(config, count, **arguments):
    """The first `count` training batches."""
    source = open_source(config.source, config.train)
    with contextlib.closing(pipeline.train_batches(source, config, **arguments)) as batches:
        return list(itertools.islice(batches, count))


def eval_batches(config, **arguments):
    return pipeline.eval_batches(open_source(config.source, config.eval), config, **arguments)


def labels(batches):
    return [int(label) for batch in batches for label in batch["label"]]


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key], strict=True)


def test_image_batches():
    (batch,) = take(DIGITS, 1, batch_size=3, seed=0)
    assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
        "image": ((3, 24, 24, 3), np.uint8),
        "label": ((3,), np.int32),
        "skipped": ((3,), np.bool_),
    }
    assert not batch["skipped"].any()


def test_records_go_on_with_another_batch_size():
    small = take(DIGITS, 6, batch_size=2, seed=0)
    large = take(DIGITS, 2, batch_size=4, seed=0, start=2, record_offset=2 * 2 - 2 * 4)
    assert labels(large) == labels(small)[4:12]


def test_codes_batches_draw_every_crop(tmp_path):
    config = codes_config(tmp_path / "codes", 4)
    batches = take(config, 8, batch_size=4, seed=0)
    codes = np.concatenate([batch["codes"] for batch in batches])
    assert codes.dtype == np.int32
    assert codes.shape == (32, 2)
    np.testing.assert_array_equal(abs(codes[:, 0]), labels(batches))
    assert {-3, 3} <= set(codes[:, 0].tolist())


def test_folders_of_codes_are_mixed_equally_and_resumably(tmp_path):
    folders = []
    for first in (0, 100):
        records = ({"codes": np.full((2, 3), first + i), "label": i} for i in range(8))
        folders.append(str(tmp_path / str(first)))
        made_by = TokenizerId("tiny", "0", 256)
        write_dataset(folders[-1], records, tokenizer=made_by, code_shape=(2, 3))
    config = dataclasses.replace(DIGITS, source="array_record", train=tuple(folders))
    batches = take(config, 50, batch_size=8, seed=0)
    codes = np.concatenate([batch["codes"] for batch in batches])
    assert codes.shape == (400, 3)
    np.testing.assert_array_equal(codes % 100, np.repeat(labels(batches), 3).reshape(-1, 3))
    for batch in batches:
        assert sorted(batch["label"].tolist()) == list(range(8))
    # 200 of the second folder are expected, with a standard deviation of 10.
    assert 160 < (codes[:, 0] >= 100).sum() < 240
    assert_same(take(config, 5, batch_size=8, seed=0, start=45), batches[45:])


@pytest.mark.parametrize("random_crop", [False, True])
def test_fast_decoding_is_nearly_the_same(tmp_path, random_crop):
    (tmp_path / "cat").mkdir()
    smooth = Image.fromarray(noise(0)[:4, :5]).resize((200, 160), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "cat" / "1.jpg")
    config = dataclasses.replace(
        DIGITS,
        source="image_folder",
        train=str(tmp_path),
        eval=str(tmp_path),
        random_crop=random_crop,
    )
    fast = dataclasses.replace(config, fast_decode=True)
    (a,), (b,) = (take(c, 1, batch_size=4, seed=0) for c in (config, fast))
    difference = abs(a["image"].astype(int) - b["image"])
    assert 0 < difference.mean() < 1.5
    assert_same(eval_batches(fast, batch_size=1), eval_batches(config, batch_size=1))


def test_images_are_augmented_only_if_asked(image_folder_config):
    plain = dataclasses.replace(image_folder_config, random_crop=False, random_flip=False)
    for batch in take(plain, 4, batch_size=3, seed=0):
        for image, label in zip(batch["image"], batch["label"], strict=True):
            original = Image.open(f"{plain.train}/{['ant', 'bee', 'cat'][label]}/1.jpg")
            np.testing.assert_array_equal(image, np.asarray(original))
    for option in ("random_crop", "random_flip"):
        batches = take(dataclasses.replace(plain, **{option: True}), 8, batch_size=3, seed=0)
        images = {image.tobytes() for batch in batches for image in batch["image"]}
        assert len(images) > 3


def test_processes_see_every_record_once_per_epoch_in_a_new_order(tmp_path):
    config = codes_config(tmp_path / "codes", 10)
    shares = [
        labels(take(config, 5, batch_size=6, seed=0, process_index=i, process_count=3))
        for i in range(3)
    ]
    stream = np.reshape(shares, (3, 5, 2)).transpose(1, 0, 2).ravel().tolist()
    epochs = [stream[:10], stream[10:20], stream[20:]]
    for epoch in epochs:
        assert sorted(epoch) == list(range(10))
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_the_stream_depends_neither_on_processes_nor_on_workers(workers):
    whole = take(DIGITS, 3, batch_size=6, seed=0)
    config = dataclasses.replace(DIGITS, workers=workers)
    half = take(config, 3, batch_size=6, seed=0, process_index=1, process_count=2)
    assert_same(half, [{key: rows[3:] for key, rows in batch.items()} for batch in whole])


def test_the_seed_decides_the_stream():
    first, again, other = (take(DIGITS, 2, batch_size=4, seed=seed) for seed in (1, 1, 2))
    assert_same(first, again)
    assert labels(first) != labels(other)


def test_batch_may_be_larger_than_the_dataset(tmp_path):
    config = codes_config(tmp_path / "codes", 3)
    (batch,) = take(config, 1, batch_size=7, seed=0)
    assert sorted(labels([batch])[:6]) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_stream_goes_on_from_any_step_in_spite_of_broken_records(broken_config, workers):
    whole = take(broken_config, 11, batch_size=3, seed=0)
    config = dataclasses.replace(broken_config, workers=workers)
    assert_same(take(config, 6, batch_size=3, seed=0, start=5), whole[5:])
    # One in each of the two whole epochs, and one of the two records beside them.
    assert sum(batch["skipped"].sum() for batch in whole[5:]) == 3


def test_damaged_record_is_skipped_counted_and_named(broken_config, caplog):
    batches = take(broken_config, 3, batch_size=8, seed=0)
    assert set(labels(batches)) == set(range(8)) - {5}
    for epoch in batches:
        assert epoch["skipped"].sum() == 1
        assert len(set(labels([epoch]))) >= 6  # one record of this or the next epoch replaces it
    assert "skipped record 1 of" in caplog.text
    assert "00001.array_record': RuntimeError" in caplog.text


def test_truncated_image_is_skipped_counted_and_named(image_folder_config, caplog):
    path = Path(image_folder_config.train) / "bee" / "1.jpg"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (batch,) = take(image_folder_config, 1, batch_size=9, seed=0)
    assert set(labels([batch])) == {0, 2}
    assert batch["skipped"].sum() == 3
    assert f"skipped '{path}': OSError" in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_but_broken_records_ends_training(tmp_path, workers):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").write_bytes(b"not a picture")
    config = dataclasses.replace(
        DIGITS,
        source="image_folder",
        train=str(tmp_path),
        eval=str(tmp_path),
        workers=workers,
    )
    with pytest.raises(InputError, match=rf"1000 records in a row .*'{tmp_path}/cat/1\.png'"):
        take(config, 1, batch_size=2, seed=0)
    with pytest.raises(InputError, match=f"every record of .*'{tmp_path}'"):
        eval_batches(config, batch_size=2)


def test_records_of_another_kind_are_named(tmp_path):
    write_dataset(tmp_path / "captions", [{"captions": ["a cat"]}])
    config = dataclasses.replace(DIGITS, source="array_record", train=str(tmp_path / "captions"))
    with pytest.raises(InputError, match=r"record 0 of .* has only: captions"):
        take(config, 1, batch_size=1, seed=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_captions_are_drawn_by_weight(captions_config, workers):
    plain = dataclasses.replace(
        captions_config, random_crop=False, random_flip=False, workers=workers
    )
    batches = take(plain, 25, batch_size=8, seed=0, condition=as_array)
    assert batches[0].keys() == {"image", "caption", "skipped"}
    drawn = [str(caption) for batch in batches for caption in batch["caption"]]
    assert {int(caption.split()[1]) for caption in drawn} == {0, 1, 3, 5, 7}
    assert not any(caption.startswith("short") for caption in drawn if caption[-3] in "1357")
    of_both = [caption for caption in drawn if caption.split()[1] == "0"]
    assert set(of_both) == {"long 0 é", "short 0"}
    # About 200 / 5 draws: the bounds are three standard deviations of a binomial away.
    assert 0.48 < np.mean([caption == "long 0 é" for caption in of_both]) < 0.92
    for image, caption in zip(batches[1]["image"], batches[1]["caption"], strict=True):
        np.testing.assert_array_equal(image, noise(int(caption.split()[1])))
    one = dataclasses.replace(plain, workers=0)
    assert_same(batches[20:], take(one, 5, batch_size=8, seed=0, start=20, condition=as_array))


def test_what_captioned_records_lack_is_told(captions_config, caplog):
    batches = take(captions_config, 9, batch_size=1, seed=0, condition=as_array)
    # Numbers 2, 4 and 6 of the epoch's eight records; the ninth batch begins another epoch.
    assert sum(batch["skipped"].item() for batch in batches[:8]) == 3
    assert "skipped sample 2 of" in caplog.text
    assert "ValueError: it has no caption of long, short, only: none" in caplog.text
    assert "skipped sample 0 of" in caplog.text
    assert "ValueError: 24x12 px are less than 24" in caplog.text
    enlarged = dataclasses.replace(captions_config, skip_small=False)
    batches = take(enlarged, 9, batch_size=1, seed=0, condition=as_array)
    captions = [str(batch["caption"][0]) for batch in batches]
    assert {"long 6 é", "short 6"} & set(captions)


def test_eval_takes_the_caption_of_the_largest_weight(captions_config):
    weights = (("long", 0.3), ("short", 0.7))
    config = dataclasses.replace(captions_config, caption_weights=weights)
    (batch,) = eval_batches(config, batch_size=8, condition=as_array)
    assert batch["weight"].tolist() == [1] * 5 + [0] * 3
    expected = ["short 0", "long 1 é", "long 3 é", "long 5 é", "long 7 é"]
    assert batch["caption"][:5].tolist() == expected


def test_a_caption_that_no_record_has_is_named(captions_config):
    config = dataclasses.replace(captions_config, caption_weights=(("lnog", 1),))
    with pytest.raises(InputError, match=r"no caption of lnog, only: .*long"):
        take(config, 1, batch_size=1, seed=0, condition=as_array)
    config = dataclasses.replace(captions_config, caption_weights=())
    with pytest.raises(InputError, match=r"needs label and an image or codes but has only: image"):
        take(config, 1, batch_size=1, seed=0)


def test_batches_without_a_condition_need_none(captions_config):
    plain = dataclasses.replace(captions_config, caption_weights=(), skip_small=False)
    batches = take(plain, 4, batch_size=2, seed=0, condition=None)
    assert batches[0].keys() == {"image", "skipped"}
    (batch,) = eval_batches(plain, batch_size=8, condition=None)
    assert batch["weight"].sum() == 7  # all but the truncated one


def test_conditions_that_cannot_be_made_are_skipped(captions_config, caplog):
    def only_short(caption):
        if caption.startswith("long"):
            raise ValueError(f"{caption} is refused")
        return as_array(caption)

    batches = take(captions_config, 6, batch_size=4, seed=0, condition=only_short)
    assert {str(caption) for batch in batches for caption in batch["caption"]} == {"short 0"}
    assert "ValueError: long 3 é is refused" in caplog.text


def test_features_must_be_packed(captions_config):
    with pytest.raises(InputError, match=r"needs text and an image or codes but has only: image"):
        take(captions_config, 1, batch_size=1, seed=0)


def test_eval_is_one_padded_pass_in_order(tmp_path):
    batches = list(eval_batches(codes_config(tmp_path / "codes", 5), batch_size=2))
    assert [batch["weight"].tolist() for batch in batches] == [[1, 1], [1, 1], [1, 0]]
    assert labels(batches)[:5] == [0, 1, 2, 3, 4]
    assert batches[0].keys() == {"codes", "label", "weight"}
    assert batches[1]["codes"].tolist() == [[2, 2], [3, 3]]
    assert batches[2]["codes"].shape == (2, 2)
    assert batches[0]["weight"].dtype == np.float32


def test_eval_images_of_the_right_size_are_unchanged(broken_config):
    batch = next(eval_batches(broken_config, batch_size=7))
    assert labels([batch]) == [0, 1, 2, 3, 4, 6, 7]
    np.testing.assert_array_equal(batch["image"][5], noise(6))


@pytest.mark.parametrize("count", [2, 5, 9])
def test_processes_evaluate_every_record_once_in_as_many_batches(tmp_path, count):
    config = codes_config(tmp_path / "codes", count)
    shares = [
        list(eval_batches(config, batch_size=8, process_index=i, process_count=4)) for i in range(4)
    ]
    assert len({len(batches) for batches in shares}) == 1
    seen = [
        label
        for batches in shares
        for batch in batches
        for label, weight in zip(batch["label"], batch["weight"], strict=True)
        if weight
    ]
    assert sorted(seen) == list(range(count))


def test_eval_pads_for_broken_records(broken_config, caplog):
    batches = list(eval_batches(broken_config, batch_size=4))
    assert [batch["weight"].sum() for batch in batches] == [4, 3]
    assert "skipped record 1 of" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "array_records"}, "no data source 'array_records'.*'array_record'"),
        ({"train": ""}, r"data\.train is empty"),
        ({"image_size": 0}, r"data\.image_size is 0"),
        ({"workers": -1}, r"data\.workers is -1"),
        ({"caption_weights": (("long", 0),)}, r"caption_weights has \('long', 0\)"),
        ({"caption_weights": ("long", "short")}, r"caption_weights has 'long'"),
    ],
)
def test_impossible_configs(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(DIGITS, **change)
