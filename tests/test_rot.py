"""Single bits that flip in what lies on disks: noticed, or without effect, but never silent."""

import contextlib
import json
import os

import jax
import numpy as np
import pytest
import tiny

from llamagen_jax import sample, zoo
from llamagen_jax.data.sources import ArrayRecordSource, TarShardsSource
from llamagen_jax.errors import InputError
from llamagen_jax.scenes import files as scenes
from llamagen_jax.training.config import from_mapping
from llamagen_jax.weights.mapping import to_torch
from llamagen_jax.weights.torch_files import Tensor, read_torch, write_torch

FLIPS = 1000


def weights(path):
    model, params = zoo.load(path)
    return [repr(model.config), *jax.tree.leaves(params)]


def records(source):
    """The records, those that cannot be read left out as in training, and what names classes."""
    kept = []
    for index in range(len(source)):
        # Readers raise errors of any type on damaged bytes, and the record is skipped and counted.
        with contextlib.suppress(Exception):
            kept.append(json.dumps(source[index], default=lambda value: repr(value)))
    if len(kept) < len(source):
        raise InputError("records are skipped")
    return [repr(source.class_names), *kept]


def arrays(path):
    with np.load(path) as file:
        return [file[name] for name in file.files]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """By kind: its files, and what a user gets of them."""
    root = tmp_path_factory.mktemp("rot")
    generator, tokenizer = tiny.exports(root / "exports")
    model, params = tiny.llama()
    tensors = {n: Tensor.of(t) for n, t in to_torch(params, model.config).items()}
    for name in ("a.safetensors", "a.pt"):
        write_torch(root / name, tensors)
    # Most of a small shard would be padding.
    codes = tiny.write_codes(root / "codes", count=1000)
    shards = list(codes.glob("*.array_record"))
    tiny.train(from_mapping(tiny.generator_config(codes, steps=1)), root / "run")
    scenes.write_metadata(str(root / "scenes.parquet"), count=12, seed=0)
    tar = root / "tar"
    scenes.render_shards(str(root / "scenes.parquet"), str(tar), image_size=128, shard_size=9)
    TarShardsSource(tar)
    options = ["--generator", generator, "--tokenizer", tokenizer, "--output", root / "a.npz"]
    sample.main(list(map(str, options)))
    converted = {
        f"converted {name.partition('.')[2]}": ([root / name], lambda p=root / name: raw(p))
        for name in ("a.safetensors", "a.pt")
    }
    return {
        "export": (files(generator), lambda: weights(generator)),
        **converted,
        "checkpoint and config of a run": (files(root / "run"), lambda: weights(root / "run")),
        "manifest": ([codes / "manifest.json"], lambda: records(ArrayRecordSource(codes))),
        "packed shard": (shards, lambda: records(ArrayRecordSource(codes))),
        "tar shard and index": (files(tar), lambda: records(TarShardsSource(tar))),
        "samples": ([root / "a.npz"], lambda: arrays(root / "a.npz")),
    }


def raw(path):
    tensors = read_torch(path)[0]
    return [sorted(tensors), *(tensors[name] for name in sorted(tensors))]


def files(folder):
    kept = ("config.json", "params.safetensors", ".tar", ".index")
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and (path.name.endswith(kept) or "checkpoints" in path.parts)
    ]


def same(found, expected):
    return len(found) == len(expected) and all(
        np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b
        for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.slow
def test_no_flipped_bit_goes_through(kinds, capsys):
    rng, counts = np.random.default_rng(0), {}
    expected = {kind: read() for kind, (_, read) in kinds.items()}
    for number in range(FLIPS):
        kind = list(kinds)[number % len(kinds)]
        paths, read = kinds[kind]
        sizes = np.array([path.stat().st_size for path in paths], float)
        path = paths[rng.choice(len(paths), p=sizes / sizes.sum())]
        kept, status = path.read_bytes(), path.stat()
        tiny.flip_bit(path, int(rng.integers(8 * len(kept))))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        try:
            outcome = "no effect" if same(read(), expected[kind]) else "silently wrong"
        except Exception:
            outcome = "noticed"
        counts.setdefault(kind, dict.fromkeys(("noticed", "no effect", "silently wrong"), 0))
        counts[kind][outcome] += 1
        path.write_bytes(kept)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with capsys.disabled():
        for kind, count in counts.items():
            print(f"\n{kind:32}", *(f"{name} {n:4}" for name, n in count.items()), end="")
    assert not any(count["silently wrong"] for count in counts.values())
