import os

import pytest

from llamagen_jax.errors import InputError
from llamagen_jax.files import local_path


def test_paths_are_expanded_as_a_shell_does(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.chdir(tmp_path)
    for text, expected in {
        "~/run": "/home/me/run",
        "$DATA/a": "/data/a",
        "${DATA}/a b": "/data/a b",
        "a~b/c:d": "a~b/c:d",
        "cost 5$": "cost 5$",
    }.items():
        assert str(local_path(text)) == expected
    with pytest.raises(
        InputError, match=r"^\$NONE/run names the variable \$NONE, which is not set$"
    ):
        local_path("$NONE/run")
    (tmp_path / "$NONE").mkdir()
    assert str(local_path("$NONE")) == "$NONE"


def test_a_path_that_is_no_text_is_refused():
    with pytest.raises(InputError, match=r"^the path b'a\\xff' is no UTF-8: rename it$"):
        local_path(os.fsdecode(b"a\xff"))


@pytest.mark.parametrize("scheme", ["gs", "s3", "hdfs", "https", "file"])
def test_addresses_are_refused(scheme):
    with pytest.raises(InputError, match=f"^{scheme}://a/b is an address, and only local files"):
        local_path(f"{scheme}://a/b")
