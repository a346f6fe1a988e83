"""Runs a function over a source into a dataset folder, shard by shard.

Shard i holds what became of the records i * S to (i + 1) * S of the source. Until all are there,
they lie in OUTPUT.partial beside `progress/`, which tells with which settings it was begun and what
each finished shard holds: a run that was killed goes on at its first missing shard. Processes that
share a file system share the work without talking to each other; whoever writes the last missing
shard adds the manifest and gives the folder its name.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import filelock
from absl import logging
from tqdm import tqdm

from llamagen_jax import ray_cluster
from llamagen_jax.data.prepare import ray_engine
from llamagen_jax.data.records import Manifest, Shard, verify, write_shard
from llamagen_jax.data.sources import Source
from llamagen_jax.digests import read_json, write_json
from llamagen_jax.errors import InputError
from llamagen_jax.files import staged, staged_apart, told_full_disk
from llamagen_jax.interruption import told_kept

# While one batch is on the device, the next one is on its way.
_BATCHES_AT_ONCE = 2
# Records that may be broken before the first whole one.
_MOST_TRIED = 1000

# Held while programs are started: they must start in the same order on every device.
starting_programs = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Extraction:
    """What is to be extracted, and how.

    Attributes:
      source: of the records.
      load: one record of `source` -> one example. It runs in threads, ahead of `run`; whatever it
        raises but InputError leaves the record out with a warning, and counted.
      run: list of 1 to `batch_size` examples -> as many records to write. It is called from
        `_BATCHES_AT_ONCE` threads, and holds `starting_programs` where it starts programs.
      settings: everything that the written records depend on, as JSON values; a folder that was
        begun with other settings is refused.
      manifest: what the folder's manifest says, but for the shards.
      batch_size: records per call of `run`.
      shard_size: records of the source per shard.
      shape_of: example -> what all examples of a call of `run` share; the records of a shard are
        then put together by their `grid`. None where all are alike.
    """

    source: Source
    load: Callable[[dict], Any]
    run: Callable[[list], Iterable[dict]]
    settings: dict[str, Any]
    manifest: Manifest
    batch_size: int
    shard_size: int
    shape_of: Callable[[Any], Any] | None = None

    def __post_init__(self):
        for field in ("batch_size", "shard_size"):
            if getattr(self, field) < 1:
                name, value = field.replace("_", " "), getattr(self, field)
                raise InputError(f"{name} {value} must be at least 1")

    def ranges(self) -> list[range]:
        """The indices in `source` that each shard is made of."""
        indices = range(len(self.source))
        return [indices[i : i + self.shard_size] for i in indices[:: self.shard_size]]


def extract(
    output: str | os.PathLike,
    make: Callable[[], Extraction],
    *,
    engine: str = "local",
    ray_address: str | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Manifest | None:
    """Writes the shards that are missing, and prints what came of it.

    Both engines run the same programs on the same batches, and each goes on with what the other
    began. The output is the same, to the byte, if the programs give the same numbers on all the
    devices that run them: another kind of device, or another number of devices to share a batch,
    may round differently.

    Args:
      output: dataset folder to write, which appears when it is complete.
      make: opens what is to be extracted; "ray" pickles it and calls it in every process.
      engine: "local" computes in this process; "ray" in one process per GPU of a cluster or, if it
        has none, per machine. All its machines have the same file system.
      ray_address: of `ray_cluster.connected`, for "ray" alone.
      process_index, process_count: which shards are written here, those with i % process_count ==
        process_index; for "local" alone. Every process of the same work is given the same arguments
        but `process_index`; their number may be another after an interruption.

    Returns:
      The manifest, or None while shards of other processes are missing.

    Raises:
      InputError: of `make`, of what it makes and of `ray_cluster.connected`; `output` exists, or
        was begun with other settings; another run is at work on the same shard; every record is
        broken; what a machine of the cluster wrote is not seen here.
    """
    output = Path(output)
    _check_sharing(engine, ray_address, process_index, process_count)
    _check_free(output)
    partial = output.with_name(output.name + ".partial")
    with ray_cluster.connected(ray_address) if engine == "ray" else contextlib.nullcontext():
        extraction = make()
        ranges = extraction.ranges()
        # While models were loaded, another process may have finished the work.
        _check_free(output)
        if not partial.exists():
            _check_first(extraction)
        with _told_errors(partial):
            _begin(partial, extraction)
            share = range(len(ranges))[process_index::process_count]
            missing = [i for i in share if not _finished(partial, i).exists()]
            total, left = (sum(len(ranges[i]) for i in part) for part in (share, missing))
            with tqdm(total=total, initial=total - left, desc=output.name, unit="record") as bar:
                if engine == "ray":
                    make_writer = functools.partial(_shard_writer, partial, make)
                    for i in ray_engine.for_each(make_writer, missing):
                        bar.update(len(ranges[i]))
                else:
                    for i in missing:
                        _extract_shard(partial, i, extraction, bar)
            manifest = _finish(output, partial, extraction)
    if manifest is None and engine == "ray":
        raise InputError(
            f"not all shards have arrived in {partial}: a network file system may show them late; "
            "start the command again"
        )
    if manifest is None:
        print(f"finished share {process_index} of {process_count}; other shares are missing")
    else:
        count = sum(shard.records for shard in manifest.shards)
        skipped = len(extraction.source) - count
        print(f"wrote {count} records to {output}; skipped {skipped}")
    return manifest


def _check_free(output: Path) -> None:
    if output.exists():
        raise InputError(f"{output} exists already; remove it or choose another name")


def _check_first(extraction: Extraction) -> None:
    """Refuses data of which nothing can be used, before a folder is begun."""
    count = min(len(extraction.source), _MOST_TRIED)
    if all(_load(extraction, i)[1] for i in range(count)):
        whole = count == len(extraction.source)
        which = "every record" if whole else f"each of the first {count} records"
        raise _all_broken(extraction, which)


def _all_broken(extraction: Extraction, which: str) -> InputError:
    _, reason = _load(extraction, 0)
    return InputError(
        f"{which} of {extraction.source!r} is broken, the first: {reason}; check the input"
    )


def _check_sharing(
    engine: str, ray_address: str | None, process_index: int, process_count: int
) -> None:
    if not 0 <= process_index < process_count:
        raise InputError(
            f"process index {process_index} must be at least 0 and less than the process count "
            f"{process_count}"
        )
    if engine == "ray" and process_count > 1:
        raise InputError('the engine "ray" shares the work itself; leave the process count out')
    if engine == "local" and ray_address:
        raise InputError(f'the Ray address {ray_address} is for the engine "ray"; name that too')


@contextlib.contextmanager
def _told_errors(partial: Path) -> Iterator[None]:
    """Tells of what stops the work that `partial` keeps."""
    try:
        with told_full_disk(partial), told_kept(f"{partial} keeps the finished shards"):
            yield
    except OSError as error:
        raise InputError(f"cannot write {partial}: {error.strerror or error}") from error


def _shard_writer(partial: Path, make: Callable[[], Extraction]) -> Callable[[int], None]:
    """Writes shards of what another process has begun."""
    if not partial.exists():
        raise InputError(
            f"{socket.gethostname()} has no {partial}: all machines of the cluster must have the "
            "same file system"
        )
    extraction = make()

    def write(i: int) -> None:
        with _told_errors(partial):
            _extract_shard(partial, i, extraction, tqdm(disable=True))

    with _told_errors(partial):
        _begin(partial, extraction)
    return write


def _begin(partial: Path, extraction: Extraction) -> None:
    """Makes the folder, or checks that what was begun in it is to be gone on with."""
    settings = extraction.settings | {
        "records": len(extraction.source),
        "shard_size": extraction.shard_size,
    }
    path = partial / "progress" / "settings.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        _write_json(path, settings)
    begun = read_json(path)
    for key, value in json.loads(json.dumps(settings)).items():
        if begun.get(key) != value:
            raise InputError(
                f"{partial} was begun with {key}={begun.get(key)!r}, not {value!r}; "
                "go on with that, remove the folder or choose another name"
            )


def _finished(partial: Path, i: int) -> Path:
    """Says what shard `i` holds; written after it."""
    return partial / "progress" / f"{i:05d}.json"


def _extract_shard(partial: Path, i: int, extraction: Extraction, bar: tqdm) -> None:
    finished, indices = _finished(partial, i), extraction.ranges()[i]
    with _locked(finished.with_suffix(".lock")):
        if finished.exists():  # by a run with another number of processes
            bar.update(len(indices))
            return
        path = partial / f"{i:05d}.array_record"
        records = _records(indices, extraction, bar)
        if extraction.shape_of:
            records = iter(sorted(records, key=lambda record: record["grid"]))
        shard = None
        for first in records:
            with staged(path, overwrite=True) as file:
                shard = write_shard(file, itertools.chain([first], records))
        _write_json(finished, dataclasses.asdict(shard) | {"name": path.name} if shard else {})


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a file's lock, which the system takes from a process that is killed."""
    try:
        lock = filelock.FileLock(path).acquire(blocking=False)
    except filelock.Timeout:
        raise InputError(
            f"another run is at work on shard {path.stem} of {path.parents[1]}; wait for it, "
            "or give each process its own process index"
        ) from None
    with lock:
        yield


