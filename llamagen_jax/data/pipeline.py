"""Batches for training (endless, shuffled, resumable) and evaluation (one pass, in order).

grain shuffles and splits record indices; one function reads a record and makes an example of it.
A broken record becomes a `_Broken`, which is dropped and counted where the stream is sequential.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator

import grain
import numpy as np
from absl import flags, logging

from llamagen_jax.data import transforms
from llamagen_jax.data.sources import SOURCES, Source, open_source
from llamagen_jax.errors import InputError, nearest

_MAX_BROKEN_RUN = 1000


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the data is and how images are prepared; raises InputError for impossible values.

    Attributes:
      source: "digits", "image_folder" or "array_record".
      train: folder of the training data ("train" for the digits).
      eval: folder of the held-out data ("test" for the digits), "" for none.
      image_size: side of the images in the batches; codes are used as they are.
      random_crop: train on random crops instead of centre crops.
      random_flip: mirror half of the training images.
      workers: processes that load training data; 0 loads it in threads of this one.
    """

    source: str
    train: str
    eval: str
    image_size: int
    random_crop: bool
    random_flip: bool
    workers: int

    def __post_init__(self):
        if self.source not in SOURCES:
            raise InputError(
                f"there is no data source '{self.source}': {nearest(self.source, SOURCES)}"
            )
        if not self.train:
            raise InputError("data.train is empty: name the training data")
        if self.image_size < 1:
            raise InputError(f"data.image_size is {self.image_size}: it must be at least 1")
        if self.workers < 0:
            raise InputError(f"data.workers is {self.workers}: it must be at least 0")


