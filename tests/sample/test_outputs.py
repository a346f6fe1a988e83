"""What the command that samples images draws and writes, with tiny models."""

import dataclasses
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import tiny
from PIL import Image

import llamagen_jax as lg
from llamagen_jax import generation, sample, zoo
from llamagen_jax.sampling import dry_run
from llamagen_jax.sampling.settings import SamplingSettings
from llamagen_jax.weights.shapes import param_shapes
from tests.sample.command import fails, read, run, write_export


def test_an_npz_holds_images_labels_and_codes(models, tmp_path):
    out = tmp_path / "a.npz"
    run(*models, "--labels", "7", "2", "--count", "2", "--output", out)
    arrays = read(out)
    assert arrays.keys() == {"arr_0", "labels", "codes"}
    np.testing.assert_array_equal(arrays["labels"], [7, 7, 2, 2])
    assert (arrays["arr_0"].shape, arrays["arr_0"].dtype) == ((4, 32, 32, 3), np.uint8)
    assert (arrays["codes"].shape, arrays["codes"].dtype) == ((4, 16), np.int32)
    assert len(np.unique(arrays["codes"], axis=0)) == 4


def test_images_do_not_depend_on_the_batch_size(models, tmp_path):
    for name, size in (("a", 32), ("b", 5)):
        run(*models, "--batch-size", size, "--output", tmp_path / f"{name}.npz")
    a, b = read(tmp_path / "a.npz"), read(tmp_path / "b.npz")
    np.testing.assert_array_equal(a["labels"], np.arange(10))
    np.testing.assert_array_equal(a["codes"], b["codes"])
    # Convolutions round differently at another batch size.
    np.testing.assert_allclose(a["arr_0"].astype(int), b["arr_0"], atol=1)
    run(*models, "--seed", "1", "--output", tmp_path / "a.npz")
    assert not np.array_equal(read(tmp_path / "a.npz")["codes"], b["codes"])


def test_every_decoder_draws_the_same_images(models, tmp_path):
    draft = write_export(
        tmp_path / "draft", dataclasses.replace(tiny.LLAMA_CONFIG, n_layers=1, dim=16)
    )
    codes = []
    for options in (["plain"], ["jacobi"], ["speculative", "--draft", draft], ["auto"]):
        output = tmp_path / f"{options[0]}.npz"
        run(*models, "--decoder", *options, "--guidance-scale", "2", "--output", output)
        codes.append(read(output)["codes"])
    for others in codes[1:]:
        np.testing.assert_array_equal(others, codes[0])
    assert "needs a draft" in fails(*models, "--decoder", "speculative")
    assert "'plain' uses no draft" in fails(*models, "--draft", draft)


def test_a_dry_run_tells_the_memory_and_draws_nothing(models, tmp_path, capsys):
    options = ["--batch-size", "4", "--guidance-scale", "2", "--dtype", "bfloat16", "--dry-run"]
    run(*models, *options, "--output", tmp_path / "a.png")
    printed = capsys.readouterr().out
    assert not (tmp_path / "a.png").exists()
    assert [line.split()[0] for line in printed.splitlines()] == [
        "GiB",
        "weights",
        "cache",
        "the",
        "peak",
        "peak,",
    ]
    assert "expected a transformer" in fails(*models, "--generator", models[3], "--dry-run")


def test_weights_of_int8(models, tmp_path):
    run(*models, "--weights", "int8", "--output", tmp_path / "a.npz")
    model, params = zoo.load(models[1])
    labels = np.arange(10)
    rounded = lg.generate(*model.for_decoding(params, "int8"), labels, seed=0)
    np.testing.assert_array_equal(read(tmp_path / "a.npz")["codes"], rounded)
    assert np.any(rounded != lg.generate(model, params, labels, seed=0))


@pytest.mark.parametrize(
    ("weights", "saved"),
    # Of each of the matrices 3 bytes a weight, less a float32 scale for each output.
    [
        ("float", 0),
        (
            "int8",
            3 * (2 * (4 * 768 + 3 * 2048) + 16384) * 768 - 4 * (2 * (5 * 768 + 2 * 2048) + 16384),
        ),
    ],
)
def test_memory_is_that_of_weights_and_cache(weights, saved):
    config = dataclasses.replace(zoo.MODELS["GPT-B"], n_layers=2)
    settings = SamplingSettings(0, guidance_scale=2.0, top_k=2000)
    memory = dry_run.analyse(zoo.build(config), 4, settings, weights)
    parameters = sum(np.prod(shape) for shape in param_shapes(config).values())
    assert memory["weights"] == 4 * parameters - saved
    assert memory["cache"] == 4 * 2 * 8 * 12 * 257 * 64 * 2
    assert memory["peak"] < 1.15 * (memory["weights"] + memory["cache"])


