"""Batches for training (endless, shuffled, seekable) and evaluation (one pass, in order).

Every training batch is a function of (seed, step): of the stream of shuffled epochs it holds
records step * B to (step + 1) * B, so a run goes on exactly from any step, on any number of
processes and workers. An offset lets a run go on exactly with another B, too. Codes of several
grids come in batches of one grid each, see `buckets`.
"""

import concurrent.futures
import dataclasses
import functools
import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import grain
import numpy as np
from absl import flags, logging
from PIL import Image

from llamagen_jax import control_maps
from llamagen_jax.data import transforms
from llamagen_jax.data.buckets import Order, buckets
from llamagen_jax.data.sources import SOURCES, Source
from llamagen_jax.errors import InputError, check_finite, nearest
from llamagen_jax.files import LocalPath

# What stands beside the images or codes of a batch, see `train_batches`.
Condition = Literal["stored"] | Callable[[str], dict[str, np.ndarray]] | None

_MAX_BROKEN_RUN = 1000


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the data is and how images are prepared; raises InputError for impossible values.

    Attributes:
      source: one of `sources.SOURCES`.
      train: where the training data is, see `sources.open_source`; several folders of codes are
        mixed with equal weights.
      eval: where the held-out data is, "" for none.
      image_size: side of the images in the batches; codes are used as they are.
      random_crop: train on random crops instead of centre crops.
      random_flip: mirror half of the training images.
      fast_decode: decode training JPEGs at a reduced size where that suffices, in less than half of
        the time; pixels differ a little from the original's. Evaluation never does.
      workers: processes that load training data; 0 loads it in threads of this one.
      caption_weights: pairs of a caption's name and its weight; () is for labelled data. Training
        draws one of those that a record has, such as 70 % long and 30 % short ones by
        (("long", 0.7), ("short", 0.3)); evaluation takes the one of the largest weight.
      skip_small: leave out images with a side under `image_size` instead of enlarging them.
      background, exif_orientation: of `transforms.decode`.
      control: kinds of control maps that batches hold, one of them per image: training draws it,
        evaluation takes the first. Codes have theirs stored; those of images are found in each crop
        by `control_maps.detect`; of surroundings a part is hidden, by `control_maps.random_hole`.
        () is for none.
    """

    source: str
    train: LocalPath | tuple
    eval: LocalPath
    image_size: int
    random_crop: bool
    random_flip: bool
    fast_decode: bool
    workers: int
    caption_weights: tuple
    skip_small: bool
    background: str
    exif_orientation: bool
    control: tuple = ()

    def __post_init__(self):
        check_finite(self)
        transforms.check_background(self.background)
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
        for pair in self.caption_weights:
            if len(pair) != 2 or not isinstance(pair[0], str) or not pair[1] > 0:
                raise InputError(
                    f"data.caption_weights has {pair!r}: it must hold pairs of a caption's name "
                    "and a positive weight"
                )


def train_batches(
    source: Source,
    config: DataConfig,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    record_offset: int = 0,
    condition: Condition = "stored",
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Endless batches of the training data from step `start` on, reshuffled every epoch.

    Batches hold "image" (uint8 [b, S, S, 3]) or, for records with codes, "codes" (int32 [b, L], or
    [b, rows, columns] where records tell their grid), one row of the codes drawn at random, with
    `config.control` also "control" (uint8 [b, H, W, 3]) of the same crop, and what `condition` asks
    for. A broken record is replaced by the next whole one of the stream; "skipped" (bool [b]) tells
    where.

    Args:
      source: of the training data.
      config: how its records are prepared.
      condition: None for batches without one. "stored" for "label" (int32 [b]) or, with
        `config.caption_weights`, for "features" (bfloat16 [b, T, C], zero at padding, which is on
        the left) and "mask" (bool [b, T], False at padding) of the caption that is drawn; T is the
        length that the dataset's manifest tells. A function makes arrays by name, all of equal
        shapes, of the caption that is drawn; it must be picklable if `config.workers` > 0, and a
        ValueError of it says that the record is broken.
      record_offset: moves all batches along the stream, see `work_folder.record_plan`.
      batch_size: over all processes, which get b = batch_size / process_count consecutive rows
        each. Before broken records are replaced, every record is seen exactly once per epoch; of
        several grids, but for the rest of each grid's records that fills no batch, which is another
        one in every epoch.

    Close the iterator if `config.workers` > 0.

    Raises InputError if there are several grids and none fills a batch, or a `record_offset`; and,
    while iterating, if a record is of another kind (neither image nor codes, or without the
    condition), or if 1000 records in a row are broken. A record without any of the captions is a
    broken one.
    """
    share = batch_size // process_count
    rows = range(process_index * share, (process_index + 1) * share)
    batches = _TrainBatches(source, config, condition, batch_size, seed, record_offset, rows)
    iterator = (
        grain.MapDataset.source(batches)[start:]
        # Elements are whole batches: a long buffer would load thousands of records ahead.
        .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
    )
    if config.workers:
        # grain reads absl flags, which are unparsed unless absl.app.run started the program.
        flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=config.workers)
        iterator = iterator.mp_prefetch(options, worker_init_fn=_ignore_signals)
    return iter(iterator)


