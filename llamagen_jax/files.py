"""Paths as people write them, and outputs that appear under their name only when they are whole."""

import contextlib
import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NewType

from llamagen_jax.errors import InputError

# EFBIG is a disk full for one file: `ulimit -f`, or a file system of small files.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def local_path(text: str | os.PathLike) -> Path:
    """The path, with ~, $NAME and ${NAME} replaced as a shell does.

    Raises:
      InputError: it is an address such as gs://bucket/folder, or names a variable that is not set,
        or is no UTF-8, which formats that are written in C++ need.
    """
    try:
        os.fspath(text).encode()
    except UnicodeEncodeError:
        raise InputError(f"the path {os.fsencode(text)!r} is no UTF-8: rename it") from None
    if scheme := re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", os.fspath(text)):
        raise InputError(
            f"{text} is an address, and only local files can be read and written: copy what is "
            f"there, or mount {scheme[0]} as a folder and name that"
        )
    expanded = os.path.expanduser(os.path.expandvars(text))  # noqa: PTH111
    if (unset := re.search(r"\$(\w+|\{\w+\})", expanded)) and not Path(expanded).exists():
        raise InputError(f"{text} names the variable {unset[0]}, which is not set")
    return Path(expanded)


# Of a configuration: a path, or a name, that `local_path` expands.
LocalPath = NewType("LocalPath", str)


# What file systems and archivers add to folders, in lower case.
_SYSTEM_NAMES = {"thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin"}


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is a system's own, such as .DS_Store or __MACOSX."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


@contextlib.contextmanager
def staged(path: str | os.PathLike, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields PATH.partial to write a file or a folder to; it takes its name on success.

    What an earlier run that was killed left under PATH.partial is removed first.

    Args:
      path: its parent folders are made.
      overwrite: replace an existing file.

    Raises:
      InputError: `path` exists and is not to be overwritten, or cannot be written, as on a full
        disk.
    """
    path = Path(path)
    if not overwrite and path.exists():
        raise InputError(f"{path} exists already; remove it or choose another name")
    partial = path.with_name(path.name + ".partial")
    try:
        with told_full_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove(partial)
            yield partial
            partial.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            _remove(partial)


@contextlib.contextmanager
def staged_apart(path: Path) -> Iterator[Path]:
    """Yields a file of a name of its own to write, which then takes the place of `path`.

    For files that several processes may write at the same time. Raises the OSErrors of writing.
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def told_full_disk(path: Path) -> Iterator[None]:
    """Tells in one line of a full disk that any library met while it wrote to `path`.

    Raises:
      InputError: the disk is full, the quota is used up or a file may not grow further.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = _full_disk(error)
        if reason is None:
            raise
        folder = next(parent for parent in (path, *path.absolute().parents) if parent.is_dir())
        free = readable_size(shutil.disk_usage(folder).free)
        raise InputError(
            f"cannot write {path}: {reason}, {free} are free in {folder}; make space and start the "
            "same command again"
        ) from error


def readable_size(count: float) -> str:
    """Bytes as a person reads them, such as "1.5 GB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            break
        count, unit = count / 1000, "TB"
    return f"{count:.3g} {unit}"


def _full_disk(error: BaseException | None) -> str | None:
    """What the system said, where `error` or one that caused it is of a full disk."""
    while error is not None:
        for number in _FULL:
            # Libraries in other languages tell it in an exception of their own.
            if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
                return os.strerror(number)
        error = error.__cause__ or error.__context__
    return None


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
