"""Class labels from numbers and names."""

import pytest

from llamagen_jax.classes import find_class, imagenet_ids, imagenet_names
from llamagen_jax.errors import InputError

NAMES = ("tabby cat, tabby", "tiger cat", "tiger", "crane", "crane", "crane driver")


def test_imagenet_has_its_1000_classes():
    names, ids = imagenet_names(), imagenet_ids()
    assert len(names) == len(set(ids)) == 1000
    assert all(names)
    # Labels number the sorted ids.
    assert list(ids) == sorted(ids)


@pytest.mark.parametrize(
    ("name", "label"),
    {
        "tench": 0,
        "n01440764": 0,
        "N02119789": 278,
        "n15075141": 999,
        "macaw": 88,
        "golden retriever": 207,
        "Arctic fox": 279,
        "otter": 360,
        "lesser panda": 387,
        "red panda": 387,
        "balloon": 417,
        "geyser": 974,
        "valley": 979,
        "toilet tissue": 999,
    }.items(),
)
def test_imagenet_names_have_their_labels(name, label):
    assert find_class(name, imagenet_names(), 1000) == label


@pytest.mark.parametrize(
    ("text", "label"),
    [("tiger", 2), ("TIGER Cat", 1), ("tabby", 0), ("Tabby cat, tabby", 0), ("bby", 0), ("3", 3)],
)
def test_names_synonyms_unique_parts_and_numbers(text, label):
    assert find_class(text, NAMES, 6) == label


def test_a_name_that_is_a_number_wins():
    assert find_class("7", ["3", "7"], 2) == 1
    assert find_class("0", ["3", "7"], 2) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("crane", "'crane' is ambiguous; give one of 3 'crane', 4 'crane'$"),
        ("cat", "'cat' is ambiguous; give one of 0 'tabby cat, tabby', 1 'tiger cat'$"),
        ("tigger", "no class 'tigger'; give a number or a name, such as 1 'tiger cat', 2 'tiger'$"),
        ("xyz", "no class 'xyz'; .* such as 0 'tabby cat, tabby', .* 5 'crane driver'$"),
        ("6", "class 6 is out of range: classes are 0 to 5$"),
        ("-1", "class -1 is out of range"),
        ("--1", "no class '--1'"),
    ],
)
def test_ambiguous_and_unknown_names_list_the_candidates(text, message):
    with pytest.raises(InputError, match=message):
        find_class(text, NAMES, 6)


def test_long_lists_are_cut():
    with pytest.raises(InputError, match=r"'dog' is ambiguous; .* and \d+ more$") as error:
        find_class("dog", imagenet_names(), 1000)
    assert str(error.value).count(" '") <= 11


def test_without_names_only_numbers_are_known():
    assert find_class("4", (), 5) == 4
    with pytest.raises(InputError, match=r"'cat' is not a number.*from 0 to 4"):
        find_class("cat", (), 5)
