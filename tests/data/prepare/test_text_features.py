"""Packed text features: what the command writes, and the batches that are made of it."""

import contextlib
import dataclasses
import functools
import itertools
import logging

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from llamagen_jax.data.pipeline import eval_batches, train_batches
from llamagen_jax.data.prepare import __main__ as prepare
from llamagen_jax.data.records import Manifest, verify, write_dataset
from llamagen_jax.data.sources import ArrayRecordSource
from llamagen_jax.text.encoder import TextEncoder

pytest.importorskip("sentencepiece")
pytest.importorskip("ftfy")

LENGTH = 12
# Cleaning leaves nothing of record 3; record 5 is longer than LENGTH; some have no short caption.
CAPTIONS = [
    {"long": f"A large circle left of {i} squares", "short": f"{i} squares", "url": "x"}
    for i in range(7)
]
CAPTIONS[1] = {"long": "two circles", "short": " "}
CAPTIONS[3] = {"long": "图片", "short": " "}
CAPTIONS[5] = {"long": "a red circle left of a blue square " * 3}
KEPT = [0, 1, 2, 4, 5, 6]


def run(*args):
    prepare.main([str(arg) for arg in args])


def fails(*args) -> str:
    """The one line that the command ends with."""
    return tiny.error_line(run, *args)


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5")
    return tiny.write_t5(folder / "tiny-t5", tiny.write_spiece(folder))


@pytest.fixture(scope="module")
def encoded(t5):
    """Valid features of a text."""
    encoder = TextEncoder.load(t5, length=LENGTH, batch_size=8)

    @functools.cache
    def encode(text):
        features, mask = encoder.encode([text])
        return features[mask]

    return encode


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    """A dataset folder of codes; record i has the codes [i, i]."""
    folder = tmp_path_factory.mktemp("data") / "captioned"
    records = (
        {"codes": np.full((1, 2), i, np.uint16), "captions": captions}
        for i, captions in enumerate(CAPTIONS)
    )
    write_dataset(folder, records, code_shape=(1, 2), class_names=("a",))
    return folder


