"""Captions of any source as a file of prompts."""

import pytest

from llamagen_jax.data.prepare.__main__ import main
from llamagen_jax.data.records import write_dataset
from llamagen_jax.text.prompts import read_prompts


def _run(folder, *options):
    source = ["--source", "array_record", "--location", str(folder / "data")]
    main(["captions", *source, *options, str(folder / "prompts.txt")])


def test_captions_become_prompts_in_order(tmp_path):
    records = [
        {"captions": {"long": "a red\ncircle", "short": "circle"}},
        {"captions": {"short": "square"}},
        {"label": 3},
        {"captions": {"long": "café", "short": ""}},
        {"captions": {"long": "one more"}},
    ]
    write_dataset(tmp_path / "data", records)
    _run(tmp_path, "--caption", "long", "--count", "2")
    assert read_prompts(tmp_path / "prompts.txt") == ["a red circle", "café"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--caption", "log"), "has 0 captions named 'log': check --caption"),
        (("--caption", "long", "--count", "3"), "has 1 captions named 'long': check --caption"),
    ],
)
def test_too_few_captions_are_refused(tmp_path, options, message):
    write_dataset(tmp_path / "data", [{"captions": {"long": "a circle"}}, {"label": 1}])
    with pytest.raises(SystemExit, match=message):
        _run(tmp_path, *options)
    assert not (tmp_path / "prompts.txt").exists()
