"""A text encoder that knows the words of a dataset folder's captions; part of `prepare`."""

import argparse

from llamagen_jax import commands
from llamagen_jax.data.sources import ArrayRecordSource
from llamagen_jax.errors import InputError
from llamagen_jax.text.captions import clean
from llamagen_jax.text.random_encoder import add_output_arguments, write_random_encoder

_NEIGHBOURS = 0.3


def write_word_encoder(input: str, output: str, *, width: int, seed: int) -> None:
    """Writes the folder of `text.random_encoder` with a token for each word of the captions.

    A feature tells its word and hardly any other: a name says what is shown in any order, and what
    a word means is learned from the few names that have it.

    Args:
      input: dataset folder with captions.
      output, width, seed: of `write_random_encoder`.

    Raises:
      InputError: a path or size is wrong, there are no captions, or sentencepiece is not installed.
    """
    source = ArrayRecordSource(input)
    texts = {
        clean(text)
        for index in range(len(source))
        for text in source[index].get("captions", {}).values()
    }
    if not any(texts):
        raise InputError(f"'{input}' has no captions to learn words of: give captioned images")
    write_random_encoder(texts, output, pieces=None, neighbours=_NEIGHBOURS, width=width, seed=seed)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `prepare word-encoder`."""
    parser.set_defaults(run=write_word_encoder)
    parser.add_argument(
        "input", type=commands.path, metavar="INPUT", help="dataset folder with captions"
    )
    add_output_arguments(parser)