@pytest.fixture(scope="module")
def packed(captioned, t5, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "packed"
    run("text", captioned, folder, *options(t5), "--captions", "long", "short")
    return folder


def options(t5) -> list:
    return ["--text-encoder", t5, "--length", LENGTH, "--shard-size", 2, "--batch-size", 3]


def test_features_are_those_of_the_encoder(packed, captioned, encoded):
    verify(packed)
    before, after = ArrayRecordSource(captioned), ArrayRecordSource(packed)
    assert len(after) == len(KEPT)
    for number, record in zip(KEPT, after, strict=True):
        text = record.pop("text")
        expected = before[number]
        np.testing.assert_array_equal(record.pop("codes"), expected.pop("codes"))
        assert record == expected
        captions = {n: t for n, t in record["captions"].items() if t.strip() and n != "url"}
        assert text.keys() == captions.keys()
        for name, features in text.items():
            assert features.dtype == jnp.bfloat16
            assert features.shape[0] <= LENGTH and features.shape[1] == tiny.T5_CONFIG.dim
            np.testing.assert_array_equal(features, encoded(captions[name]))


def test_the_manifest_tells_the_encoder(packed, captioned, t5):
    manifest = Manifest.read(packed)
    made_by = manifest.text_encoder
    assert (made_by.name, made_by.width, made_by.length) == (str(t5), 16, LENGTH)
    assert len(made_by.sha256) == 64
    assert (manifest.code_shape, manifest.class_names) == ((1, 2), ("a",))
    assert Manifest.read(captioned).text_encoder is None


def test_all_captions_are_encoded_and_empty_records_counted(
    captioned, t5, tmp_path, capsys, caplog
):
    with caplog.at_level(logging.WARNING, "absl"):
        run("text", captioned, tmp_path / "out", *options(t5))
    assert f"wrote 6 records to {tmp_path / 'out'}; skipped 1" in capsys.readouterr().out
    assert "skipped record 3 of" in caplog.text and "it has no caption" in caplog.text
    assert "captions cut to 12 tokens: 'a red circle" in caplog.text
    assert ArrayRecordSource(tmp_path / "out")[0]["text"].keys() == {"long", "short", "url"}


def test_shares_are_gone_on_with_and_agree_with_one_run(packed, captioned, t5, tmp_path, capsys):
    command = ["text", captioned, tmp_path / "out", *options(t5), "--captions", "long", "short"]
    run(*command, "--process-count", 2, "--process-index", 1)
    assert "finished share 1 of 2" in capsys.readouterr().out
    assert "begun with length=12, not 11" in fails(*command, "--length", 11)
    run(*command)
    assert Manifest.read(tmp_path / "out") == Manifest.read(packed)


def test_bad_input(captioned, t5, tmp_path):
    out = [tmp_path / "out", "--text-encoder"]
    write_dataset(tmp_path / "labels", [{"codes": np.zeros((1, 2), np.uint16), "label": 0}])
    line = fails("text", tmp_path / "labels", *out, t5)
    assert "features are made for codes with captions, not for: codes, label" in line
    line = fails("text", captioned, *out, t5, "--captions", "lnog")
    assert "every record of" in line and "it has no caption of lnog, only: long, short, url" in line
    assert "nowhere is no folder; expected one of a T5" in fails("text", captioned, *out, "nowhere")
    assert "is not a dataset folder" in fails("text", tmp_path / "missing", *out, t5)
    assert "--length: 0 must be" in fails("text", captioned, *out, t5, "--length", 0)
    assert not list(tmp_path.glob("out*"))


def config(packed, workers=0):
    return dataclasses.replace(
        tiny.DATA_CONFIG,
        source="array_record",
        train=str(packed),
        eval=str(packed),
        workers=workers,
        caption_weights=(("long", 0.6), ("short", 0.4)),
    )


def check_row(batch, row, names, encoded):
    """The row's features are those of one of the captions; returns which."""
    captions = CAPTIONS[batch["codes"][row][0]]
    mask, features = batch["mask"][row], batch["features"][row]
    assert np.all(np.diff(mask.astype(int)) >= 0) and mask[-1]
    assert np.all(features[~mask] == 0)
    same = [n for n in names if np.array_equal(features[mask], encoded(captions.get(n, "")))]
    assert same
    return same[0]


def training_batches(packed, workers):
    source = ArrayRecordSource(packed)
    return train_batches(source, config(packed, workers), batch_size=6, seed=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_training_draws_the_features_of_a_caption(packed, encoded, workers):
    batches = train_batches(
        ArrayRecordSource(packed), config(packed, workers), batch_size=6, seed=0
    )
    with contextlib.closing(batches):
        batches = list(itertools.islice(batches, 16))
    drawn = set()
    for batch in batches:
        assert batch.keys() == {"codes", "features", "mask", "skipped"}
        assert batch["codes"].dtype == np.int32 and batch["codes"].shape == (6, 2)
        assert batch["features"].dtype == jnp.bfloat16 and batch["mask"].dtype == bool
        assert batch["features"].shape == (6, LENGTH, 16) and batch["mask"].shape == (6, LENGTH)
        for row in range(6):
            name = check_row(batch, row, ("long", "short"), encoded)
            drawn.add((int(batch["codes"][row][0]), name))
    assert {number for number, _ in drawn} == set(KEPT)
    assert {(0, "long"), (0, "short")} <= drawn
    assert not {(1, "short"), (5, "short")} & drawn


def test_loading_processes_give_the_same_batches(packed):
    shares = []
    for workers in (0, 2):
        batches = train_batches(
            ArrayRecordSource(packed), config(packed, workers), batch_size=6, seed=0
        )
        with contextlib.closing(batches):
            shares.append(list(itertools.islice(batches, 6)))
    for here, elsewhere in zip(*shares, strict=True):
        assert here.keys() == elsewhere.keys()
        for key in here:
            np.testing.assert_array_equal(elsewhere[key], here[key], strict=True)


def test_evaluation_takes_the_heaviest_caption(packed, encoded):
    (batch,) = eval_batches(ArrayRecordSource(packed), config(packed), batch_size=8)
    assert batch.keys() == {"codes", "features", "mask", "weight"}
    assert batch["codes"][:6, 0].tolist() == KEPT
    for row in range(6):
        check_row(batch, row, ("long",), encoded)


def test_grids_are_kept(t5, tmp_path):
    """Of records that are left out none is counted."""
    grids = [[1, 2], [1, 2], [1, 2], [2, 1], [2, 1], [2, 1], [1, 2]]
    records = (
        {"codes": np.full((1, 2), i, np.uint16), "grid": grid, "captions": captions}
        for i, (grid, captions) in enumerate(zip(grids, CAPTIONS, strict=True))
    )
    write_dataset(tmp_path / "codes", records, code_shape=(1, None))
    run("text", tmp_path / "codes", tmp_path / "packed", *options(t5))
    source = ArrayRecordSource(tmp_path / "packed")
    assert [record["grid"] for record in source] == [grids[i] for i in KEPT]
    assert source.manifest.grid_runs == (((1, 2), 3), ((2, 1), 2), ((1, 2), 1))
