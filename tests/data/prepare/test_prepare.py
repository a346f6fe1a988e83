"""The command that prepares data: codes to train on, folders of images to codes and back."""

import dataclasses
import json
import logging
import subprocess
import sys

import golden_weights
import jax
import numpy as np
import pytest
import tiny
from PIL import Image

from llamagen_jax import zoo
from llamagen_jax.data import transforms
from llamagen_jax.data.prepare import __main__ as prepare
from llamagen_jax.data.records import Manifest, write_dataset
from llamagen_jax.data.sources import ArrayRecordSource, ImageFolderSource
from llamagen_jax.images import from_uint8, to_uint8
from llamagen_jax.models.vqgan import VQGAN
from llamagen_jax.weights import export
from llamagen_jax.weights.integrity import weights_hash

MODEL = VQGAN(tiny.VQGAN_CONFIG)
PARAMS = golden_weights.params(tiny.VQGAN_CONFIG)
# Images of equal size are one batch on the eight devices; sizes compile, so there are few.
SIZES = {"b/2.PNG": (16, 24), "a 1.png": (16, 16), "b/1.webp": (16, 16), "é.png": (16, 24)}


def run(*args):
    prepare.main([str(arg) for arg in args])


def fails(*args) -> str:
    """The one line that the command ends with."""
    return tiny.error_line(run, *args)


