"""Prompts for sampling: from files that people keep them in to what a generator reads."""

import codecs
import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import logging
from tqdm import tqdm

from llamagen_jax.errors import InputError
from llamagen_jax.files import is_hidden
from llamagen_jax.models.llama import LlamaConfig
from llamagen_jax.text.captions import clean
from llamagen_jax.text.encoder import TextEncoder

# In any case; the first one that there is.
_COLUMNS = ("prompt", "prompts", "caption", "text")
_CATEGORIES = ("category", "tag")
_BATCH_SIZE_PER_DEVICE = 8
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_SUFFIXES = (".txt", *_DELIMITERS, ".json", ".jsonl")


def read_prompts(path: str | os.PathLike) -> list[str]:
    """The prompts of a file of any common kind.

    Of a .txt file the lines that are not blank, which are counted in a warning; of a .csv or .tsv
    file, quoted or not, such as PartiPrompts.tsv (github.com/google-research/parti), the column
    Prompt, Prompts, caption or text, in any case; of a .jsonl file the strings, or the values under
    one of those keys; of COCO's captions (a .json file) the first caption of each image, by their
    numbers; of a folder, such as DPG-Bench's, each .txt file. Text is UTF-8 or, with a byte order
    mark, UTF-16.

    Raises:
      InputError: the file is missing, of another kind or no such text, or has no such column.
    """
    return [prompt for prompt, _ in read_categories(path)]


def read_categories(path: str | os.PathLike) -> list[tuple[str, str]]:
    """The prompts of `read_prompts`, each with its category, "" where the file has none.

    A category is in the column or under the key Category or tag.
    """
    path = Path(path)
    if path.is_dir():
        return [(" ".join(read_text(file).split()), "") for file in prompt_files(path)]
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise InputError(
            f"{path} is not called {', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]}, so its format "
            "is not known"
        )
    text = read_text(path)
    if suffix in _DELIMITERS:
        return _read_columns(path, text, _DELIMITERS[suffix])
    if suffix == ".json":
        return [(caption, "") for caption in _read_coco(path, text)]
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if blank := text.rstrip().count("\n") + bool(lines) - len(lines):
        logging.warning("%s: left out %d blank lines", path, blank)
    if suffix == ".txt":
        return [(line.rstrip("\r"), "") for _, line in lines]
    return [_read_json(f"line {number} of {path}", line) for number, line in lines]


def prompt_files(folder: Path) -> list[Path]:
    """The .txt files of a folder, in the order of their names."""
    return sorted(p for p in folder.glob("*.txt") if not is_hidden(p.name))