def _ignore_signals(worker: int, workers: int) -> None:
    """Leaves SIGINT and SIGTERM, which terminals and schedulers send to all processes of a command,
    to the one that the batches are for: it may need some more of them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def eval_batches(
    source: Source,
    config: DataConfig,
    *,
    batch_size: int,
    condition: Condition = "stored",
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """One pass over this process's share of the held-out data, in order, without augmentation.

    Batches are those of `train_batches` with centre crops and the first row of the codes, and
    with "weight" (float32 [b]) instead of "skipped": 1 for a record, 0 for a row that pads. All
    processes get the same number of batches, one grid after another. Broken records are left out
    with a warning.

    Args:
      source: of the held-out data.
      config: how its records are prepared.
      condition, batch_size, process_index, process_count: as of `train_batches`.

    Raises InputError if none of the records can be read, or if one is of another kind.
    """
    load = functools.partial(_load, config, source, condition, _eval_example)
    parts = []
    for bucket in buckets(source).values():
        examples = map(load, map(bucket.__getitem__, range(len(bucket))))
        padding = next((e for e in examples if not isinstance(e, _Broken)), None)
        if padding is None:
            continue
        places = grain.MapDataset.range(len(bucket))[process_index::process_count]
        examples = _without_broken(places.map(bucket.__getitem__).map(load))
        count = -(-len(bucket) // batch_size)
        parts.append(_padded_batches(examples, padding, batch_size // process_count, count))
    if not parts:
        raise InputError(f"every record of {source!r} is broken: copy or write the data again")
    return itertools.chain.from_iterable(parts)


@dataclasses.dataclass(frozen=True)
class _Broken:
    """Stands for a record that cannot be read; says which and why."""

    reason: str


def _load(
    config: DataConfig,
    source: Source,
    condition: Condition,
    make_example: Callable[..., dict],
    index: int,
    *rng: np.random.Generator,
) -> dict | _Broken:
    needed = "label"
    if config.caption_weights:
        needed = "text" if condition == "stored" else "captions"
    try:
        record = source[index]
        if (condition and needed not in record) or not record.keys() & {"image", "codes"}:
            raise InputError(
                f"{source.name(index)} needs {needed} and an image or codes but has only: "
                f"{', '.join(record)}"
            )
        if "codes" in record and not set(config.control) <= record.get("control", {}).keys():
            raise InputError(
                f"{source.name(index)} needs control maps of {', '.join(config.control)}: make the "
                "codes with `python -m llamagen_jax.data.prepare codes --control`"
            )
        chosen = _condition(config, source, condition, record, *rng)
        return make_example(config, record, *rng) | chosen
    except InputError:
        raise
    # Readers and decoders raise errors of any type on damaged bytes.
    except Exception as error:
        return _Broken(f"{source.name(index)}: {type(error).__name__}: {error}")


def _train_example(config: DataConfig, record: dict, rng: np.random.Generator) -> dict:
    if "codes" in record:
        return _codes_example(config, record, rng.choice(len(record["codes"])), rng)
    size = config.image_size
    largest_side = transforms.random_crop_side(size) if config.random_crop else size
    image = _decode(config, record, largest_side if config.fast_decode else 0)
    if config.random_crop:
        image = transforms.random_crop(image, size, rng)
    else:
        image = transforms.center_crop(image, size)
    if config.random_flip:
        image = transforms.random_flip(image, rng)
    return _image_example(config, image, rng)


def _eval_example(config: DataConfig, record: dict) -> dict:
    if "codes" in record:
        return _codes_example(config, record, 0)
    image = transforms.center_crop(_decode(config, record), config.image_size)
    return _image_example(config, image)


def _codes_example(
    config: DataConfig, record: dict, crop: int, rng: np.random.Generator | None = None
) -> dict:
    """The codes of one crop, with a control map of the same."""
    example = {"codes": record["codes"][crop].astype(np.int32).reshape(record.get("grid", -1))}
    if config.control:
        kind = _kind(config, rng)
        stored = np.asarray(transforms.decode(record["control"][kind][crop]))
        example["control"] = _control(kind, stored, rng)
    return example


def _image_example(
    config: DataConfig, image: np.ndarray, rng: np.random.Generator | None = None
) -> dict:
    if not config.control:
        return {"image": image}
    kind = _kind(config, rng)
    return {"image": image, "control": _control(kind, control_maps.detect(kind, image), rng)}


def _control(kind: str, found: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
    """The control image of a map; of surroundings evaluation always hides the same part."""
    control = np.asarray(Image.fromarray(found).convert("RGB"))
    if kind == control_maps.SURROUNDINGS:
        hole = control_maps.random_hole(control.shape[:2], rng or np.random.default_rng(0))
        control = control_maps.hide(control, hole)
    return control


def _kind(config: DataConfig, rng: np.random.Generator | None) -> str:
    return config.control[0] if rng is None else str(rng.choice(config.control))


def _decode(config: DataConfig, record: dict, fast_side: int = 0) -> Image.Image:
    image = transforms.decode(
        record["image"],
        fast_side,
        background=config.background,
        exif_orientation=config.exif_orientation,
    )
    if config.skip_small:
        transforms.refuse_small(image, config.image_size)
    return image


def _condition(
    config: DataConfig,
    source: Source,
    condition: Condition,
    record: dict,
    rng: np.random.Generator | None = None,
) -> dict:
    """The label, or what is asked for of one caption: drawn by `rng`, or of the largest weight."""
    if condition is None:
        return {}
    if not config.caption_weights:
        return {"label": np.int32(record["label"])}
    if condition != "stored":
        return condition(_choose(config.caption_weights, record["captions"], rng))
    rows = _choose(config.caption_weights, record["text"], rng)
    made_by = source.manifest and source.manifest.text_encoder
    if made_by is None:
        raise InputError(f"{source!r} tells of no text encoder: make its features again")
    padding = made_by.length - len(rows)
    return {
        "features": np.pad(rows, ((padding, 0), (0, 0))),
        "mask": np.arange(padding + len(rows)) >= padding,
    }


def _choose(weights: tuple, by_name: dict[str, Any], rng: np.random.Generator | None) -> Any:
    present = {name: weight for name, weight in weights if name in by_name}
    if not present:
        names = ", ".join(name for name, _ in weights)
        raise ValueError(f"it has no caption of {names}, only: {', '.join(by_name) or 'none'}")
    if rng is None:
        return by_name[max(present, key=lambda name: present[name])]
    drawn = np.array(list(present.values()))
    return by_name[rng.choice(list(present), p=drawn / drawn.sum())]


class _TrainBatches:
    """Random access to the batches of the endless stream, as grain reads a source."""

    def __init__(
        self,
        source: Source,
        config: DataConfig,
        condition: Condition,
        batch_size: int,
        seed: int,
        record_offset: int,
        rows: range,
    ):
        self._source = source
        self._order = Order(source, batch_size, seed)
        if record_offset and self._order.num_buckets > 1:
            raise InputError(
                "the batch size of a run on several grids cannot change: give the one from before"
            )
        self._load = functools.partial(_load, config, source, condition, _train_example)
        self._seed, self._offset, self._rows = seed, record_offset, rows
        self._threads = max((os.cpu_count() or 1) // max(config.workers, 1), 1)

    def __len__(self) -> int:
        return sys.maxsize // self._order.batch_size

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        bucket, first = self._order.batch(index)
        places = [self._offset + first + row for row in self._rows]
        rows = list(self._pool.map(functools.partial(self._example, bucket), places))
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}

    # Made by the process that loads, since it cannot be sent to one.
    @functools.cached_property
    def _pool(self) -> concurrent.futures.ThreadPoolExecutor:
        return concurrent.futures.ThreadPoolExecutor(self._threads)

    def _example(self, bucket: int, place: int) -> dict:
        reason = ""
        for tried in range(_MAX_BROKEN_RUN):
            # By place in the stream, so that a record is augmented anew in every epoch.
            rng = np.random.default_rng((self._seed, (bucket << 48) + place + tried))
            example = self._load(self._order.record(bucket, place + tried), rng)
            if not isinstance(example, _Broken):
                return example | {"skipped": np.bool_(tried > 0)}
            reason = example.reason
            if not tried:
                _warn(example)
        raise InputError(
            f"{_MAX_BROKEN_RUN} records in a row of {self._source!r} are broken, "
            f"the last: {reason}; copy or write the data again"
        )


def _warn(broken: _Broken) -> None:
    logging.warning("skipped %s", broken.reason)


def _without_broken(examples: Iterable[dict | _Broken]) -> Iterator[dict]:
    for example in examples:
        if isinstance(example, _Broken):
            _warn(example)
        else:
            yield example


def _padded_batches(
    examples: Iterator[dict], padding: dict, batch_size: int, count: int
) -> Iterator[dict[str, np.ndarray]]:
    for _ in range(count):
        real = list(itertools.islice(examples, batch_size))
        rows = real + [padding] * (batch_size - len(real))
        batch = {key: np.stack([row[key] for row in rows]) for key in padding}
        batch["weight"] = (np.arange(batch_size) < len(real)).astype(np.float32)
        yield batch
