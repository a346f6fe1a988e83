"""The command that compares images with their reconstructions."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image

from llamagen_jax.evaluate import __main__ as evaluate
from llamagen_jax.evaluate import image_sets, kept, tokenizers
from llamagen_jax.evaluate.features import Network
from llamagen_jax.images import from_uint8
from llamagen_jax.weights import export


@jax.tree_util.register_static
class Lightened:
    """Codes are the red of each pixel, which come back `by` lighter, in all three colours."""

    downsampling, codebook_size = 1, 256

    def __init__(self, by=0):
        self.by, self.params = by, {}

    def encode(self, images):
        return jnp.round((images[..., 0] + 1) * 127.5).astype(jnp.int32)

    def decode(self, codes):
        return from_uint8((codes + self.by).astype(jnp.uint8)[..., None].repeat(3, axis=-1))


GREY = np.random.default_rng(0).integers(0, 200, (21, 16, 16, 1), np.uint8).repeat(3, axis=-1)


@pytest.fixture(autouse=True)
def images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("images.npz", arr_0=GREY)


def run(*options, size=16):
    command = ["reconstructions", "images.npz", "--size", size, "--output", "out.json", *options]
    evaluate.main(list(map(str, command)))
    found = json.loads(Path("out.json").read_text())
    return {figure["name"]: figure["value"] for figure in found["figures"]}, found


@pytest.fixture
def tokenizer(monkeypatch):
    """Puts a tokenizer in the place of the one that is named."""

    def put(made):
        monkeypatch.setattr(tokenizers, "open_tokenizer", lambda name, continuous: made)

    return put


@pytest.fixture
def network(monkeypatch):
    """Puts random products in the place of Inception."""
    matrix = np.random.default_rng(0).standard_normal((16 * 16 * 3, 64)).astype(np.float32)

    def features(images):
        return {"pool": images.reshape(len(images), -1) @ matrix}

    made = Network("adm", "x", features, {"pool": 64})
    monkeypatch.setattr(Network, "open", lambda path, protocol: made)


def test_the_identity_changes_nothing(tokenizer, network, monkeypatch):
    tokenizer(Lightened())
    monkeypatch.setattr(tokenizers.lpips_weights, "load", lambda vgg16, heads: lpips_params())
    found, _ = run("--tokenizer", "x", "--inception", "x", "--vgg16", "x", "--lpips-heads", "x")
    # JSON has no infinity.
    assert found["PSNR"] is None
    assert (found["SSIM"], found["LPIPS"]) == (pytest.approx(1), 0)
    assert found["rFID"] == pytest.approx(0, abs=1e-3)


def lpips_params():
    images = jnp.zeros((1, 16, 16, 3))
    params = tokenizers.LPIPS().init(jax.random.key(0), images, images)["params"]
    return {name: jnp.ones_like(p) if "head" in name else p for name, p in params.items()}


def test_figures_of_known_differences(tokenizer):
    tokenizer(Lightened(by=10))
    found, about = run("--tokenizer", "x")
    assert run("--tokenizer", "x", "--tile", 6)[0] == found
    assert found["PSNR"] == pytest.approx(28.131, abs=5e-4)
    assert about["images"] == 21
    counts = np.bincount(GREY[..., 0].reshape(-1), minlength=256)
    assert found["codebook usage"] == (counts > 0).mean()
    shares = counts[counts > 0] / counts.sum()
    assert found["perplexity"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    original, _ = run("--tokenizer", "x", "--llamagen-ssim")
    assert original["SSIM"] > found["SSIM"]


@jax.tree_util.register_static
class WholeAlone(Lightened):
    def decode(self, codes):
        assert codes.shape[1:] == (8, 16)
        return super().decode(codes)


def test_crops_that_are_not_square(tokenizer):
    tokenizer(WholeAlone(by=10))
    options = ["--tokenizer", "x", "--keep", "kept"]
    found, about = run(*options, size="16x8")
    assert about["size"] == "16x8"
    counts = np.bincount(GREY[:, 4:12, :, 0].reshape(-1), minlength=256)
    assert found["codebook usage"] == (counts > 0).mean()
    assert found["PSNR"] == pytest.approx(28.131, abs=5e-4)
    assert run(*options, size="16x8")[0] == found
    tokenizer(Lightened(by=10))
    assert run("--tokenizer", "x", "--tile", 6, size="16x8")[0] == found
    assert run("--tokenizer", "x", size="16x16")[0] == run("--tokenizer", "x")[0]


@pytest.mark.parametrize("batch_size", [1, 8, 64])
def test_a_model_at_another_size_than_its_own(tmp_path, batch_size):
    export.write(tmp_path / "tokenizer", *tiny.vqgan())
    options = ["--tokenizer", tmp_path / "tokenizer", "--picture", "p.png"]
    found, _ = run(*options, "--batch-size", batch_size, size=32)
    again, _ = run(*options, size=32)
    assert found == pytest.approx(again, rel=1e-3)
    assert Image.open("p.png").width == 8 * 130 + 2  # wide enough for the numbers


def test_larger_images_are_compared_at_another_size(tokenizer):
    tokenizer(Lightened(by=10))
    np.savez("images.npz", arr_0=np.full((3, 32, 32, 3), 90, np.uint8))
    found, about = run("--tokenizer", "x", "--resize", "16", "--picture", "p.png", size=32)
    assert found["PSNR"] == pytest.approx(28.131, abs=5e-4)
    assert (about["size"], about["resize"]) == (32, 16)
    assert Image.open("p.png").width == 3 * 130 + 2


def test_the_picture_shows_the_worst_and_the_best(tokenizer):
    colours = GREY.copy()
    # The decoder makes them grey.
    colours[4, ..., 1] += 50
    colours[9, ..., 1] += 30
    np.savez("images.npz", arr_0=colours)
    tokenizer(Lightened())
    run("--tokenizer", "x", "--picture", "p.png")
    picture = np.asarray(Image.open("p.png"))
    width = (picture.shape[1] - 2) // 8
    np.testing.assert_array_equal(picture[2:18, 2:18], colours[4])
    np.testing.assert_array_equal(picture[2:18, width + 2 : width + 18], colours[9])
    below = [row for row in range(18, 99) if np.array_equal(picture[row : row + 16, 2:18], GREY[4])]
    assert below
    assert (picture[18 : below[0]] < 128).any()  # the numbers of the images


@pytest.mark.parametrize("stop_at", ["round trip", "note"])
def test_a_stopped_command_goes_on(tokenizer, network, monkeypatch, stop_at):
    rng = np.random.default_rng(2)
    np.savez("images.npz", arr_0=rng.integers(0, 256, (40, 16, 16, 3), np.uint8))
    tokenizer(Lightened(by=10))
    options = ["--tokenizer", "x", "--inception", "x", "--batch-size", 4, "--picture"]
    whole, _ = run(*options, "whole.png")
    calls, round_trip, note = [], tokenizers._Rating.__call__, kept.write_json

    def stopping(call):
        def stopped(*args):
            calls.append(args)
            if len(calls) == 6:
                raise KeyboardInterrupt
            return call(*args)

        return stopped

    monkeypatch.setattr(tokenizers._Rating, "__call__", stopping(round_trip))
    if stop_at == "note":  # All but the note of the sixth batch is written.
        monkeypatch.setattr(tokenizers._Rating, "__call__", round_trip)
        monkeypatch.setattr(kept, "write_json", stopping(note))
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(*options, "p.png", "--keep", "kept")
    assert run(*options, "p.png", "--keep", "kept")[0] == whole
    assert len(calls) == 10 + 1
    assert Path("p.png").read_bytes() == Path("whole.png").read_bytes()

    for changed, line in (
        (["--llamagen-ssim"], "kept was made with SSIM's data range 255, not 510: name another"),
        (["--resize", 8], "kept was made with resize None, not 8: name another folder or remove"),
    ):
        with pytest.raises(SystemExit, match=line):
            run(*options, "q.png", "--keep", "kept", *changed)
    other = Lightened(by=10)
    other.params = {"by": np.array(10)}
    tokenizer(other)
    with pytest.raises(SystemExit, match="kept was made with tokenizer"):
        run(*options, "q.png", "--keep", "kept")
    np.savez("images.npz", arr_0=GREY)
    with pytest.raises(SystemExit, match="kept was made with count 40, not 21"):
        run(*options, "q.png", "--keep", "kept")


def test_images_are_read_once(tokenizer, network, monkeypatch):
    tokenizer(Lightened())
    np.savez("images.npz", arr_0=np.random.default_rng(0).integers(0, 9, (5, 32, 32, 3), np.uint8))
    reads, opened = [], image_sets.open_images

    def counting(*args):
        images = opened(*args)

        def read(start):
            for image in images.read(start):
                reads.append(image)
                yield image

        return dataclasses.replace(images, read=read)

    monkeypatch.setattr(image_sets, "open_images", counting)
    found, _ = run("--tokenizer", "x", "--inception", "x", "--resize", 16, size=32)
    assert found["rFID"] >= 0
    assert len(reads) == 5


def test_bad_input_is_one_line(tmp_path):
    export.write(tmp_path / "tokenizer", *tiny.vqgan())
    for options, message in (
        (["--tokenizer", "nope"], "--tokenizer: nope is neither a file"),
        (
            ["--tokenizer", "tokenizer", "--vgg16", "a"],
            "LPIPS needs both --vgg16 and --lpips-heads",
        ),
        (
            ["--tokenizer", "tokenizer", "--tile", "36"],
            "tile size 36 must be a multiple of the tokenizer's downsampling 8, and at least 32",
        ),
        (["--tokenizer", "tokenizer", "--tile", "24"], "tile size 24 must be a multiple of the"),
    ):
        with pytest.raises(SystemExit, match=f"^error: {message}"):
            run(*options)
    for size, options, message in (
        (17, [], "image size 17 must be a positive multiple"),
        ("32x20", [], "image size 32x20 must be a positive multiple"),
        ("32x", [], "argument --size: 32x must be WIDTHxHEIGHT"),
        ("32x16", ["--resize", 16], "--resize compares squares: leave it out"),
    ):
        with pytest.raises(SystemExit, match=f"^error: {message}"):
            run("--tokenizer", "tokenizer", *options, size=size)