def read_text(path: Path) -> str:
    """The text of a file in UTF-8 or, with a byte order mark, UTF-16.

    Raises:
      InputError: it cannot be read or is no such text.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        # A spreadsheet's files start with a byte order mark, which utf-8-sig drops.
        return data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(
            f"line {line} of {path} is no {'UTF-16' if utf16 else 'UTF-8'} text: save the file as "
            "UTF-8"
        ) from error


def _read_columns(path: Path, text: str, delimiter: str) -> list[tuple[str, str]]:
    csv.field_size_limit(len(text) + 1)
    try:
        table = [row for row in _rows(io.StringIO(text, newline=""), delimiter) if row]
        spread = any("\n" in field and delimiter in field for row in table for field in row)
    except csv.Error:
        spread = True
    if spread:
        # PartiPrompts and its kin do not quote, and have fields that begin with a quote.
        table = _read_unquoted(path, text, delimiter)
    names = [name.strip().lower() for name in table[0]] if table else []
    column = next((names.index(name) for name in _COLUMNS if name in names), None)
    if column is None:
        found = ", ".join(repr(name) for name in (table[0] if table else [])) or "none"
        raise InputError(
            f"{path} has no column Prompt, Prompts, caption or text; its columns are: {found}"
        )
    category = next((names.index(name) for name in _CATEGORIES if name in names), len(names))
    return [
        (row[column] if column < len(row) else "", row[category] if category < len(row) else "")
        for row in table[1:]
    ]


def _rows(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    """Rows of quoted or unquoted fields; csv.Error where a quote is neither."""
    return csv.reader(lines, delimiter=delimiter, strict=True)


def _read_unquoted(path: Path, text: str, delimiter: str) -> list[list[str]]:
    """Rows of one line each, quoted or not."""
    table: list[list[str]] = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            row = next(_rows([line], delimiter), [])
        except csv.Error:
            row = line.split(delimiter)
            if table and len(row) != len(table[0]):
                raise InputError(
                    f"line {number} of {path} has {len(row)} fields instead of {len(table[0])}: "
                    "quote fields that hold quotes, or use a .jsonl file"
                ) from None
        if row:
            table.append(row)
    return table


def _read_json(where: str, line: str) -> tuple[str, str]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is no JSON: {error}") from error
    category = ""
    if isinstance(value, dict):
        fields = {key.lower(): value[key] for key in value}
        value = next((fields[name] for name in _COLUMNS if name in fields), None)
        category = next((str(fields[name]) for name in _CATEGORIES if name in fields), "")
    if not isinstance(value, str):
        raise InputError(f"{where} has no string, nor one under prompt, prompts, caption or text")
    return value, category


def _read_coco(path: Path, text: str) -> list[str]:
    try:
        annotations = json.loads(text)["annotations"]
        annotations.sort(key=lambda a: (a["image_id"], a["id"]), reverse=True)
        first = {a["image_id"]: a["caption"].strip() for a in annotations}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} holds no captions as COCO's do: {error!r}") from error
    return [first[image] for image in sorted(first)]


def check_prompts(prompts: Sequence[str], source: str) -> None:
    """Refuses what the encoder would read as no prompt at all.

    Args:
      source: where the prompts come from, for the message.

    Raises:
      InputError: there are none, or nothing is left of one after cleaning (the message names it).
    """
    if not prompts:
        raise InputError(f"{source} has no prompts")
    for number, prompt in enumerate(prompts, start=1):
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"prompt {number} of {source}, {prompt!r}, is no UTF-8 text; write it anew"
            ) from None
        if "\0" in prompt:
            raise InputError(f"prompt {number} of {source} has a zero byte; write it anew")
        if not prompt.strip():
            raise InputError(f"prompt {number} of {source} is empty")
        if not clean(prompt):
            raise InputError(
                f"prompt {number} of {source}, {prompt!r}, is empty once cleaned; use plain words"
            )


def open_encoder(folder: str | os.PathLike, config: LlamaConfig) -> TextEncoder:
    """The text encoder of a text-conditional generator.

    Args:
      folder: of a T5 from Hugging Face, see `TextEncoder.load`.
      config: of the generator; prompts over its condition_length are cut, with a warning that names
        them.

    Raises:
      InputError: the encoder cannot be opened, or its features are of another width.
    """
    # Each device always has as many prompts, as bfloat16 rounds differently at another shape.
    batch_size = _BATCH_SIZE_PER_DEVICE * jax.device_count()
    encoder = TextEncoder.load(folder, length=config.condition_length, batch_size=batch_size)
    width = encoder.model.config.dim
    if width != config.caption_dim:
        raise InputError(
            f"the text encoder {folder} has features of width {width} but the generator reads "
            f"{config.caption_dim}; name the encoder it was trained with"
        )
    return encoder


def encode_prompts(encoder: TextEncoder, prompts: Sequence[str]) -> dict[str, np.ndarray]:
    """Features of prompts, which depend neither on the others nor on the number of devices.

    Returns:
      What `generate` takes: condition, bfloat16 [N, T, caption_dim], and condition_mask, bool
      [N, T].
    """
    starts = range(0, len(prompts), encoder.batch_size)
    # Shown only where it takes long.
    bar = tqdm(starts, desc="encoding prompts", unit="batch", delay=2)
    parts = [encoder.encode(prompts[start : start + encoder.batch_size]) for start in bar]
    features, masks = zip(*parts, strict=True)
    return {"condition": np.concatenate(features), "condition_mask": np.concatenate(masks)}
