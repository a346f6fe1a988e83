"""Captions of any source -> a text file of prompts, one per line; part of `prepare`."""

import argparse
import itertools

from llamagen_jax import commands
from llamagen_jax.data.sources import SOURCES, open_source
from llamagen_jax.errors import InputError
from llamagen_jax.files import staged


def write_captions(
    kind: str, location: str, output: str, *, caption: str, count: int | None
) -> None:
    """Writes the captions of this name, in the source's order; records without it are left out.

    Args:
      kind, location: of `sources.open_source`.
      output: file to write, which appears when it is complete.
      caption: name of the captions.
      count: how many; None for all.

    Raises:
      InputError: a path is wrong, or there are no such captions, or fewer than `count`.
    """
    source = open_source(kind, location)
    found = (source[index].get("captions", {}).get(caption) for index in range(len(source)))
    # A line is a prompt.
    lines = [" ".join(text.split()) for text in itertools.islice(filter(None, found), count)]
    if len(lines) < (count or 1):
        raise InputError(
            f"{source!r} has {len(lines)} captions named '{caption}': check --caption and --count"
        )
    with staged(output) as partial:
        partial.write_text("".join(f"{line}\n" for line in lines))
    print(f"wrote {len(lines)} captions to {output}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `prepare captions`."""
    parser.set_defaults(run=write_captions)
    parser.add_argument(
        "output", type=commands.path, metavar="OUTPUT", help="text file to write, for `sample`"
    )
    parser.add_argument("--source", dest="kind", choices=SOURCES, required=True)
    parser.add_argument("--location", type=commands.path, required=True, help="as of `pack`")
    parser.add_argument("--caption", required=True, metavar="NAME", help="name of the captions")
    parser.add_argument("--count", type=commands.whole, help="the first so many (all)")
