"""Batches of records of several grids."""

import collections
import contextlib
import dataclasses
import itertools

import numpy as np
import pytest
import tiny

from llamagen_jax.data.pipeline import eval_batches, train_batches
from llamagen_jax.data.records import Manifest, TokenizerId, write_dataset
from llamagen_jax.data.sources import open_source
from llamagen_jax.errors import InputError

CONFIG = dataclasses.replace(tiny.DATA_CONFIG, source="array_record", train="codes", eval="")
COUNTS = {(2, 2): 9, (1, 3): 5, (3, 1): 6}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Records whose labels number them, of grids that take turns, in shards of seven."""
    folder = tmp_path_factory.mktemp("data") / "codes"
    rounds = itertools.zip_longest(*([grid] * count for grid, count in COUNTS.items()))
    grids = [grid for grid in itertools.chain.from_iterable(rounds) if grid]
    records = (
        {
            "codes": np.full((1, grid[0] * grid[1]), label, np.uint16),
            "grid": list(grid),
            "label": label,
        }
        for label, grid in enumerate(grids)
    )
    made_by = TokenizerId("tiny", "0", 32)
    write_dataset(folder, records, shard_size=7, tokenizer=made_by, code_shape=(1, None))
    return open_source("array_record", folder)


def _take(source, count, workers=0, **arguments):
    arguments = {"batch_size": 4, "seed": 3} | arguments
    config = dataclasses.replace(CONFIG, workers=workers)
    with contextlib.closing(train_batches(source, config, **arguments)) as batches:
        return list(itertools.islice(batches, count))


def test_the_manifest_tells_the_grids(source):
    assert source.manifest.grids == ((1, 3), (2, 2), (3, 1))
    assert sum(count for _, count in source.manifest.grid_runs) == len(source) == 20
    assert Manifest.read(source._folder) == source.manifest


def test_a_batch_has_one_grid_and_an_epoch_every_record_once(source):
    # Of 9, 5 and 6 records two, one and one batches of four.
    for start in (0, 4, 8):
        epoch = _take(source, 4, start=start)
        shapes = collections.Counter(batch["codes"].shape[1:] for batch in epoch)
        assert shapes == {(2, 2): 2, (1, 3): 1, (3, 1): 1}
        labels = np.concatenate([batch["label"] for batch in epoch])
        assert len(set(labels)) == 16
        for batch in epoch:
            np.testing.assert_array_equal(batch["codes"].reshape(4, -1)[:, 0], batch["label"])
    epochs = [np.concatenate([b["label"] for b in _take(source, 4, start=s)]) for s in (0, 4)]
    assert not np.array_equal(*epochs)


def test_batches_are_a_function_of_seed_and_step(source):
    whole = _take(source, 8)
    for step in (3, 6):
        np.testing.assert_equal(_take(source, 1, start=step), whole[step : step + 1])
    parts = [_take(source, 8, process_index=i, process_count=2) for i in range(2)]
    for batch, *halves in zip(whole, *parts, strict=True):
        joined = {key: np.concatenate([half[key] for half in halves]) for key in batch}
        np.testing.assert_equal(joined, batch)
    other = _take(source, 8, seed=4)
    assert [b["label"].tolist() for b in other] != [b["label"].tolist() for b in whole]


def test_evaluation_sees_every_record_once(source):
    seen, shapes = [], []
    for batch in eval_batches(source, CONFIG, batch_size=4):
        seen += batch["label"][batch["weight"] > 0].tolist()
        shapes.append(batch["codes"].shape)
    assert sorted(seen) == list(range(20))
    # As many batches for every process, whatever its share.
    halves = [
        [b["codes"].shape[1:] for b in eval_batches(source, CONFIG, batch_size=4, **share)]
        for share in ({"process_index": i, "process_count": 2} for i in range(2))
    ]
    assert halves[0] == halves[1] == [shape[1:] for shape in shapes]


def test_grids_that_fill_no_batch(source, caplog):
    _take(source, 1, batch_size=6)
    assert "never trained on: 5 records of the grid (1, 3), which fill no batch of 6" in caplog.text
    with pytest.raises(InputError, match="the 10 records of a batch: lower batch_size"):
        _take(source, 1, batch_size=10)


def test_another_batch_size_cannot_go_on(source):
    with pytest.raises(InputError, match="several grids cannot change"):
        _take(source, 1, record_offset=4)
