"""Prompts for sampling: from files that people keep them in to what a generator reads."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from llamagen_jax.errors import InputError
from llamagen_jax.models.llama import LlamaConfig
from llamagen_jax.text.captions import clean
from llamagen_jax.text.encoder import TextEncoder

_COLUMN = "prompt"
_BATCH_SIZE_PER_DEVICE = 8
_DIALECTS = {".csv": "excel", ".tsv": "excel-tab"}


def read_prompts(path: str | os.PathLike) -> list[str]:
    """The prompts of a .txt file, one per line, or of the column Prompt of a .csv or .tsv file.

    Such as PartiPrompts.tsv (github.com/google-research/parti). The column's name is looked for in
    any case; other columns are ignored.

    Raises:
      InputError: the file is missing, of another kind or no UTF-8 text, or has no such column.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".txt", *_DIALECTS):
        raise InputError(f"{path} is not called .txt, .csv or .tsv, so its format is not known")
    try:
        # A spreadsheet's files start with a byte order mark, which utf-8-sig drops.
        with path.open(encoding="utf-8-sig", newline="") as file:
            if suffix == ".txt":
                return file.read().splitlines()
            rows = csv.reader(file, _DIALECTS[suffix])
            names = next(rows, [])
            column = _find_column(path, names)
            return [row[column] if column < len(row) else "" for row in rows if row]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8 text: {error}") from error
    except (OSError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


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
        if not prompt.strip():
            raise InputError(f"prompt {number} of {source} is empty")
        if not clean(prompt):
            raise InputError(
                f"prompt {number} of {source}, {prompt!r}, is empty once cleaned; use plain words"
            )


def encode_prompts(
    folder: str | os.PathLike, config: LlamaConfig, prompts: Sequence[str]
) -> dict[str, np.ndarray]:
    """Loads a text encoder for this one call and encodes.

    The features of a prompt depend neither on the others nor on the number of devices.

    Args:
      folder: of a T5 from Hugging Face, see `TextEncoder.load`.
      config: of the text-conditional generator; prompts over its condition_length are cut, with a
        warning that names them.

    Returns:
      What `generate` takes: condition, bfloat16 [N, T, caption_dim], and condition_mask, bool
      [N, T].

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
    starts = range(0, len(prompts), encoder.batch_size)
    # Shown only where it takes long.
    bar = tqdm(starts, desc="encoding prompts", unit="batch", delay=2)
    parts = [encoder.encode(prompts[start : start + encoder.batch_size]) for start in bar]
    features, masks = zip(*parts, strict=True)
    return {"condition": np.concatenate(features), "condition_mask": np.concatenate(masks)}


def _find_column(path: Path, names: Sequence[str]) -> int:
    for i, name in enumerate(names):
        if name.strip().lower() == _COLUMN:
            return i
    found = ", ".join(repr(name) for name in names) or "none"
    raise InputError(f"{path} has no column 'Prompt'; its columns are: {found}")