def test_images_are_not_held_at_once(models, tmp_path, monkeypatch):
    """All of them would be 25 MB."""
    images = np.zeros((8, 32, 32, 3), np.uint8)

    def generate(model, params, tokenizer, condition, settings, **rows):
        codes = np.zeros((len(condition), model.config.code_length), np.int32)
        return generation.Samples(codes, images[: len(condition)])

    monkeypatch.setattr(generation, "generate_images", generate)
    tracemalloc.start()
    run(*models, "--count", "800", "--batch-size", "8", "--output", tmp_path / "a.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert read(tmp_path / "a.npz")["arr_0"].shape == (8000, 32, 32, 3)
    assert peak < 12e6


def test_grids_folders_and_arrays_hold_the_same_images(models, tmp_path):
    for name in ("a.npz", "a.png", "wide.png", "folder"):
        columns = ["--columns", "3"] if name == "wide.png" else []
        labels = ["--labels", "1", "2", "--count", "2"]
        run(*models, *labels, "--output", tmp_path / name, *columns)
    images = read(tmp_path / "a.npz")["arr_0"]
    names = sorted(path.name for path in (tmp_path / "folder").iterdir())
    assert names == [f"00000{i}_class_{label}.png" for i, label in enumerate([1, 1, 2, 2])]
    for name, image in zip(names, images, strict=True):
        np.testing.assert_array_equal(Image.open(tmp_path / "folder" / name), image)
    cells = [images[0], images[1], images[2], images[3]]
    for name, columns in (("a.png", 2), ("wide.png", 3)):
        picture = np.asarray(Image.open(tmp_path / name))
        assert picture.shape == (2 + 34 * 2, 2 + 34 * columns, 3)
        for i, image in enumerate(cells):
            top, left = 2 + 34 * (i // columns), 2 + 34 * (i % columns)
            np.testing.assert_array_equal(picture[top : top + 32, left : left + 32], image)


def test_resize(models, tmp_path):
    run(*models, "--labels", "3", "--resize", "20", "--output", tmp_path / "a.npz")
    assert read(tmp_path / "a.npz")["arr_0"].shape == (1, 20, 20, 3)


def test_impossible_settings_and_outputs_are_named(models, tmp_path):
    for option in ("--count", "--batch-size", "--columns", "--resize"):
        assert f"argument {option}: 0 must be a whole number from 1 up" in fails(
            *models, option, "0"
        )
    for option in ("--guidance-scale", "--temperature", "--top-p"):
        for value in ("nan", "-inf", "x"):
            line = fails(*models, f"{option}={value}")
            assert f"argument {option}: {value} must be a finite number" in line
    for seed in (-1, 2**64, 10**20, 1.5):
        line = fails(*models, f"--seed={seed}")
        assert f"seed={seed} must be a whole number from 0 to 2^64 - 1" in line
    line = fails("--generator", tmp_path / "none")
    assert line.startswith(f"error: --generator: {tmp_path}/none is neither a file, a folder nor")
    line = fails(*models[:2], "--tokenizer", "gs://models/vq")
    assert "argument --tokenizer: gs://models/vq is an address" in line
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "a.png", tmp_path / "file" / "folder"):
        assert f"cannot write {path}" in fails(*models, "--output", path)
    (tmp_path / "folder").mkdir()
    line = fails(*models, "--output", tmp_path / "folder")
    assert "folder exists already" in line
    line = fails(*models, "--output", tmp_path / "a.png", "--top-p", "2")
    assert "top_p=2.0 must be in (0, 1]" in line
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}


def test_the_command_line():
    shown = subprocess.run(
        [sys.executable, sample.__file__, "--help"], capture_output=True, text=True, check=True
    )
    assert "--guidance-scale" in shown.stdout
    assert shown.stderr == ""
