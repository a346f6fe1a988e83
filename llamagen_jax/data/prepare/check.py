"""Whether what lies on a disk is still what was written; part of the command `prepare`."""

import argparse
import zipfile
import zlib
from pathlib import Path

from llamagen_jax import checkpoint, commands
from llamagen_jax.data import records, tar_shards
from llamagen_jax.errors import InputError
from llamagen_jax.weights import export
from llamagen_jax.weights.torch_files import SUFFIXES, read_torch


def check(path: str) -> None:
    """Compares everything in a file or folder with the digests that it was written with.

    Args:
      path: a dataset folder, a folder of tar shards, an export or work folder, a file of weights or
        a .npz file.

    Raises:
      InputError: something has changed, or there is nothing that tells (the message names it).
    """
    print(f"{path}: {_check(Path(path))}")


def _check(path: Path) -> str:
    if not path.exists():
        raise InputError(f"{path} does not exist: check the path")
    if path.suffix in SUFFIXES:
        return f"{len(read_torch(path)[0])} tensors are whole"
    if path.suffix == ".npz":
        return _check_npz(path)
    if (path / "manifest.json").exists():
        records.verify(path)
        return "all records are whole"
    if (path / "checkpoints").is_dir():
        return _check_checkpoints(path)
    if (path / "config.json").exists():
        export.read(path)
        return "the export is whole"
    if any(path.glob("*.tar")):
        tar_shards.verify(path)
        return "all samples are what they were when their shards were indexed"
    raise InputError(f"{path} is none of the folders and files that this command knows: see --help")


def _check_npz(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            count = len(archive.namelist())
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
        raise InputError(f"{path} is damaged ({error}): make it or copy it again") from error
    if damaged:
        raise InputError(f"{path} is damaged in {damaged}: make it or copy it again")
    return f"{count} arrays are whole"


def _check_checkpoints(folder: Path) -> str:
    export.read_config(folder)
    steps = sorted(
        (path for path in (folder / "checkpoints").iterdir() if path.name.isdigit()),
        key=lambda path: int(path.name),
    )
    changed = [file for step in steps for file in checkpoint.changed_files(step)]
    if changed:
        raise InputError(
            f"{len(changed)} files of checkpoints have changed since they were saved, such as "
            f"{changed[0]}; training and sampling take the newest whole checkpoint"
        )
    return f"{len(steps)} checkpoints are whole"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `prepare check`."""
    parser.set_defaults(run=check)
    parser.add_argument(
        "path",
        type=commands.path,
        metavar="PATH",
        help="dataset, tar shards, export or work folder; file of weights; .npz file",
    )
