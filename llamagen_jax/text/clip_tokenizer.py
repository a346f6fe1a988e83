"""Texts to token numbers of CLIP's byte pairs.

Axes: B texts, T tokens.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from llamagen_jax.errors import InputError
from llamagen_jax.models.clip import CLIPConfig

_START, _END = "<|startoftext|>", "<|endoftext|>"
# Special tokens, contractions, words, single digits, and runs of anything else.
_PIECES = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


class CLIPTokenizer:
    """Text to token numbers as `transformers.CLIPTokenizer` does it."""

    def __init__(self, folder: str | os.PathLike, config: CLIPConfig):
        """Opens vocab.json and merges.txt of a Hugging Face folder, or its tokenizer.json.

        Args:
          config: of the model that reads the tokens; its end token is its last one.

        Raises:
          InputError: the files are missing, damaged or of another model, or the package tokenizers
            is not installed.
        """
        try:
            import tokenizers
            from tokenizers import normalizers, pre_tokenizers
        except ImportError:
            raise InputError(
                'tokenizing texts for CLIP needs tokenizers: pip install "llamagen_jax[evaluate]"'
            ) from None
        source, vocabulary, pairs = _read_byte_pairs(Path(folder))
        if _START not in vocabulary or vocabulary.get(_END) != config.vocab_size - 1:
            raise InputError(
                f"{source} is not the tokenizer of this CLIP: it has no {_START}, or {_END} is not "
                f"the last of {config.vocab_size} tokens"
            )
        self._start, self._end = vocabulary[_START], vocabulary[_END]
        self._length = config.context_length
        try:
            model = tokenizers.models.BPE(
                vocabulary, pairs, unk_token=_END, end_of_word_suffix="</w>"
            )
        except Exception as error:  # the package raises nothing narrower
            raise InputError(f"{source} has no tokens for its byte pairs: {error}") from error
        self._tokenizer = tokenizers.Tokenizer(model)
        self._tokenizer.add_special_tokens([_START, _END])
        self._tokenizer.normalizer = normalizers.Sequence(
            [
                normalizers.NFC(),
                normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
                normalizers.Lowercase(),
            ]
        )
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(_PIECES), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Start token, tokens and end token of every text; longer texts are cut, with a warning.

        Returns:
          int32 [B, T], T the config's `context_length`, filled up with end tokens.
        """
        tokens = np.full((len(texts), self._length), self._end, np.int32)
        cut = []
        for row, encoding in enumerate(self._tokenizer.encode_batch(list(texts))):
            ids = [self._start, *encoding.ids]
            if len(ids) >= self._length:
                cut.append(f"{texts[row][:60]!r} ({len(ids) + 1} tokens)")
            ids = ids[: self._length - 1]
            tokens[row, : len(ids)] = ids
        if cut:
            logging.warning("texts cut to %d tokens: %s", self._length, ", ".join(cut))
        return tokens


def _read_byte_pairs(folder: Path) -> tuple[Path, dict[str, int], list[Any]]:
    """The file that they are from, the token numbers, and the pairs in the order of merging."""
    from tokenizers.models import BPE

    names = ("vocab.json", "merges.txt")
    two_files = all((folder / name).is_file() for name in names)
    source = folder / (names[0] if two_files else "tokenizer.json")
    try:
        if two_files:
            return source, *BPE.read_file(*(str(folder / name) for name in names))
        model = json.loads(source.read_text(encoding="utf-8"))["model"]
        pairs = [tuple(pair.split() if isinstance(pair, str) else pair) for pair in model["merges"]]
        return source, dict(model["vocab"]), pairs
    except FileNotFoundError:
        raise InputError(
            f"{folder} has no tokenizer; expected CLIP's {' and '.join(names)}, or tokenizer.json"
        ) from None
    except Exception as error:  # the package raises nothing narrower
        raise InputError(f"{source} is damaged or no tokenizer: {error!r}") from error
