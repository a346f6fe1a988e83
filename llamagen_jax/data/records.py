"""Dataset folders: `*.array_record` shards of msgpack maps, described by a `manifest.json`.

A record is a dict with any of these keys: `image` (encoded bytes), `label` (int), `captions`
(dict of str by name), `codes` (uint16 [crops, L]: one row per crop of the image), `grid` ([rows,
columns] of the codes, where a folder has several), `text` (dict of features by the caption's name,
bfloat16 [t, C]: one row per token of the caption, no padding), `control` (dict by kind, such as
"canny": beside codes a list of PNGs, one per crop; beside an image the bytes of a map of the whole
image).
"""

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Iterable
from pathlib import Path

import ml_dtypes  # noqa: F401  (makes "bfloat16" a dtype name that numpy knows)
import msgpack
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from llamagen_jax.digests import read_json, write_json
from llamagen_jax.errors import InputError
from llamagen_jax.files import is_hidden, staged

SCHEMA_VERSION = 1
_ARRAY = 1  # msgpack extension type of a numpy array


def to_bytes(record: dict) -> bytes:
    """A record as msgpack bytes; arrays may have any shape and any numeric dtype.

    Raises TypeError for values that `from_bytes` could not give back unchanged.
    """
    return msgpack.Packer(default=_encode_array).pack(record)


def from_bytes(data: bytes) -> dict:
    """The record that `to_bytes` was given; its arrays are read-only."""
    return msgpack.unpackb(data, ext_hook=_decode_array)


def _encode_array(value: object) -> msgpack.ExtType:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"a record cannot hold a {type(value).__name__}")
    if value.dtype.hasobject or np.dtype(value.dtype.name) != value.dtype:
        raise TypeError(f"a record cannot hold an array of dtype {value.dtype!r}")
    return msgpack.ExtType(_ARRAY, msgpack.packb((value.dtype.name, value.shape, value.tobytes())))


def _decode_array(code: int, data: bytes) -> np.ndarray:
    if code != _ARRAY:
        raise ValueError(f"unknown msgpack extension type {code}")
    dtype, shape, buffer = msgpack.unpackb(data)
    return np.frombuffer(buffer, np.dtype(dtype)).reshape(shape)


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of a dataset folder, as it was when it was written.

    `grids` tells of its records, in their order, (rows, columns, how many in a row have that grid);
    it is () where they have no `grid`.
    """

    name: str
    records: int
    bytes: int
    sha256: str
    grids: tuple = ()

    def __post_init__(self):
        object.__setattr__(self, "grids", tuple(map(tuple, self.grids)))


@dataclasses.dataclass(frozen=True)
class TokenizerId:
    """The image tokenizer that made the codes: its name, its weights' hash, its codebook's size."""

    name: str
    sha256: str
    codebook_size: int


@dataclasses.dataclass(frozen=True)
class TextEncoderId:
    """The text encoder that made the features: its name, its weights' hash, its width C.

    Captions were cut to `length` tokens, T in batches.
    """

    name: str
    sha256: str
    width: int
    length: int


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a dataset folder holds; its `manifest.json`.

    `image_size` is the side of the stored (or encoded) images in pixels, None if it varies;
    `code_shape` is (crops, L) where the records hold codes, L None if it varies; `crops` and
    `crop_range` tell of which crops they are, see `transforms.code_crops`. `text_encoder` is None
    where they hold no features. `control` are the kinds of their control maps. `credit` is what
    their authors want told wherever the images, or what was learned from them, are shown.
    """

    shards: tuple[Shard, ...]
    image_size: int | None = None
    class_names: tuple[str, ...] = ()
    tokenizer: TokenizerId | None = None
    code_shape: tuple[int, int | None] | None = None
    crops: str | None = None
    crop_range: float | None = None
    text_encoder: TextEncoderId | None = None
    control: tuple[str, ...] = ()
    credit: str = ""
    version: int = SCHEMA_VERSION

    @property
    def grid_runs(self) -> tuple[tuple[tuple[int, int], int], ...]:
        """How many records in a row have which (rows, columns) of codes; () without several."""
        runs = [(run[:2], run[2]) for shard in self.shards for run in shard.grids]
        return tuple(
            (grid, sum(count for _, count in equal))
            for grid, equal in itertools.groupby(runs, key=lambda run: run[0])
        )

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """All (rows, columns) of codes; () where the records do not tell theirs."""
        return tuple(sorted({grid for grid, _ in self.grid_runs}))

    @classmethod
    def read(cls, folder: str | os.PathLike) -> "Manifest":
        """Raises InputError if the manifest is absent, damaged or of another schema version."""
        path = Path(folder) / "manifest.json"
        try:
            fields = read_json(path)
            version = fields["version"]
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(
                f"'{folder}' is not a dataset folder: it has no manifest.json; check the path"
            ) from None
        except KeyError as error:
            raise InputError(f"'{path}' is damaged: write the dataset again") from error
        if version != SCHEMA_VERSION:
            raise InputError(
                f"'{path}' has schema version {version} but only {SCHEMA_VERSION} can be read: "
                "write the dataset again"
            )
        try:
            tokenizer, code_shape = fields["tokenizer"], fields["code_shape"]
            # Absent where an older writer knew no features, control or credit, and one crop alone.
            text_encoder = fields.get("text_encoder")
            return cls(
                shards=tuple(Shard(**shard) for shard in fields["shards"]),
                image_size=fields["image_size"],
                class_names=tuple(fields["class_names"]),
                tokenizer=tokenizer and TokenizerId(**tokenizer),
                code_shape=code_shape and tuple(code_shape),
                crops=fields.get("crops"),
                crop_range=fields.get("crop_range"),
                text_encoder=text_encoder and TextEncoderId(**text_encoder),
                control=tuple(fields.get("control", ())),
                credit=fields.get("credit", ""),
            )
        except (KeyError, TypeError) as error:
            raise InputError(f"'{path}' is damaged: write the dataset again") from error

    def write(self, folder: str | os.PathLike) -> None:
        """Replaces the manifest of a folder in one step."""
        fields = dataclasses.asdict(self)
        for shard in fields["shards"]:
            if not shard["grids"]:
                del shard["grids"]
        with staged(Path(folder) / "manifest.json", overwrite=True) as partial:
            write_json(partial, fields)


