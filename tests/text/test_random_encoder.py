"""The small text encoder of random weights, with a token for each word."""

import numpy as np
import pytest

from llamagen_jax.data.prepare.__main__ import main
from llamagen_jax.data.records import write_dataset
from llamagen_jax.text.encoder import TextEncoder
from llamagen_jax.text.tokenizer import T5Tokenizer

NAMES = ("woman farmer medium-dark skin tone", "curaçao", "Mrs. Claus light skin tone", "farmer")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("words")
    write_dataset(folder / "emoji", [{"captions": {"name": name}} for name in NAMES])
    main(["word-encoder", str(folder / "emoji"), str(folder / "t5"), "--width", "32"])
    return folder


def test_every_word_is_a_token_of_its_own(folder):
    tokenizer = T5Tokenizer(folder / "t5" / "spiece.model")
    texts = [name.lower() for name in NAMES]
    words = sorted({word for text in texts for word in text.split()})
    tokens, mask = tokenizer(words, 2)
    assert mask.all()
    assert sorted(tokens[:, 0]) == list(range(3, 3 + len(words)))
    assert tokenizer.vocab_size == 3 + len(words) + 100
    assert tokenizer(["purple farmer"], 3)[0].tolist() == [[2, *tokenizer(["farmer"], 2)[0][0]]]


def test_features_tell_captions_apart(folder):
    encoder = TextEncoder.load(folder / "t5", length=8, batch_size=8)
    features, mask = encoder.encode(["light woman dark farmer", "dark woman light farmer"])
    assert features.shape == (2, 8, 32)
    assert mask.sum(axis=1).tolist() == [5, 5]
    first, second = np.asarray(features, np.float32)
    differs = np.abs(first - second).max(axis=1) > 0.1
    assert differs[-5:-1].all()


def test_a_feature_tells_its_word_more_than_those_beside_it(folder):
    encoder = TextEncoder.load(folder / "t5", length=8, batch_size=8)
    features, _ = encoder.encode(["woman dark", "farmer dark", "woman light"])
    dark, same_word, other_word = np.asarray(features, np.float32)[:, -2]
    assert np.linalg.norm(same_word - dark) < 0.4 * np.linalg.norm(dark)
    assert np.linalg.norm(other_word - dark) > 0.9 * np.linalg.norm(dark)


def test_a_folder_without_captions_is_refused(tmp_path):
    write_dataset(tmp_path / "labels", [{"label": 1}])
    with pytest.raises(SystemExit, match=r"labels' has no captions to learn words of"):
        main(["word-encoder", str(tmp_path / "labels"), str(tmp_path / "t5")])
    assert not (tmp_path / "t5").exists()
