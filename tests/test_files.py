import os
import resource

import pytest

from llamagen_jax.data.records import write_dataset
from llamagen_jax.errors import InputError
from llamagen_jax.files import local_path, readable_size, staged


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


def write_bytes(path):
    with staged(path) as partial:
        partial.write_bytes(bytes(100_000))


def write_records(path):
    """By a library that tells of the disk in an exception of its own."""
    write_dataset(path, ({"label": 0, "image": bytes(1000)} for _ in range(100)), shard_size=1000)


@pytest.mark.parametrize("write", [write_bytes, write_records])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, write):
    """No file may grow past a limit, which is the full disk of those who are not root."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(InputError, match=rf"out.*: File too large, .* are free in {tmp_path}"):
            write(tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_sizes_are_readable():
    assert [readable_size(n) for n in (0, 999, 1500, 3e9, 2e15)] == [
        "0 bytes",
        "999 bytes",
        "1.5 kB",
        "3 GB",
        "2e+03 TB",
    ]