def write_dataset(
    folder: str | os.PathLike,
    records: Iterable[dict],
    *,
    shard_size: int = 10_000,
    image_size: int | None = None,
    class_names: tuple[str, ...] = (),
    tokenizer: TokenizerId | None = None,
    code_shape: tuple[int, int | None] | None = None,
    text_encoder: TextEncoderId | None = None,
    credit: str = "",
) -> Manifest:
    """Writes a dataset folder of `shard_size` records per shard and returns its manifest.

    The folder appears when it is complete. Raises InputError if it exists or there are no records.
    """
    with staged(folder) as partial:
        partial.mkdir()
        shards = []
        records = iter(records)
        for first in records:
            rest = itertools.islice(records, shard_size - 1)
            path = partial / f"{len(shards):05d}.array_record"
            shards.append(write_shard(path, itertools.chain([first], rest)))
        if not shards:
            raise InputError(f"there are no records to write to '{folder}': check the input")
        manifest = Manifest(
            tuple(shards),
            image_size,
            class_names,
            tokenizer,
            code_shape,
            text_encoder=text_encoder,
            credit=credit,
        )
        manifest.write(partial)
    return manifest


def write_shard(path: Path, records: Iterable[dict]) -> Shard:
    """Writes one file of records and tells what it holds."""
    # Groups of one record make random access read exactly one record.
    writer = ArrayRecordWriter(str(path), "group_size:1")
    count, runs = 0, []
    for grid, equal in itertools.groupby(records, key=lambda record: record.get("grid")):
        start = count
        for record in equal:
            writer.write(to_bytes(record))
            count += 1
        if grid is not None:
            runs.append((*grid, count - start))
    writer.close()
    return Shard(path.name, count, path.stat().st_size, _sha256(path), tuple(runs))


def open_shards(folder: str | os.PathLike, manifest: Manifest) -> tuple[ArrayRecordDataSource, ...]:
    """Random access to the packed records of each shard, in the manifest's order.

    Raises InputError if the files differ from the manifest in names, sizes or record counts;
    their contents are not read (see `verify`).
    """
    folder = Path(folder)
    listed = {shard.name for shard in manifest.shards}
    for path in sorted(folder.glob("*.array_record")):
        if path.name not in listed and not is_hidden(path.name):
            raise InputError(f"'{path}' is not in the manifest: remove it from the folder")
    return tuple(_open_shard(folder / shard.name, shard) for shard in manifest.shards)


def _open_shard(path: Path, shard: Shard) -> ArrayRecordDataSource:
    if not path.exists():
        raise InputError(f"shard '{path}' is missing: copy or write the dataset again")
    size = path.stat().st_size
    if size != shard.bytes:
        raise InputError(
            f"shard '{path}' has {size} bytes instead of {shard.bytes}: "
            "copy or write the dataset again"
        )
    try:
        source = ArrayRecordDataSource(str(path))
    except RuntimeError as error:
        raise InputError(
            f"shard '{path}' cannot be opened: copy or write the dataset again"
        ) from error
    if len(source) != shard.records:
        raise InputError(
            f"shard '{path}' has {len(source)} records instead of {shard.records}: "
            "copy or write the dataset again"
        )
    return source


def verify(folder: str | os.PathLike) -> None:
    """Reads a whole dataset folder, showing a bar.

    Raises:
      InputError: at the first shard with a wrong sha256, or of `open_shards`.
    """
    manifest = Manifest.read(folder)
    open_shards(folder, manifest)
    total = sum(shard.bytes for shard in manifest.shards)
    with tqdm(total=total, desc="check", unit="B", unit_scale=True) as bar:
        for shard in manifest.shards:
            path = Path(folder) / shard.name
            if _sha256(path) != shard.sha256:
                raise InputError(
                    f"shard '{path}' has changed since it was written (sha256): "
                    "copy or write the dataset again"
                )
            bar.update(shard.bytes)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
