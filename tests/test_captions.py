import json
from pathlib import Path

import pytest

from llamagen_jax.data.captions import clean

pytest.importorskip("ftfy")
pytest.importorskip("bs4")

GOLDEN = json.loads((Path(__file__).parent / "golden" / "captions.json").read_text())


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["raw"][:20] or "empty")
def test_captions_become_what_the_original_makes_of_them(case):
    assert clean(case["raw"]) == case["clean"]
