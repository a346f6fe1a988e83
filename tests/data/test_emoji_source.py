"""The emoji's pictures, captions and what is held out of them."""

import io
import itertools
import pickle
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from llamagen_jax.data import emoji_source, transforms
from llamagen_jax.data.emoji_source import TONES, EmojiSource
from llamagen_jax.data.sources import open_source
from llamagen_jax.errors import InputError

SPLITS = emoji_source.splits()


def _named(name: str) -> emoji_source.Emoji:
    return next(e for e in itertools.chain(*SPLITS.values()) if e.name == name)


def test_what_is_held_out_is_fixed():
    """A change moves pictures that a model was trained on to those that it is judged by."""
    texts = {split: [emoji.text for emoji in part] for split, part in SPLITS.items()}
    everything = list(itertools.chain(*texts.values()))
    assert len(set(everything)) == len(everything) > 3900
    persons = [emoji for emoji in itertools.chain(*SPLITS.values()) if emoji.tone]
    assert len(texts["combinations"]) == round(0.2 * len(persons))
    assert len(texts["test"]) == round(0.1 * (len(everything) - len(texts["combinations"])))
    shown = [[emoji.name for emoji in SPLITS[split][:3]] for split in ("combinations", "test")]
    assert shown == [
        [
            "woman medium-light skin tone red hair",
            "man student medium-dark skin tone",
            "man running facing right light skin tone",
        ],
        [
            "handshake medium-light skin tone dark skin tone",
            "woman lifting weights medium skin tone",
            "x-ray",
        ],
    ]


def test_every_part_of_a_combination_is_seen_in_training():
    seen = {(e.role, e.gender, e.tone) for e in SPLITS["train"] if e.tone}
    persons = {(role, gender) for role, gender, _ in seen}
    assert {tone for *_, tone in seen} == set(TONES)
    for emoji in SPLITS["combinations"]:
        assert (emoji.role, emoji.gender) in persons
        assert (emoji.role, emoji.gender, emoji.tone) not in seen
    held = Counter((emoji.role, emoji.gender) for emoji in SPLITS["combinations"])
    assert max(held.values()) == 2  # of six tones


def test_role_gender_and_tone_are_told_apart():
    farmers = [_named(f"{who} medium-dark skin tone") for who in ("man farmer", "woman farmer")]
    assert [(e.gender, e.tone) for e in farmers] == [
        ("man", "medium-dark"),
        ("woman", "medium-dark"),
    ]
    anyone, juggler = _named("farmer"), _named("woman juggling")
    assert {e.role for e in farmers} == {anyone.role}
    assert (anyone.gender, anyone.tone) == ("person", "yellow")
    assert juggler.role == _named("person juggling dark skin tone").role != anyone.role
    two = _named("people holding hands light skin tone dark skin tone")
    assert [e.tone for e in (two, _named("ghost"), _named("dark skin tone"))] == [None] * 3


def test_captions_say_a_name_in_several_ways():
    assert emoji_source.captions(_named("woman medium-light skin tone red hair")) == {
        "name": "woman medium-light skin tone red hair",
        "tone_first": "medium-light skin tone woman red hair",
        "gender": "female medium-light skin tone red hair",
    }
    assert set(emoji_source.captions(_named("ghost")).values()) == {"ghost"}
    source = open_source("emoji", "test/32/de")
    index = next(i for i, emoji in enumerate(source.emoji) if emoji.name == "toothbrush")
    assert source[index]["captions"] == {"name": "zahnbürste"}


def test_pictures_have_the_size_that_is_asked_for():
    source = pickle.loads(pickle.dumps(EmojiSource("train/40")))
    with Image.open(io.BytesIO(source[0]["image"])) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape == (40, 40, 3)
    np.testing.assert_array_equal(pixels[0, 0], 255)
    assert pixels.min() < 100
    # Without OpenMoji's margin most pictures come within two pixels of the border.
    drawn = [transforms.decode(source[i]["image"]) for i in range(60)]
    shown = [np.argwhere(np.asarray(image).min(axis=-1) < 250) for image in drawn]
    nearest = [min(part.min(), 39 - part.max()) for part in shown]
    assert np.median(nearest) <= 2
    assert "label" not in source[0]
    assert len(source) == len(SPLITS["train"])
    people = EmojiSource("people/40").emoji
    assert people == tuple(emoji for emoji in source.emoji if emoji.tone)
    with pytest.raises(IndexError):
        source[len(source)]


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("trian", "the emoji have no split 'trian': did you mean 'train'"),
        ("train/large", "'train/large' is no place among the emoji: write SPLIT/SIZE/LANGUAGE"),
        ("train/64/en/1", "is no place among the emoji"),
        ("train/64/deu", "the emoji have no names in 'deu': did you mean 'de'"),
    ],
)
def test_wrong_locations(location, message):
    with pytest.raises(InputError, match=message):
        EmojiSource(location)
