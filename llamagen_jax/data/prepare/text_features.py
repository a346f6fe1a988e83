"""Captions of a dataset folder to packed T5 features; part of the command `prepare`."""

import argparse
import dataclasses
import functools
from collections.abc import Callable

from llamagen_jax import commands
from llamagen_jax.data.prepare.extract import Extraction, starting_programs
from llamagen_jax.data.records import TextEncoderId
from llamagen_jax.data.sources import ArrayRecordSource
from llamagen_jax.errors import InputError
from llamagen_jax.text.captions import clean
from llamagen_jax.text.encoder import TextEncoder
from llamagen_jax.weights.integrity import weights_hash


def text_extraction(
    input: str,
    *,
    text_encoder: str,
    captions: list[str],
    length: int,
    batch_size: int,
    shard_size: int,
) -> Extraction:
    """The records of a dataset folder with the features of their captions.

    Records are those of `input`, in their order, with "text": {caption's name: bfloat16 [t, C]},
    the features of the t <= `length` tokens of each caption. Records without captions of which
    cleaning leaves something are left out with a warning.

    Args:
      input: dataset folder of codes with captions.
      text_encoder: folder of `TextEncoder.load`.
      captions: names of the captions to encode; all if empty.
      length: tokens that a caption is cut to.
      batch_size: captions per step over all devices, rounded up to a multiple of their number.
      shard_size: records per file.

    Raises:
      InputError: a path or size is wrong.
    """
    source = ArrayRecordSource(input)
    encoder = TextEncoder.load(text_encoder, length=length, batch_size=batch_size)
    made_by = TextEncoderId(
        text_encoder, weights_hash(encoder.params), encoder.model.config.dim, length
    )
    return Extraction(
        source=source,
        load=functools.partial(_load_captions, names=captions),
        run=_encode_captions(encoder),
        settings={
            "input": input,
            "text_encoder": made_by.sha256,
            "captions": captions,
            "length": length,
        },
        manifest=dataclasses.replace(source.manifest, text_encoder=made_by),
        batch_size=encoder.batch_size,
        shard_size=shard_size,
    )


def _load_captions(record: dict, names: list[str]) -> tuple[dict, dict[str, str]]:
    """The record and those of its captions that are to be encoded, cleaned."""
    # Of images training makes features itself.
    if not {"codes", "captions"} <= record.keys():
        raise InputError(
            f"features are made for codes with captions, not for: {', '.join(record)}; make codes "
            "with `python -m llamagen_jax.data.prepare codes`"
        )
    captions = {
        name: cleaned
        for name, text in record["captions"].items()
        if (not names or name in names) and (cleaned := clean(text))
    }
    if not captions:
        wanted = f" of {', '.join(names)}, only: {', '.join(record['captions'])}" if names else ""
        raise ValueError(f"it has no caption{wanted}")
    return record, captions


def _encode_captions(encoder: TextEncoder) -> Callable[[list[tuple[dict, dict]]], list[dict]]:
    def run(examples: list[tuple[dict, dict[str, str]]]) -> list[dict]:
        # Shards often hold a text under several names.
        texts = list(dict.fromkeys(text for _, captions in examples for text in captions.values()))
        with starting_programs:
            features, mask = encoder.encode_cleaned(texts)
        valid = {text: features[i, mask[i]] for i, text in enumerate(texts)}
        return [
            record | {"text": {name: valid[text] for name, text in captions.items()}}
            for record, captions in examples
        ]

    return run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `prepare text`."""
    parser.add_argument(
        "input", type=commands.path, metavar="INPUT", help="dataset folder of `codes`"
    )
    parser.add_argument(
        "output", type=commands.path, metavar="OUTPUT", help="dataset folder to write"
    )
    parser.add_argument(
        "--text-encoder",
        type=commands.path,
        required=True,
        help="folder of a T5 from Hugging Face, as flan-t5-xl",
    )
    parser.add_argument(
        "--captions", nargs="*", default=[], help="names of the captions to encode (all)"
    )
    parser.add_argument(
        "--length", type=commands.whole, default=120, help="most tokens of a caption (120)"
    )
    parser.add_argument(
        "--batch-size", type=commands.whole, default=32, help="captions per step (32)"
    )
    # 1000 captions of flan-t5-xl are up to half a gigabyte.
    parser.add_argument(
        "--shard-size", type=commands.whole, default=1000, help="records per file (1000)"
    )
