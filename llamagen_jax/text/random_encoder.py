"""A small text encoder of random weights, for captions of few words.

It stands in for flan-T5 where no weights can be had. Random attention heads mix each word with what
stands right beside it, before it or after it, so the features tell what a caption says and in which
order, and a generator can learn to read them.
"""

import argparse
import io
from collections.abc import Collection
from typing import Any, Literal

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from llamagen_jax import commands, seeds
from llamagen_jax.errors import InputError
from llamagen_jax.files import staged
from llamagen_jax.models.t5 import T5, T5Config
from llamagen_jax.weights import t5 as t5_weights

_SENTINELS = 100
_CONTROLS = 3  # tokens that are no words: padding, end, unknown
# What the drawn weights are multiplied by: heads of one direction each rather than of all alike, a
# quiet feed-forward layer that would blur a word and what stands beside it.
_SCALES = {"relative_bias": 24.0, "layers/down/kernel": 0.2}


def write_random_encoder(
    captions: Collection[str],
    output: str,
    *,
    pieces: int | None,
    neighbours: float,
    width: int,
    seed: int,
) -> None:
    """Writes the folder of a small T5, as Hugging Face keeps it, with a tokenizer of its own.

    Args:
      captions: cleaned; the tokenizer learns their words.
      output: folder to write, which appears when it is complete.
      pieces: most tokens of the vocabulary, which are parts of words; None makes each word one.
      neighbours: how much of a word's feature is of the words beside it: with 3 a third, which
        tells their order, with 0.3 a fiftieth.
      width: of the features, a multiple of 8.
      seed: of the weights.

    Raises:
      InputError: a path or size is wrong, or sentencepiece is not installed.
    """
    if width < 8 or width % 8:
        raise InputError(f"width {width} must be a positive multiple of 8")
    texts = sorted(set(captions))
    words = {word for text in texts for word in text.split()}
    vocabulary = pieces or len(words) + _CONTROLS
    spiece = _train_tokenizer(texts, "bpe" if pieces else "word", vocabulary)
    config = T5Config(
        vocab_size=vocabulary + _SENTINELS,
        dim=width,
        head_dim=8,
        ffn_dim=2 * width,
        n_layers=1,
        n_heads=width // 8,
        relative_buckets=8,  # in a short caption: the word itself, next to it, and beyond
    )
    tokens = jnp.zeros((1, 1), int)
    params = T5(config).init(seeds.key(seed), tokens, tokens)["params"]
    flat: dict[str, Any] = flatten_dict(params, sep="/")
    scales = _SCALES | {"layers/out/kernel": neighbours}
    scaled = {path: leaf * scales.get(path, 1.0) for path, leaf in flat.items()}
    tensors = t5_weights.to_tensors(unflatten_dict(scaled, sep="/"), config)
    with staged(output) as partial:
        t5_weights.write_folder(partial, config, tensors, spiece)
    print(f"wrote a text encoder of width {width} to {output}")


def _train_tokenizer(captions: list[str], kind: Literal["bpe", "word"], vocabulary: int) -> bytes:
    try:
        import sentencepiece
    except ImportError:
        raise InputError(
            'training a tokenizer needs sentencepiece: pip install "llamagen_jax[text]"'
        ) from None
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(captions),
        model_writer=model,
        # Not the default of sentencepiece, which splits words where they are so few.
        model_type=kind,
        vocab_size=vocabulary,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `write_random_encoder` that its commands share."""
    parser.add_argument("output", type=commands.path, metavar="OUTPUT", help="folder to write")
    parser.add_argument("--width", type=commands.whole, default=128, help="of the features (128)")
    parser.add_argument("--seed", type=commands.seed, default=0, help="of the weights (0)")
