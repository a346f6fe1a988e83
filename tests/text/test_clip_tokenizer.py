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
    """Byte pairs of `varied_captions`: every byte, alone and at the end of a word, then merges."""
    folder = tmp_path_factory.mktemp("clip")
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False
    )
    learner = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner.train_from_iterator([text.lower() for text in tiny.varied_captions(300)], trainer)
    model = json.loads(learner.to_str())["model"]
    names = list(model["vocab"])
    names += [f"{letter}</w>" for letter in letters if f"{letter}</w>" not in model["vocab"]]
    names += [f"spare{number}" for number in range(CONFIG.vocab_size - len(names) - 2)]
    vocabulary = {name: number for number, name in enumerate([*names, START, END])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    merges = [" ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    return folder


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