def write_image(path, size, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(path, **({"lossless": True} if path.suffix == ".webp" else {}))
    return pixels


def read(path):
    with np.load(path) as file:
        return dict(file)


@jax.jit
def encode(images):
    return MODEL.apply({"params": PARAMS}, from_uint8(images), method="encode")


@jax.jit
def decode(codes):
    return MODEL.apply({"params": PARAMS}, codes, method="decode")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tokenizer"
    export.write(folder, MODEL, PARAMS)
    return folder


@pytest.fixture
def images(tmp_path):
    """A folder of images of two sizes, and a text."""
    for seed, (name, size) in enumerate(SIZES.items()):
        write_image(tmp_path / "images" / name, size, seed)
    (tmp_path / "images" / "notes.txt").write_text("no image")
    return tmp_path / "images"


@pytest.mark.parametrize("batch_size", [1, 32])
def test_encode_and_decode_agree_with_the_model(tokenizer, images, tmp_path, batch_size):
    out, options = tmp_path / "codes.npz", ["--tokenizer", tokenizer, "--batch-size", batch_size]
    run("encode", images, out, *options)
    codes = read(out)
    made_by = json.loads(str(codes.pop("tokenizer")))
    assert made_by["sha256"] == weights_hash(PARAMS)
    assert codes.keys() == SIZES.keys()
    run("decode", out, tmp_path / "decoded", *options)
    decoded = tmp_path / "decoded"
    names = {path.relative_to(decoded).as_posix() for path in decoded.rglob("*.*")}
    assert names == {"a 1.png", "b/1.png", "b/2.png", "é.png"}
    for name, grid in codes.items():
        pixels = np.asarray(Image.open(images / name))
        assert grid.dtype == np.uint16
        np.testing.assert_array_equal(grid, encode(pixels[None])[0])
        image = Image.open((decoded / name).with_suffix(".png"))
        np.testing.assert_allclose(np.asarray(image, int), to_uint8(decode(grid[None]))[0], atol=1)


def test_a_crop_makes_sizes_equal(tokenizer, images, tmp_path):
    write_image(images / "odd.jpg", (21, 40))
    line = fails("encode", images, tmp_path / "codes.npz", "--tokenizer", tokenizer)
    assert "1 of 5 images, such as " in line
    assert "odd.jpg (21x40), have sides" in line
    assert line.endswith("downsampling 8 does not divide; crop all with --image-size")
    size = ["--image-size", "16"]
    run("encode", images, tmp_path / "codes.npz", "--tokenizer", tokenizer, *size)
    codes = read(tmp_path / "codes.npz")
    assert len(codes) == 5 + 1
    for name in ("odd.jpg", "b/2.PNG"):
        crop = transforms.center_crop(Image.open(images / name), 16)
        np.testing.assert_array_equal(codes[name], encode(crop[None])[0])


@pytest.mark.parametrize("size", [[], ["--image-size", "16"]])
def test_broken_images_are_skipped_and_counted(tokenizer, images, tmp_path, capsys, caplog, size):
    path = images / "b" / "2.PNG"
    path.write_bytes(path.read_bytes()[:200])
    (images / "c.jpg").write_text("<html>")
    with caplog.at_level(logging.WARNING, "absl"):
        run("encode", images, tmp_path / "codes.npz", "--tokenizer", tokenizer, *size)
    assert read(tmp_path / "codes.npz").keys() == {"a 1.png", "b/1.webp", "é.png", "tokenizer"}
    assert f"wrote codes of 3 images to {tmp_path / 'codes.npz'}; skipped 2" in (
        capsys.readouterr().out
    )
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 3
    assert "what is no image: 1 .txt" in messages[0]
    for name in ("2.PNG", "c.jpg"):
        assert any(f"{name}: " in message for message in messages)


def test_check_tells_what_is_whole(tokenizer, images, tmp_path, capsys):
    codes = tiny.write_codes(tmp_path / "codes")
    run("encode", images, tmp_path / "a.npz", "--tokenizer", tokenizer, "--image-size", 16)
    for path, told, file in (
        (codes, "all records are whole", "00000.array_record"),
        (tokenizer, "the export is whole", "params.safetensors"),
        (tokenizer / "params.safetensors", "tensors are whole", ""),
        (tmp_path / "a.npz", "5 arrays are whole", ""),
    ):
        run("check", path)
        assert told in capsys.readouterr().out
        tiny.flip_bit(path / file)
        line = fails("check", path)
        assert str(path / file) in line
        assert any(word in line for word in ("changed", "damaged", "cannot be opened"))
        tiny.flip_bit(path / file)
    assert "is none of the folders and files" in fails("check", images)
    assert "does not exist" in fails("check", tmp_path / "none")


def test_nothing_to_encode(tokenizer, tmp_path):
    out = ["--tokenizer", tokenizer, tmp_path / "codes.npz"]
    assert "nowhere is no folder with images" in fails("encode", tmp_path / "nowhere", *out)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_text("<html>")
    assert "every image in" in fails("encode", tmp_path / "images", *out)
    write_image(tmp_path / "images" / "a.jpg", (16, 16))
    assert "decode to the same .png" in fails("encode", tmp_path / "images", *out)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_existing_outputs_are_kept(tokenizer, images, tmp_path):
    (tmp_path / "codes.npz").write_text("mine")
    line = fails("encode", images, tmp_path / "codes.npz", "--tokenizer", tokenizer)
    assert "codes.npz exists already" in line
    assert (tmp_path / "codes.npz").read_text() == "mine"


def test_wrong_models_and_sizes(tokenizer, images, tmp_path):
    config = tiny.LLAMA_CONFIG
    export.write(tmp_path / "generator", zoo.build(config), golden_weights.params(config))
    line = fails("encode", images, tmp_path / "a", "--tokenizer", tmp_path / "generator")
    assert line.endswith("generator is a class-conditional transformer; expected a tokenizer")
    encode_images = ["encode", images, tmp_path / "a", "--tokenizer", tokenizer]
    line = fails(*encode_images, "--image-size", 12)
    assert line.endswith(
        "image size 12 must be a positive multiple of the tokenizer's downsampling 8"
    )
    for option in ("--image-size", "--batch-size"):
        for value in (0, -8, "x"):
            line = fails(*encode_images, f"{option}={value}")
            assert f"argument {option}: {value} must be a whole number from 1 up" in line
    large = dataclasses.replace(tiny.VQGAN_CONFIG, codebook_size=2**17)
    export.write(tmp_path / "large", zoo.build(large), golden_weights.params(large))
    line = fails("encode", images, tmp_path / "a", "--tokenizer", tmp_path / "large")
    assert "has 131072 codes; at most 65536 can be stored" in line
    assert not (tmp_path / "a").exists()


def test_files_that_do_not_decode(tokenizer, images, tmp_path):
    def line(path, tokenizer=tokenizer):
        return fails("decode", path, tmp_path / "decoded", "--tokenizer", tokenizer)

    out = tmp_path / "codes.npz"
    assert f"there is no file {out}" in line(out)
    run("encode", images, out, "--tokenizer", tokenizer, "--image-size", 16)
    unfit = fails("decode", out, tmp_path / "decoded", "--tokenizer", tokenizer, "--tile", 41)
    assert "tile size 41 must be a multiple of the tokenizer's downsampling 8" in unfit
    arrays, whole = read(out), out.read_bytes()
    out.write_bytes(whole[: len(whole) // 2])
    assert "codes.npz is damaged or not written by" in line(out)
    np.save(tmp_path / "a.npy", np.zeros(3))
    assert "a.npy is damaged or not written by" in line(tmp_path / "a.npy")
    np.savez(out, **arrays, **{"../a.png": arrays["é.png"]})
    assert "would write outside of the output folder: ../a.png" in line(out)
    out.write_bytes(whole)
    other = {**PARAMS, "quantizer": {"codebook": -PARAMS["quantizer"]["codebook"]}}
    export.write(tmp_path / "other", MODEL, other)
    assert "was made by another tokenizer" in line(out, tmp_path / "other")
    assert not (tmp_path / "decoded").exists()


@pytest.fixture
def codes_command(tokenizer, tmp_path):
    """The command for ten images of two classes, one of them broken, as a list without OUTPUT."""
    for label, name in enumerate(("cat", "dog")):
        for i in range(5):
            write_image(tmp_path / "images" / name / f"{i}.png", (20 + i, 30), 10 * label + i)
    (tmp_path / "images" / "dog" / "3.png").write_text("<html>")
    where = ["--source", "image_folder", "--location", tmp_path / "images"]
    return ["codes", *where, "--tokenizer", tokenizer, "--image-size", "16", "--batch-size", "3"]


@pytest.mark.parametrize("kind", ["center", "center-flip", "ten-crop"])
def test_codes_to_train_on(codes_command, tmp_path, monkeypatch, capsys, kind):
    monkeypatch.setattr(ImageFolderSource, "credit", "Drawn by others.")
    crops, crop_range = {
        "center": (1, None),
        "center-flip": (2, None),
        "ten-crop": (10, 1.1),
    }[kind]
    run(*codes_command, tmp_path / "codes", *([] if kind == "center" else ["--crops", kind]))
    assert "wrote 9 records" in (told := capsys.readouterr().out)
    assert "skipped 1" in told
    manifest = Manifest.read(tmp_path / "codes")
    assert manifest.class_names == ("cat", "dog")
    assert manifest.credit == "Drawn by others."
    assert (manifest.image_size, manifest.code_shape) == (16, (crops, 4))
    assert (manifest.crops, manifest.crop_range) == (kind, crop_range)
    assert manifest.tokenizer.sha256 == weights_hash(PARAMS)
    records = list(ArrayRecordSource(tmp_path / "codes"))
    assert [record["label"] for record in records] == [0] * 5 + [1] * 4
    for record, name in ((records[2], "cat/2.png"), (records[8], "dog/4.png")):
        image = Image.open(tmp_path / "images" / name)
        expected = encode(transforms.code_crops(image, 16, kind, crop_range))
        assert record["codes"].dtype == np.uint16
        np.testing.assert_array_equal(record["codes"], expected.reshape(crops, -1))


def test_codes_of_several_sizes(codes_command, tmp_path, capsys):
    command = [part for part in codes_command if part not in ("--image-size", "16")]
    for i, size in enumerate([(20, 40), (40, 20), (20, 20), (64, 33), (50, 99)]):
        write_image(tmp_path / "images" / "ant" / f"{i}.png", size, i)
    sizes = {(24, 16): (2, 3), (16, 16): (2, 2), (16, 24): (3, 2)}
    told = [f"{width}x{height}" for width, height in sizes]
    options = ["--crops", "center-flip", "--shard-size", "7"]
    run(*command, tmp_path / "codes", "--sizes", *told, *options)
    assert "wrote 14 records" in capsys.readouterr().out
    source = ArrayRecordSource(tmp_path / "codes")
    manifest = source.manifest
    assert (manifest.image_size, manifest.code_shape) == (None, (2, None))
    assert manifest.grids == ((2, 2), (2, 3), (3, 2))
    grids = [tuple(record["grid"]) for record in source]
    assert [grid for grid, count in manifest.grid_runs for _ in range(count)] == grids
    # Within a shard each grid comes once.
    assert [len(shard.grids) for shard in manifest.shards] == [3, 1, 1]
    ants = [record for record in source if record["label"] == 0]
    assert [tuple(record["grid"]) for record in ants] == [(2, 2), (2, 3), (2, 3), (3, 2), (3, 2)]
    image = Image.open(tmp_path / "images" / "ant" / "3.png")
    expected = encode(transforms.code_crops(image, (16, 24), "center-flip"))
    np.testing.assert_array_equal(ants[2]["codes"], expected.reshape(2, -1))


def test_wrong_sizes_of_codes(codes_command, tmp_path):
    command = [part for part in codes_command if part not in ("--image-size", "16")]
    for sizes, message in (
        (["16x12"], "image size 16x12 must be a positive multiple of the tokenizer's downsampling"),
        (["16x16", "16x16"], "--sizes names a size twice: 16x16, 16x16"),
        (["16"], "16 must be WIDTHxHEIGHT in pixels, such as 384x256"),
        (["16x0"], "16x0 must be WIDTHxHEIGHT in pixels, such as 384x256"),
    ):
        assert message in fails(*command, tmp_path / "codes", "--sizes", *sizes)
    assert "not allowed with" in fails(*codes_command, tmp_path / "codes", "--sizes", "16x16")


def test_codes_are_shared_by_processes_and_gone_on_with(codes_command, tmp_path, capsys):
    command = [*codes_command, tmp_path / "codes", "--shard-size", "4", "--crops", "ten-crop"]
    processes = ["--process-count", "2", "--process-index"]
    run(*command, *processes, 1)
    assert "finished share 1 of 2; other shares are missing" in capsys.readouterr().out
    for change, message in (
        (["--crop-range", "1.05"], "begun with crop_range=1.1, not 1.05"),
        (["--crops", "center-flip"], "begun with crops='ten-crop', not 'center-flip'"),
        (["--image-size", "24"], "begun with image_size=16, not 24"),
        (["--shard-size", "5"], "begun with shard_size=4, not 5"),
        (["--skip-small"], "begun with skip_small=False, not True"),
    ):
        assert message in fails(*command, *change)
    other = {**PARAMS, "quantizer": {"codebook": -PARAMS["quantizer"]["codebook"]}}
    export.write(tmp_path / "other", MODEL, other)
    assert "begun with tokenizer=" in fails(*command, "--tokenizer", tmp_path / "other")
    run(*command, *processes, 0)
    assert "wrote 9 records" in (told := capsys.readouterr().out)
    assert "skipped 1" in told
    assert [record["label"] for record in ArrayRecordSource(tmp_path / "codes")] == [0] * 5 + [
        1
    ] * 4
    assert "codes exists already" in fails(*command)


def test_small_images_are_left_out_if_asked(codes_command, tmp_path, capsys, caplog):
    images = tmp_path / "images" / "cat"
    write_image(images / "1.png", (15, 40))
    write_image(images / "2.png", (40, 15))
    write_image(images / "3.png", (16, 16))
    with caplog.at_level(logging.WARNING, "absl"):
        run(*codes_command, tmp_path / "codes", "--skip-small")
    assert f"wrote 7 records to {tmp_path / 'codes'}; skipped 3" in capsys.readouterr().out
    assert f"skipped '{images / '1.png'}': ValueError: 15x40 px are less than 16" in caplog.text
    assert [record["label"] for record in ArrayRecordSource(tmp_path / "codes")] == [0] * 3 + [
        1
    ] * 4


def test_wrong_options_of_codes(codes_command, tmp_path):
    command = [*codes_command, tmp_path / "codes"]
    assert "crop range 1.1 is for ten-crop only" in fails(*command, "--crop-range", 1.1)
    for value in (0.9, 11):
        line = fails(*command, "--crops", "ten-crop", "--crop-range", value)
        assert "must be at least 1 and at most 10" in line
    for value in ("nan", "inf"):
        assert f"{value} must be a finite number" in fails(*command, "--crop-range", value)
    assert "process index 2 must be" in fails(*command, "--process-index", 2)
    assert "--shard-size: 0 must be" in fails(*command, "--shard-size", 0)
    assert "image size 12 must be" in fails(*command, "--image-size", 12)
    assert not (tmp_path / "codes.partial").exists()


def test_codes_of_records_that_are_no_images(codes_command, tmp_path):
    write_dataset(tmp_path / "captions", [{"captions": ["a cat"]}])
    where = ["--source", "array_record", "--location", tmp_path / "captions"]
    line = fails(*codes_command, tmp_path / "codes", *where)
    assert "codes are made of images with labels or captions, not of: captions" in line


@pytest.mark.parametrize("labels", [{}, {"label": 7}])
def test_codes_of_images_with_captions(codes_command, tmp_path, capsys, caplog, labels):
    paths = sorted((tmp_path / "images").rglob("*.png"))[:4]
    captions = [{"long": f"a long {i}", "short": f"{i}"} for i in range(4)]
    captions[1] = {}
    fields = [{"captions": c} | labels for c in captions]
    images = [path.read_bytes() for path in paths]
    records = [{"image": image} | rest for image, rest in zip(images, fields, strict=True)]
    write_dataset(tmp_path / "pairs", records)
    where = ["--source", "array_record", "--location", tmp_path / "pairs"]
    with caplog.at_level(logging.WARNING, "absl"):
        run(*codes_command, tmp_path / "codes", *where)
    kept = [0, 1, 2, 3] if labels else [0, 2, 3]
    assert f"skipped {4 - len(kept)}" in capsys.readouterr().out
    assert ("it has no caption" in caplog.text) == (not labels)
    found = list(ArrayRecordSource(tmp_path / "codes"))
    for i, record in zip(kept, found, strict=True):
        crop = transforms.center_crop(Image.open(paths[i]), 16)
        np.testing.assert_array_equal(record.pop("codes")[0], encode(crop[None])[0].ravel())
        assert record == fields[i]


def test_the_command_line():
    command = [sys.executable, "-m", "llamagen_jax.data.prepare"]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    for name in ("codes", "text", "encode", "decode"):
        assert name in shown.stdout
    assert shown.stderr == ""
