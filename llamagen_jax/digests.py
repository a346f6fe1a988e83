"""Digests of what is written, by which bytes that have changed since are noticed.

They are of xxHash (XXH3, 128 bits, https://xxhash.com): against disks and copies that fail, not
against people.
"""

import concurrent.futures
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import xxhash

from llamagen_jax.errors import InputError

_T = TypeVar("_T")
_R = TypeVar("_R")
_BLOCK = 2**23
_ENTRY = "digest"


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a JSON object with its digest as an entry of its own.

    Raises:
      OSError: it cannot be written.
      ValueError: the object has an entry of that name, or nan or infinity in it.
    """
    entries = dict(values)
    if _ENTRY in entries:
        raise ValueError(f"an entry called {_ENTRY} is the digest's")
    path.write_text(json.dumps(entries | {_ENTRY: _of_json(entries)}, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file, which `write_json` or anyone else wrote, without its digest.

    Raises:
      OSError: the file cannot be read.
      InputError: it is no JSON object, or has nan or infinity in it, or its digest is of another.
    """
    try:
        values = json.loads(
            path.read_text(encoding="utf-8"), parse_constant=_refuse, parse_float=_finite
        )
    except ValueError as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no JSON object")
    if _ENTRY in values and values.pop(_ENTRY) != _of_json(values):
        raise InputError(
            f"{path} is damaged, or was edited: copy or write it again, or remove its entry "
            f'"{_ENTRY}" if you changed it on purpose'
        )
    return values


def of_file(path: str | os.PathLike) -> str:
    """The digest of a file's bytes."""
    digest = xxhash.xxh3_128()
    with Path(path).open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def in_threads(function: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
    """`function` of every item; digests are computed without Python's lock."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, items))


def which(is_so: Callable[[_T], bool], items: Sequence[_T]) -> list[_T]:
    """Those of the items that are so, asked in threads."""
    answers = in_threads(is_so, items)
    return [item for item, answer in zip(items, answers, strict=True) if answer]


def _of_json(values: dict[str, Any]) -> str:
    # Through JSON, so that tuples and numpy's strings are what they will be read as.
    canonical = json.dumps(json.loads(json.dumps(values, allow_nan=False)), sort_keys=True)
    return xxhash.xxh3_128_hexdigest(canonical.encode())


def _finite(number: str) -> float:
    value = float(number)
    # 1e999 is JSON, and more than a float holds.
    return value if math.isfinite(value) else _refuse(number)


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no finite number of JSON")
