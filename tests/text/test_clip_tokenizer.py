"""CLIP's token numbers are those of `transformers`."""

import dataclasses
import json
import logging

import numpy as np
import pytest
import tiny

from llamagen_jax.errors import InputError
from llamagen_jax.models.clip import CLIPConfig
from llamagen_jax.text.clip_tokenizer import CLIPTokenizer

tokenizers = pytest.importorskip("tokenizers")
START, END = "<|startoftext|>", "<|endoftext|>"
CONFIG = CLIPConfig(vocab_size=1200)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_clip_tokenizer(tmp_path_factory.mktemp("clip"), CONFIG.vocab_size)


def test_tokens_are_those_of_transformers(folder):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.CLIPTokenizer.from_pretrained(folder)
    captions = tiny.varied_captions(1000)
    captions[:4] = ["", f"A {START} b {END} c", "I'M you're cafe\u0301 👩‍🚀", "x" * 200]
    tokens = CLIPTokenizer(folder, CONFIG)(captions)
    expected = theirs(captions, max_length=77, padding="max_length", truncation=True)["input_ids"]
    np.testing.assert_array_equal(tokens, expected)
    lengths = (tokens != CONFIG.vocab_size - 1).sum(axis=1)
    assert (lengths.min(), lengths.max(), tokens.shape[1]) == (1, 76, 77)


def test_tokenizer_json_serves_as_well(folder, tmp_path):
    captions = tiny.varied_captions(20)
    expected = CLIPTokenizer(folder, CONFIG)(captions)
    merges = (folder / "merges.txt").read_text().split("\n")[1:-1]
    for pairs in (merges, [merge.split() for merge in merges]):
        model = {"vocab": json.loads((folder / "vocab.json").read_text()), "merges": pairs}
        (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model}))
        np.testing.assert_array_equal(CLIPTokenizer(tmp_path, CONFIG)(captions), expected)


def test_cut_texts_are_told(folder, caplog):
    with caplog.at_level(logging.WARNING):
        short = dataclasses.replace(CONFIG, context_length=6)
        tokens = CLIPTokenizer(folder, short)(["1 2 3", "1 2 3 4 5 6"])
    assert [record.getMessage() for record in caplog.records] == [
        "texts cut to 6 tokens: '1 2 3 4 5 6' (8 tokens)"
    ]
    assert (tokens[:, -1] == CONFIG.vocab_size - 1).all()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x", "", r"has no tokenizer; expected CLIP's vocab\.json and merges\.txt, or tokenizer"),
        ("tokenizer.json", "{", r"tokenizer\.json is damaged or no tokenizer"),
        ("tokenizer.json", "{}", r"tokenizer\.json is damaged or no tokenizer: KeyError"),
        (
            "tokenizer.json",
            '{"model": {"vocab": {"a": 0}, "merges": []}}',
            r"tokenizer\.json is not the tokenizer of this CLIP: .* is not the last of 2 tokens",
        ),
        (
            "tokenizer.json",
            json.dumps({"model": {"vocab": {START: 0, END: 1}, "merges": ["a b"]}}),
            r"tokenizer\.json has no tokens for its byte pairs",
        ),
    ],
)
def test_damaged_tokenizers_are_refused(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        CLIPTokenizer(tmp_path, CLIPConfig(vocab_size=2))
