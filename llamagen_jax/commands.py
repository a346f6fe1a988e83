"""What the commands share: a parser whose errors are one line, and the values that options take."""

import argparse
import math
import sys
from collections.abc import Callable
from typing import NoReturn

from llamagen_jax import seeds
from llamagen_jax.errors import InputError
from llamagen_jax.files import local_path


class Parser(argparse.ArgumentParser):
    """`ArgumentParser` that ends as `errors.one_line_errors` does where the options are wrong."""

    def error(self, message: str) -> NoReturn:
        sys.exit(f"error: {message}; see {self.prog} --help")


def path(text: str) -> str:
    """A local path, or a name; see `files.local_path`."""
    return str(_told(local_path, text))


def whole(text: str, minimum: int = 1) -> int:
    """A whole number from `minimum` up."""
    try:
        number = int(text)
    except ValueError:
        number = minimum - 1
    if number < minimum:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number from {minimum} up")
    return number


def whole_or_zero(text: str) -> int:
    """A whole number from 0 up."""
    return whole(text, minimum=0)


def number(text: str) -> float:
    """A finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} must be a finite number")
    return value


def seed(text: str) -> int:
    """A whole number from 0 to 2^64 - 1."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    _told(lambda: seeds.check(value if value >= 0 else text, "seed"))
    return value


def size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT in pixels."""
    sides = text.lower().split("x")
    whole = [int(side) for side in sides if side.isascii() and side.isdigit()]
    if len(sides) != 2 or len(whole) != 2 or not min(whole):
        raise argparse.ArgumentTypeError(f"{text} must be WIDTHxHEIGHT in pixels, such as 384x256")
    return whole[0], whole[1]


def _told(function: Callable, *args):
    """The function's result; its InputError as the one that argparse adds the option's name to."""
    try:
        return function(*args)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
