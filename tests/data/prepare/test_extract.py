"""Extractions: complete, in order, resumable after a kill, and shared by processes."""

import functools
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import filelock
import pytest
import tiny

from llamagen_jax.data.prepare import extract
from llamagen_jax.data.prepare.extract import Extraction
from llamagen_jax.data.records import Manifest, verify
from llamagen_jax.data.sources import ArrayRecordSource
from llamagen_jax.errors import InputError
from llamagen_jax.interruption import Interrupted


class Numbers:
    """Record i is {"number": i}."""

    def __init__(self, count: int):
        self._count = count

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        return {"number": index}

    def name(self, index):
        return f"number {index}"

    def __repr__(self):
        return f"Numbers({self._count})"


def labels(numbers):
    return [{"label": number} for number in numbers]


def extraction(count=22, load=lambda record: record["number"], run=labels, **changes):
    """Makes shards of five numbers, batches of two."""
    fields = {"settings": {"kind": "numbers"}, "manifest": Manifest((), image_size=7)}
    fields |= {"batch_size": 2, "shard_size": 5} | changes
    return functools.partial(Extraction, source=Numbers(count), load=load, run=run, **fields)


def written(folder):
    verify(folder)
    return [record["label"] for record in ArrayRecordSource(folder)]


def failing_at(*numbers, error=OSError):
    def load(record):
        if record["number"] in numbers:
            raise error("broken")
        return record["number"]

    return load


def interrupted(folder, at):
    """Leaves the folder as a run that is stopped when it loads the number `at`."""
    load = failing_at(at, error=InputError)
    with pytest.raises(InputError, match="broken"):
        extract.extract(folder, extraction(load=load))


def test_records_are_written_in_order_with_the_manifest(tmp_path):
    manifest = extract.extract(tmp_path / "out", extraction())
    assert written(tmp_path / "out") == list(range(22))
    assert manifest == Manifest.read(tmp_path / "out")
    assert manifest.image_size == 7
    assert [shard.records for shard in manifest.shards] == [5, 5, 5, 5, 2]
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {shard.name for shard in manifest.shards} | {"manifest.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_run_gets_batches_and_load_runs_ahead_of_it(tmp_path):
    sizes, ahead = [], threading.Event()

    def load(record):
        if record["number"] == 3:
            ahead.set()
        return record["number"]

    def run(numbers):
        assert ahead.wait(timeout=60)
        sizes.append(len(numbers))
        return labels(numbers)

    extract.extract(tmp_path / "out", extraction(10, load, run))
    assert sorted(sizes) == [1, 1, 2, 2, 2, 2]
    assert written(tmp_path / "out") == list(range(10))


def test_only_missing_shards_are_done_again(tmp_path):
    """A signal comes in the middle of the third of five shards."""

    def stop(numbers):
        if 13 in numbers:
            raise Interrupted(signal.SIGTERM)
        return labels(numbers)

    told = r"SIGTERM: .*out\.partial keeps the finished shards; start .* to go on"
    with pytest.raises(Interrupted, match=told):
        extract.extract(tmp_path / "out", extraction(run=stop))
    assert not (tmp_path / "out").exists()
    (tmp_path / "out.partial" / "00002.array_record.partial").write_text("half a shard")
    loaded = []

    def load(record):
        loaded.append(record["number"])
        return record["number"]

    extract.extract(tmp_path / "out", extraction(load=load, batch_size=3))
    assert sorted(loaded) == list(range(10, 22))
    assert written(tmp_path / "out") == list(range(22))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": {"kind": "words"}}, "begun with kind='numbers', not 'words'"),
        ({"shard_size": 6}, "begun with shard_size=5, not 6"),
        ({"count": 23}, "begun with records=22, not 23"),
    ],
)
def test_other_settings_are_refused(tmp_path, change, message):
    interrupted(tmp_path / "out", at=13)
    with pytest.raises(InputError, match=message):
        extract.extract(tmp_path / "out", extraction(**change))
    extract.extract(tmp_path / "out", extraction())


def test_a_finished_folder_is_kept(tmp_path):
    extract.extract(tmp_path / "out", extraction())
    with pytest.raises(InputError, match="out exists already"):
        extract.extract(tmp_path / "out", extraction())