def _records(indices: range, extraction: Extraction, bar: tqdm) -> Iterator[dict]:
    def load(index: int) -> Any:
        example, reason = _load(extraction, index)
        if reason:
            logging.warning("skipped %s", reason)
        return example

    def whole() -> Iterator[Any]:
        threads = os.cpu_count() or 1
        for example in _ahead(load, indices, threads, _BATCHES_AT_ONCE * extraction.batch_size):
            bar.update()
            if example is not None:
                yield example

    def batches() -> Iterator[list]:
        filling = collections.defaultdict(list)
        for example in whole():
            shape = extraction.shape_of and extraction.shape_of(example)
            filling[shape].append(example)
            if len(filling[shape]) == extraction.batch_size:
                yield filling.pop(shape)
        yield from filling.values()

    results = _ahead(extraction.run, batches(), _BATCHES_AT_ONCE, _BATCHES_AT_ONCE - 1)
    return itertools.chain.from_iterable(results)


def _load(extraction: Extraction, index: int) -> tuple[Any, str]:
    """The example, or None and which record is broken and why."""
    try:
        return extraction.load(extraction.source[index]), ""
    except InputError:
        raise
    # Readers and decoders raise errors of any type on damaged bytes.
    except Exception as error:
        return None, f"{extraction.source.name(index)}: {type(error).__name__}: {error}"


def _ahead(function: Callable, items: Iterable, threads: int, count: int) -> Iterator:
    """`map(function, items)` in threads, up to `count` items ahead of the one that is taken."""
    waiting = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _finish(output: Path, partial: Path, extraction: Extraction) -> Manifest | None:
    """Adds the manifest and gives the folder its name, if no shard is missing."""
    finished = [_finished(partial, i) for i in range(len(extraction.ranges()))]
    try:
        if not all(path.exists() for path in finished) and partial.exists():
            return None
        shards = list(map(read_json, finished))
        if not any(shards):
            shutil.rmtree(partial)
            raise _all_broken(extraction, "every record")
        manifest = dataclasses.replace(
            extraction.manifest, shards=tuple(Shard(**shard) for shard in shards if shard)
        )
        manifest.write(partial)
        verify(partial)
        partial.replace(output)
    except FileNotFoundError:
        # Of processes that finish at the same moment, one moves the folder.
        if not (output / "manifest.json").exists():
            raise
        return Manifest.read(output)
    shutil.rmtree(output / "progress", ignore_errors=True)
    return manifest


def _write_json(path: Path, value: dict) -> None:
    with staged_apart(path) as partial:
        write_json(partial, value)
