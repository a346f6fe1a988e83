"""Tar shards of img2dataset: read by index, from any process, and honest about damage."""

import io
import json
import logging
import os
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from llamagen_jax.data import tar_shards
from llamagen_jax.data.prepare import __main__ as prepare
from llamagen_jax.data.sources import ArrayRecordSource, open_source
from llamagen_jax.data.tar_shards import TarShardsSource
from llamagen_jax.errors import InputError


def jpeg(seed, side=32):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as shard:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))


def sample(number, *, side=32, **fields):
    fields = {"long": f"a long caption {number}", "width": side, "exif": None, "url": "a"} | fields
    return [
        (f"{number:09d}.jpg", jpeg(number, side)),
        (f"{number:09d}.json", json.dumps(fields).encode()),
        (f"{number:09d}.txt", f"caption {number} é".encode()),
    ]


@pytest.fixture
def shards(tmp_path):
    """Two shards of three samples; img2dataset also writes parquet and JSON files beside them."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(2):
        members = [m for i in range(3) for m in sample(10000 * shard + i)]
        write_tar(folder / f"{shard:05d}.tar", members)
        (folder / f"{shard:05d}.parquet").write_bytes(b"PAR1")
        (folder / f"{shard:05d}_stats.json").write_text("{}")
    return folder


def test_records_come_by_index(shards):
    source = open_source("tar_shards", shards)
    assert len(source) == 6
    for index in (5, 0, 3, 2):
        number = 10000 * (index // 3) + index % 3
        captions = {"txt": f"caption {number} é", "long": f"a long caption {number}"}
        assert source[index] == {"image": jpeg(number), "captions": captions}
    assert source.name(4) == f"sample 1 of '{shards}/00001.tar'"
    for outside in (6, -1):
        with pytest.raises(IndexError):
            source[outside]


def test_a_shard_is_indexed_once(shards, monkeypatch):
    first = list(TarShardsSource(shards))
    assert sorted(path.name for path in shards.glob("*.index")) == [
        "00000.tar.index",
        "00001.tar.index",
    ]
    assert len(list(shards.iterdir())) == 8
    monkeypatch.setattr(tarfile, "open", None)
    source = TarShardsSource(shards)
    assert list(source) == first
    assert list(pickle.loads(pickle.dumps(source))) == first


@pytest.mark.parametrize("change", ["size", "time", "damaged index"])
def test_an_index_that_does_not_fit_is_made_anew(shards, change):
    TarShardsSource(shards)
    path = shards / "00000.tar"
    status = path.stat()
    if change == "size":
        write_tar(path, [m for i in (2, 1, 0, 3, 4, 5, 6, 7) for m in sample(i)])
    elif change == "time":
        write_tar(path, [m for i in (2, 1, 0) for m in sample(i)])
    else:
        (shards / "00000.tar.index").write_bytes(b"PK\x03\x04")
    assert (path.stat().st_size != status.st_size) == (change == "size")
    times = status.st_mtime_ns + (change == "time")
    os.utime(path, ns=(times, times))
    source = TarShardsSource(shards)
    assert len(source) == (11 if change == "size" else 6)
    assert source[0]["image"] == jpeg(0 if change == "damaged index" else 2)


def test_members_may_be_of_other_kinds_and_orders(tmp_path):
    folders = [("a/x.PNG", b"1"), ("b/x.webp", b"2"), ("a/x.txt", b"one"), ("b/x.txt", b"two")]
    others = [("a/x.seg.png", b"3"), ("b/x.cls", b"4"), ("b/y.json", b'{"short": "three"}')]
    write_tar(tmp_path / "0.tar", [*folders, *others, ("b/y.jpeg", b"5")])
    assert list(TarShardsSource(tmp_path)) == [
        {"image": b"1", "captions": {"txt": "one"}},
        {"image": b"2", "captions": {"txt": "two"}, "label": 4},
        {"image": b"5", "captions": {"short": "three"}},
    ]


def test_names_with_dots_lists_of_captions_and_what_systems_add(tmp_path, caplog):
    members = [
        ("./photo 2.5.jpg", b"1"),
        ("./photo 2.5.txt", b"one"),
        ("./photo 2.jpg", b"2"),
        ("./photo 2.json", b'{"captions": ["a", "", "c"], "short": "d"}'),
        ("./photo 2.mask.png", b"3"),
        ("__MACOSX/._photo 2.jpg", b"4"),
        ("./._photo 2.jpg", b"5"),
        (f"{'long ' * 40}.TIFF", b"6"),
    ]
    write_tar(tmp_path / "0.tar", members)
    (tmp_path / "._0.tar").write_bytes(b"\0")
    assert list(TarShardsSource(tmp_path)) == [
        {"image": b"1", "captions": {"txt": "one"}},
        {"image": b"2", "captions": {"captions_0": "a", "captions_2": "c", "short": "d"}},
        {"image": b"6", "captions": {}},
    ]
    assert "left out 1 further images of samples" in caplog.text


@pytest.mark.parametrize("how", ["appended", "concatenated", "blocked"])
def test_archives_put_together_are_read_whole(tmp_path, how):
    path = tmp_path / "0.tar"
    write_tar(path, sample(0))
    if how == "appended":
        write_tar(path, sample(1), mode="a")
    else:
        write_tar(tmp_path / "other", sample(1))
        zeros = bytes(tarfile.RECORDSIZE) if how == "blocked" else b""
        path.write_bytes(path.read_bytes() + zeros + (tmp_path / "other").read_bytes())
    assert [record["image"] for record in TarShardsSource(tmp_path)] == [jpeg(0), jpeg(1)]


def test_links_are_followed_inside_a_shard(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as shard:
        info = tarfile.TarInfo("a.jpg")
        info.size = 1
        shard.addfile(info, io.BytesIO(b"1"))
        link = tarfile.TarInfo("b.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "a.jpg"
        shard.addfile(link)
    assert [record["image"] for record in TarShardsSource(tmp_path)] == [b"1", b"1"]


def test_a_bit_that_flips_after_indexing_is_noticed(shards, tmp_path):
    whole = list(TarShardsSource(shards))
    tar_shards.verify(shards)
    path = shards / "00000.tar"
    data, times = path.read_bytes(), path.stat().st_mtime_ns
    rng, noticed = np.random.default_rng(0), 0
    for bit in rng.integers(0, 8 * len(data), 60).tolist():
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        os.utime(path, ns=(times, times))
        source = TarShardsSource(shards)
        for index in range(3):
            try:
                assert source[index] == whole[index]
            except ValueError as error:
                assert str(error) == "its bytes have changed since the shard was indexed"
                noticed += 1
                with pytest.raises(InputError, match=f"1 samples .* first: sample {index} of"):
                    tar_shards.verify(shards)
    assert noticed > 5


def test_damaged_samples_raise(tmp_path):
    no_image = [("0.txt", b"a cat")]
    bad_json = [("1.jpg", b"1"), ("1.json", b'{"a": ')]
    half_character = [("2.jpg", b"1"), ("2.json", b'{"long": "\\ud83d"}')]
    write_tar(tmp_path / "0.tar", [*no_image, *bad_json, *half_character])
    source = TarShardsSource(tmp_path)
    for index, message in enumerate(["no image", "Expecting value", "surrogates not allowed"]):
        with pytest.raises(ValueError, match=message):
            source[index]


def test_shards_that_cannot_be_read_are_left_out(shards, caplog):
    (shards / "00002.tar").write_bytes(b"<html>" * 200)
    write_tar(shards / "00003.tar", sample(7), mode="w:gz")
    whole = (shards / "00000.tar").read_bytes()
    (shards / "00004.tar").write_bytes(whole[: len(whole) // 3])
    with tarfile.open(shards / "00000.tar") as tar:
        header = tar.getmembers()[3].offset
    (shards / "00005.tar").write_bytes(whole[: header + 300])
    with caplog.at_level(logging.WARNING, "absl"):
        source = TarShardsSource(shards)
    assert (len(source), source.unreadable) == (6, 4)
    assert f"left out 4 of the 6 shards in '{shards}'" in caplog.text
    for name in ("00002.tar", "00003.tar", "00004.tar", "00005.tar"):
        assert f"left out shard '{shards}/{name}': " in caplog.text


def test_nothing_to_read(tmp_path):
    with pytest.raises(InputError, match=r"no \.tar shards in '.*absent'"):
        TarShardsSource(tmp_path / "absent")
    write_tar(tmp_path / "0.tar", [])
    with pytest.raises(InputError, match=r"no shard in .* uncompressed tar files"):
        TarShardsSource(tmp_path)


def test_folders_that_cannot_be_written_are_read(shards, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("read-only")

    monkeypatch.setattr(np, "savez", refuse)
    assert len(TarShardsSource(shards)) == 6
    assert not list(shards.glob("*.index*"))


def test_packing(shards, tmp_path, capsys, caplog):
    broken = [("1.jpg", jpeg(0)[:500]), ("1.txt", b"a"), ("2.jpg", jpeg(0)), ("2.txt", b"")]
    write_tar(shards / "00002.tar", broken)
    where = ["--source", "tar_shards", "--location", str(shards)]
    with caplog.at_level(logging.WARNING, "absl"):
        prepare.main(["pack", str(tmp_path / "all"), *where])
        prepare.main(["pack", str(tmp_path / "long"), *where, "--captions", "long", "short"])
    assert list(ArrayRecordSource(tmp_path / "all")) == list(TarShardsSource(shards))[:6]
    assert ArrayRecordSource(tmp_path / "long")[5] == {
        "image": jpeg(10002),
        "captions": {"long": "a long caption 10002"},
    }
    assert f"wrote 6 images to {tmp_path / 'all'}; skipped 2" in capsys.readouterr().out
    assert f"skipped sample 0 of '{shards}/00002.tar': OSError" in caplog.text
    assert "it has no caption of long, short" in caplog.text
    with pytest.raises(SystemExit, match=r"every record of .* no caption of top, only: .*txt"):
        prepare.main(["pack", str(tmp_path / "none"), *where, "--captions", "top"])
    assert not (tmp_path / "none").exists()


def test_packing_arrays(tmp_path):
    out = str(tmp_path / "out")
    prepare.main(["pack", out, "--source", "digits", "--location", "test"])
    packed, digits = ArrayRecordSource(out), open_source("digits", "test")
    assert len(packed) == len(digits)
    assert packed.class_names == digits.class_names
    assert packed.credit == digits.credit
    image = np.asarray(Image.open(io.BytesIO(packed[9]["image"])))
    np.testing.assert_array_equal(image, digits[9]["image"])
    assert packed[9]["label"] == digits[9]["label"]
