"""Captions to token numbers of T5's sentencepiece model.

Axes: B captions, T tokens.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging

from llamagen_jax.errors import InputError
from llamagen_jax.text.captions import clean

_NUM_SENTINELS = 100
_SPECIAL = re.compile(r"(<extra_id_\d{1,2}>|</s>|<pad>|<unk>)")


class T5Tokenizer:
    """Text to token numbers by a sentencepiece model, as `transformers.T5Tokenizer` does it.

    Attributes:
      vocab_size: one more than the largest token number.
    """

    def __init__(self, path: str | os.PathLike):
        """Opens a sentencepiece model, which Hugging Face folders hold as spiece.model.

        Raises:
          InputError: the file is missing or no model of T5's kind, or sentencepiece is not
            installed.
        """
        try:
            import sentencepiece
        except ImportError:
            raise InputError(
                'tokenizing captions needs sentencepiece: pip install "llamagen_jax[text]"'
            ) from None
        if not Path(path).is_file():
            raise InputError(f"{path} is missing; expected the sentencepiece model of the encoder")
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise InputError(f"{path} is damaged or no sentencepiece model: {error}") from error
        special = ("<pad>", "</s>", "<unk>")
        if [self._model.piece_to_id(name) for name in special] != [0, 1, 2]:
            raise InputError(f"{path} is not T5's: its first tokens are not {', '.join(special)}")
        # The sentinels, which no sentencepiece model holds, end the vocabulary in reverse.
        self.vocab_size = self._model.vocab_size() + _NUM_SENTINELS
        self._special = {name: i for i, name in enumerate(special)}
        for i in range(_NUM_SENTINELS):
            self._special[f"<extra_id_{i}>"] = self.vocab_size - 1 - i

    def __call__(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of every text and an end token; longer texts are cut, with a warning.

        Returns:
          int32 [B, length], padded with zeros on the left as the generator wants its features, and
          the mask, bool [B, length], False at padding.
        """
        tokens = np.zeros((len(texts), length), np.int32)
        mask = np.zeros((len(texts), length), bool)
        cut = []
        for row, text in enumerate(texts):
            ids = self._encode(text)
            if len(ids) >= length:
                cut.append(f"{text[:60]!r} ({len(ids) + 1} tokens)")
            ids = [*ids[: length - 1], self._special["</s>"]]
            tokens[row, -len(ids) :] = ids
            mask[row, -len(ids) :] = True
        if cut:
            logging.warning("captions cut to %d tokens: %s", length, ", ".join(cut))
        return tokens, mask

    def num_tokens(self, text: str) -> int:
        """How many tokens a text has, the end token among them."""
        return len(self._encode(text)) + 1

    def _encode(self, text: str) -> list[int]:
        ids = []
        for part in _SPECIAL.split(text):
            ids += [self._special[part]] if part in self._special else self._model.encode(part)
        return ids


def tokenize_caption(tokenizer: T5Tokenizer, length: int, caption: str) -> dict[str, np.ndarray]:
    """Cleans a caption and returns its "tokens", int32 [T], and their "mask", bool [T].

    Raises:
      ValueError: nothing is left of the caption.
    """
    cleaned = clean(caption)
    if not cleaned:
        raise ValueError(f"its caption {caption!r} is empty once cleaned")
    tokens, mask = tokenizer([cleaned], length)
    return {"tokens": tokens[0], "mask": mask[0]}
