import json
import sys
import warnings

import golden_weights
import pytest

from llamagen_jax.errors import InputError
from llamagen_jax.text import captions
from llamagen_jax.text.captions import clean

pytest.importorskip("ftfy")
pytest.importorskip("bs4")

GOLDEN = json.loads((golden_weights.FOLDER / "captions.json").read_text())


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["raw"][:20] or "empty")
def test_captions_become_what_the_original_makes_of_them(case):
    assert clean(case["raw"]) == case["clean"]


def test_captions_that_look_like_files_or_markup_are_taken_quietly():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert clean("cats&dogs.txt") == "cats dogs. txt"
        assert clean("a <!-- cat --> in <![a[box]]> <") == "a in <"


def test_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    captions._libraries.cache_clear()
    with pytest.raises(InputError, match=r"needs ftfy and beautifulsoup4: pip install"):
        clean("a cat")