def train_batches(
    config: DataConfig,
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Endless batches of this process's share of the training data, reshuffled every epoch.

    Batches hold {"image": uint8 [B, S, S, 3], "label": int32 [B]}, or, for records with codes,
    {"codes": int32 [B, L], "label": int32 [B]}, one row of the codes drawn at random. In both,
    "skipped" (int32 [B]) counts the broken records that were left out just before each example.

    `batch_size` is per process. Before broken records are left out, the processes together see
    every record exactly once per epoch. `get_state` and `set_state` (a dict fit for JSON) resume
    exactly, for the same arguments; close the iterator if `config.workers` > 0.

    Raises InputError if the data cannot be opened, or, while iterating, if a record has neither
    image nor codes, or if 1000 records in a row are broken.
    """
    source = open_source(config.source, config.train)
    load = functools.partial(_load, source, functools.partial(_train_example, config))
    examples = (
        grain.MapDataset.range(len(source))
        .seed(seed)
        .shuffle()
        .repeat()
        # Before the split: the index in the whole stream seeds the augmentation of a record.
        .random_map(load)
        .slice(slice(process_index, None, process_count))
        .to_iter_dataset()
    )
    batches = _SkipBroken(examples, repr(source)).batch(batch_size)
    if config.workers:
        # grain reads absl flags, which are unparsed unless absl.app.run started the program.
        flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=config.workers)
        batches = batches.mp_prefetch(options)
    return iter(batches)


def eval_batches(
    config: DataConfig, *, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterator[dict[str, np.ndarray]]:
    """One pass over this process's share of the held-out data, in order, without augmentation.

    Batches are those of `train_batches` with centre crops and the first row of the codes, and
    with "weight" (float32 [B]) instead of "skipped": 1 for a record, 0 for a row that pads. All
    processes get the same number of batches. Broken records are left out with a warning.

    Raises InputError if there is no held-out data, or none that can be read.
    """
    if not config.eval:
        raise InputError("data.eval is empty: name the held-out data to evaluate on")
    source = open_source(config.source, config.eval)
    load = functools.partial(_load, source, functools.partial(_eval_example, config))
    padding = next(filter(_is_whole, map(load, range(len(source)))), None)
    if padding is None:
        raise InputError(f"every record of {source!r} is broken: copy or write the data again")
    share = grain.MapDataset.range(len(source)).map(load)[process_index::process_count]
    records_per_process = -(-len(source) // process_count)
    return _padded_batches(
        _without_broken(share), padding, batch_size, -(-records_per_process // batch_size)
    )


@dataclasses.dataclass(frozen=True)
class _Broken:
    """Stands for a record that cannot be read; says which and why."""

    reason: str


def _is_whole(example: dict | _Broken) -> bool:
    return not isinstance(example, _Broken)


def _load(source: Source, make_example: Callable[..., dict], index: int, *rng) -> dict | _Broken:
    try:
        record = source[index]
        if "label" not in record or not record.keys() & {"image", "codes"}:
            raise InputError(
                f"{source.name(index)} needs a label and an image or codes but has only: "
                f"{', '.join(record)}"
            )
        return make_example(record, *rng)
    except InputError:
        raise
    # Readers and decoders raise errors of any type on damaged bytes.
    except Exception as error:
        return _Broken(f"{source.name(index)}: {type(error).__name__}: {error}")


def _train_example(config: DataConfig, record: dict, rng: np.random.Generator) -> dict:
    label = np.int32(record["label"])
    if "codes" in record:
        return {"codes": rng.choice(record["codes"]).astype(np.int32), "label": label}
    image = transforms.decode(record["image"])
    if config.random_crop:
        image = transforms.random_crop(image, config.image_size, rng)
    else:
        image = transforms.center_crop(image, config.image_size)
    if config.random_flip:
        image = transforms.random_flip(image, rng)
    return {"image": image, "label": label}


def _eval_example(config: DataConfig, record: dict) -> dict:
    label = np.int32(record["label"])
    if "codes" in record:
        return {"codes": record["codes"][0].astype(np.int32), "label": label}
    image = transforms.center_crop(transforms.decode(record["image"]), config.image_size)
    return {"image": image, "label": label}


class _SkipBroken(grain.IterDataset):
    """Drops `_Broken`s; adds to each example how many were dropped just before it."""

    def __init__(self, parent: grain.IterDataset, source_name: str):
        super().__init__(parent)
        self._source_name = source_name

    def __iter__(self) -> grain.DatasetIterator:
        return _SkipBrokenIterator(self._parent.__iter__(), self._source_name)


class _SkipBrokenIterator(grain.DatasetIterator):
    def __init__(self, parent: grain.DatasetIterator, source_name: str):
        super().__init__(parent)
        self._source_name = source_name

    def __next__(self) -> dict:
        broken = []
        while not _is_whole(example := next(self._parent)):
            broken.append(example)
            if len(broken) == _MAX_BROKEN_RUN:
                raise InputError(
                    f"{len(broken)} records in a row of {self._source_name} are broken, "
                    f"the last: {example.reason}; copy or write the data again"
                )
        for one in broken:
            _warn(one)
        return example | {"skipped": np.int32(len(broken))}

    # Every call ends on a whole example, so the position in the parent is all there is to save.
    def get_state(self) -> dict:
        return self._parent.get_state()

    def set_state(self, state: dict) -> None:
        self._parent.set_state(state)


def _warn(broken: _Broken) -> None:
    logging.warning("skipped %s", broken.reason)


def _without_broken(examples: Iterable[dict | _Broken]) -> Iterator[dict]:
    for example in examples:
        if _is_whole(example):
            yield example
        else:
            _warn(example)


def _padded_batches(
    examples: Iterator[dict], padding: dict, batch_size: int, count: int
) -> Iterator[dict[str, np.ndarray]]:
    for _ in range(count):
        real = list(itertools.islice(examples, batch_size))
        rows = real + [padding] * (batch_size - len(real))
        batch = {key: np.stack([row[key] for row in rows]) for key in padding}
        batch["weight"] = (np.arange(batch_size) < len(real)).astype(np.float32)
        yield batch
