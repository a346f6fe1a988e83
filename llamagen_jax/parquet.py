"""What reads metadata of images and captions: parquet files, and the packages that open them."""

import importlib
from pathlib import Path
from typing import Any

from llamagen_jax.errors import InputError
from llamagen_jax.files import is_hidden


def import_extra(module: str) -> Any:
    """A module of the extra `prepare`; raises InputError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f'this needs {module}: pip install "llamagen_jax[prepare]"') from None


def parquet_files(path: str) -> list[Path]:
    """The file, or the parquet files of the folder; raises InputError where there are none."""
    folder = Path(path)
    files = [folder]
    if folder.is_dir():
        files = sorted(p for p in folder.glob("*.parquet") if not is_hidden(p.name))
    if not files or not all(file.is_file() for file in files):
        raise InputError(f"there is no parquet file at {path}: check the path")
    return files