def test_broken_records_are_left_out_and_named(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "absl"):
        load = failing_at(1, 5, 6, 7, 8, 9, 21)
        manifest = extract.extract(tmp_path / "out", extraction(load=load))
    assert written(tmp_path / "out") == [0, 2, 3, 4, *range(10, 21)]
    # Nothing is left of the second shard.
    assert [shard.name[:5] for shard in manifest.shards] == ["00000", "00002", "00003", "00004"]
    assert "skipped number 21: OSError: broken" in caplog.text
    assert len(caplog.records) == 7


def test_nothing_but_broken_records(tmp_path):
    with pytest.raises(InputError, match=r"every record of Numbers\(3\) .* number 0: OSError"):
        extract.extract(tmp_path / "out", extraction(3, failing_at(0, 1, 2)))
    assert not list(tmp_path.iterdir())


def test_processes_share_the_shards(tmp_path):
    out = tmp_path / "out"
    assert extract.extract(out, extraction(), process_index=1, process_count=3) is None
    names = sorted(path.name for path in (tmp_path / "out.partial").glob("*.array_record"))
    assert names == ["00001.array_record", "00004.array_record"]
    # Another number of processes does what is left.
    assert extract.extract(out, extraction(), process_index=0, process_count=2) is None
    assert extract.extract(out, extraction(), process_index=1, process_count=2) is not None
    assert written(out) == list(range(22))


@pytest.mark.parametrize(("index", "count"), [(2, 2), (-1, 2), (0, 0)])
def test_impossible_shares(tmp_path, index, count):
    with pytest.raises(InputError, match=f"process index {index} must be"):
        extract.extract(tmp_path / "out", extraction(), process_index=index, process_count=count)


@pytest.mark.parametrize("field", ["batch_size", "shard_size"])
def test_impossible_sizes(field):
    with pytest.raises(InputError, match=f"{field.replace('_', ' ')} 0 must be at least 1"):
        extraction(**{field: 0})()


def test_a_shard_that_another_run_writes_is_left_to_it(tmp_path):
    interrupted(tmp_path / "out", at=13)
    lock = filelock.FileLock(tmp_path / "out.partial" / "progress" / "00002.lock")
    with lock, pytest.raises(InputError, match="another run is at work on shard 00002"):
        extract.extract(tmp_path / "out", extraction())
    extract.extract(tmp_path / "out", extraction())
    assert written(tmp_path / "out") == list(range(22))


def test_of_processes_that_finish_at_once_one_moves_the_folder(tmp_path, monkeypatch):
    out, write_json = tmp_path / "out", extract._write_json

    def write_manifest_late(path, value):
        if path.name == "manifest.json":
            monkeypatch.setattr(extract, "_write_json", write_json)
            assert extract.extract(out, extraction()) is not None
        write_json(path, value)

    monkeypatch.setattr(extract, "_write_json", write_manifest_late)
    assert extract.extract(out, extraction()) == Manifest.read(out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def work(folder: str, index: int, count: int, seconds: float) -> None:
    """What a process of the test below does."""

    def load(record):
        time.sleep(seconds)
        return record["number"]

    extract.extract(folder, extraction(60, load), process_index=index, process_count=count)


def start(folder: Path, index: int, seconds: float) -> subprocess.Popen:
    module = "tests.data.prepare.test_extract"
    code = f"import {module} as t; t.work({str(folder)!r}, {index}, 2, {seconds})"
    paths = [str(Path(tiny.__file__).parent), str(Path(tiny.__file__).parents[1])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.Popen([sys.executable, "-c", code], env=environment)


def test_two_processes_one_of_which_is_killed(tmp_path):
    killed, other = start(tmp_path / "out", 0, 0.1), start(tmp_path / "out", 1, 0)
    progress = tmp_path / "out.partial" / "progress"
    # It is at work on its second shard.
    while not (progress / "00002.lock").exists():
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    assert (killed.wait(), other.wait()) == (-signal.SIGKILL, 0)
    assert not (tmp_path / "out").exists()
    finished = progress.parent / "00000.array_record"
    before = finished.stat().st_mtime_ns
    assert start(tmp_path / "out", 0, 0).wait() == 0
    assert (tmp_path / "out" / finished.name).stat().st_mtime_ns == before
    assert written(tmp_path / "out") == list(range(60))


def test_an_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*out\.partial: Not a directory"):
        extract.extract(tmp_path / "file" / "out", extraction())


def test_errors_of_run_end_the_extraction(tmp_path):
    def run(numbers):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        extract.extract(tmp_path / "out", extraction(run=run))
    assert not (tmp_path / "out").exists()
