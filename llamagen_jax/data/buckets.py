"""Which records make a batch: those of one grid of codes, in an order that the seed decides.

Records that tell no grid are one bucket, whose epochs follow each other without a gap.
"""

import bisect
import itertools
from collections.abc import Sequence

import grain
from absl import logging

from llamagen_jax.data.sources import Source
from llamagen_jax.errors import InputError


class Bucket:
    """Records of one grid by their number among these: `bucket[i]` is an index of the source."""

    def __init__(self, runs: Sequence[range]):
        """Takes the indices that follow each other."""
        self._runs = runs
        self._ends = list(itertools.accumulate(map(len, runs)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, number: int) -> int:
        run = bisect.bisect_right(self._ends, number)
        return self._runs[run][number - self._ends[run]]


def buckets(source: Source) -> dict[tuple[int, int] | None, Bucket]:
    """The records of each grid, in ascending order of the grids; all under None without grids."""
    if source.manifest is None or not source.manifest.grids:
        return {None: Bucket([range(len(source))])}
    runs = {grid: [] for grid in source.manifest.grids}
    start = 0
    for grid, count in source.manifest.grid_runs:
        runs[grid].append(range(start, start + count))
        start += count
    return {grid: Bucket(ranges) for grid, ranges in runs.items()}


class Order:
    """Batches of an endless stream of shuffled epochs, each batch of one bucket.

    An epoch of several buckets has all whole batches that their records fill, shuffled; which
    records are left over is drawn anew in each.

    Attributes:
      batch_size: records of a batch.
      num_buckets: that records are in.
    """

    def __init__(self, source: Source, batch_size: int, seed: int):
        """Raises InputError if no bucket fills a batch; warns of one that does not."""
        by_grid = buckets(source)
        self._buckets = list(by_grid.values())
        self.batch_size, self.num_buckets = batch_size, len(by_grid)
        self._shuffled = [_shuffled(len(bucket), seed) for bucket in self._buckets]
        if self.num_buckets == 1:
            return
        self._ends = list(
            itertools.accumulate(len(bucket) // batch_size for bucket in self._buckets)
        )
        if not self._ends[-1]:
            raise InputError(
                f"no grid of {source!r} has the {batch_size} records of a batch: lower batch_size"
            )
        for grid, bucket in by_grid.items():
            if len(bucket) < batch_size:
                message = "never trained on: %d records of the grid %s, which fill no batch of %d"
                logging.warning(message, len(bucket), grid, batch_size)
        self._batches = _shuffled(self._ends[-1], seed)

    def batch(self, step: int) -> tuple[int, int]:
        """The bucket of a step's batch, and the place of its first record in that one's stream."""
        if self.num_buckets == 1:
            return 0, step * self.batch_size
        number = self._batches[step]
        assert number is not None
        bucket = bisect.bisect_right(self._ends, number)
        before = self._ends[bucket - 1] if bucket else 0
        epoch = step // self._ends[-1]
        first = epoch * len(self._buckets[bucket]) + (number - before) * self.batch_size
        return bucket, first

    def record(self, bucket: int, place: int) -> int:
        """The index in the source of the record at a place of a bucket's stream."""
        number = self._shuffled[bucket][place]
        assert number is not None
        return self._buckets[bucket][number]


def _shuffled(count: int, seed: int) -> grain.MapDataset:
    """Endless epochs of 0 ... count - 1, each in another order."""
    return grain.MapDataset.range(count).seed(seed).shuffle().repeat()
