"""A text encoder of random weights for the rendered scenes; part of the command `prepare`."""

import argparse

from llamagen_jax import commands
from llamagen_jax.scenes.files import read_rows
from llamagen_jax.text.captions import clean
from llamagen_jax.text.random_encoder import add_output_arguments, write_random_encoder

_VOCABULARY, _NEIGHBOURS = 160, 3.0


def write_text_encoder(metadata: str, output: str, *, width: int, seed: int) -> None:
    """Writes the folder of `text.random_encoder` for the captions of scenes.

    Args:
      metadata: parquet file or folder with the captions "long" and "short".
      output, width, seed: of `write_random_encoder`.

    Raises:
      InputError: a path or size is wrong, or sentencepiece is not installed.
    """
    rows = read_rows(metadata, "long", "short")
    captions = {clean(text) for row in rows for text in row}
    write_random_encoder(
        captions, output, pieces=_VOCABULARY, neighbours=_NEIGHBOURS, width=width, seed=seed
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `prepare scene-encoder`."""
    parser.set_defaults(run=write_text_encoder)
    parser.add_argument(
        "metadata", type=commands.path, metavar="METADATA", help="what `scenes` or `filter` wrote"
    )
    add_output_arguments(parser)
