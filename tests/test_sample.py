"""The command that samples images, in process, with tiny models."""

import dataclasses
import logging
import os
import subprocess
import sys
import tracemalloc

import golden_weights
import numpy as np
import pytest
import tiny
from PIL import Image

import llamagen_jax as lg
from llamagen_jax import generation, sample, seeds, zoo
from llamagen_jax.sampling import dry_run
from llamagen_jax.sampling.settings import SamplingSettings
from llamagen_jax.weights import export
from llamagen_jax.weights.shapes import param_shapes

# Configurations that the tensors tell in full.
CLASS = dataclasses.replace(tiny.LLAMA_CONFIG, num_classes=1000, multiple_of=96)
TEXT = dataclasses.replace(tiny.TEXT_CONFIG, condition_length=16)
TOKENIZER = tiny.VQGAN_CONFIG


def run(*args):
    sample.main([str(arg) for arg in args])


def fails(*args) -> str:
    """The one line that the command ends with."""
    return tiny.error_line(run, *args)


def read(path):
    with np.load(path) as file:
        return dict(file)


def write_export(folder, config, **metadata):
    export.write(folder, zoo.build(config), golden_weights.params(config), **metadata)
    return folder


def write_original(path, config, **extra):
    """A file of the original's layout, by PyTorch or as safetensors."""
    tensors = golden_weights.state_dict(config) | extra
    if path.suffix == ".safetensors":
        tiny.write_tensors(path, tensors)
    else:
        torch = pytest.importorskip("torch")
        torch.save({"model": {n: torch.from_numpy(t) for n, t in tensors.items()}}, path)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Options that name exports of a generator and its tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    names = [f"digit {i}" for i in range(10)]
    generator = write_export(folder / "generator", tiny.LLAMA_CONFIG, class_names=names)
    return [
        "--generator",
        generator,
        "--tokenizer",
        write_export(folder / "tokenizer", TOKENIZER),
    ]


@pytest.fixture(scope="module")
def spiece(tmp_path_factory):
    pytest.importorskip("sentencepiece")
    pytest.importorskip("ftfy")
    return tiny.write_spiece(tmp_path_factory.mktemp("spiece"))


@pytest.fixture(scope="module")
def text_models(models, spiece, tmp_path_factory):
    """Options that name a text-conditional generator, its tokenizer and its text encoder."""
    folder = tmp_path_factory.mktemp("text")
    generator = write_export(folder / "t2i", TEXT)
    encoder = tiny.write_t5(folder / "tiny-t5", spiece)
    return [*models, "--generator", generator, "--text-encoder", encoder]


@pytest.fixture
def published(monkeypatch):
    """Gives published names to tiny models, so that their files are small."""
    monkeypatch.setitem(zoo.MODELS, "GPT-L", CLASS)
    record = dataclasses.replace(zoo.PUBLISHED["c2i_L_384"], config=CLASS)
    for name, stand_in in {
        "c2i_L_384": record,
        "c2i_L_32": dataclasses.replace(record, resolution=32),
        "vq_ds16_c2i": dataclasses.replace(record, config=TOKENIZER, resolution=None),
    }.items():
        monkeypatch.setitem(zoo.PUBLISHED, name, stand_in)


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


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


@pytest.mark.parametrize("output", ["a.npz", "folder"])
def test_a_stopped_command_goes_on(models, tmp_path, monkeypatch, capsys, output):
    command = [*models, "--count", "2", "--seed", "5", "--batch-size", "8", "--output"]
    run(*command, tmp_path / f"whole_{output}")
    draw, drawn = generation.generate_images, []

    def stop_after(batches):
        def generate(*args, **rows):
            if len(drawn) == batches:
                raise KeyboardInterrupt
            drawn.append(rows["sample_ids"])
            return draw(*args, **rows)

        return generate

    monkeypatch.setattr(generation, "generate_images", stop_after(2))
    with pytest.raises(KeyboardInterrupt):
        run(*command, tmp_path / output)
    assert not (tmp_path / output).exists()
    parts = tmp_path / f"{output}.parts"
    assert len(list(parts.glob("*.npz"))) == 2
    line = fails(*command, tmp_path / output, "--top-k", "3")
    assert f"{parts} holds images of another command, with top_k 0 instead of 3: go on" in line
    line = fails(*models, "--labels", "1", "--seed", "5", "--output", tmp_path / output)
    assert "with count 2 instead of 1" in line
    # What was being written when it was killed.
    (parts / "00000016.npz.partial").write_bytes(b"PK")

    monkeypatch.setattr(generation, "generate_images", stop_after(3))
    run(*command, tmp_path / output)
    assert "going on with image 16 of 20" in capsys.readouterr().out
    assert not parts.exists()
    if output == "a.npz":
        found, expected = read(tmp_path / output), read(tmp_path / f"whole_{output}")
        assert list(found) == list(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, strict=True)
    else:
        found, expected = (
            {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
            for name in (output, f"whole_{output}")
        )
        assert found == expected


def test_a_damaged_part_is_named(models, tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "write_npz", lambda *args, **subjects: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(*models, "--output", tmp_path / "a.npz")
    part = tmp_path / "a.npz.parts" / "00000000.npz"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    assert f"{part} is damaged: remove it" in fails(*models, "--output", tmp_path / "a.npz")


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


@pytest.fixture
def picture_and_mask(tmp_path):
    """Two files, the mask white in a square of it, and the options that name them."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    mask = np.zeros((32, 32), np.uint8)
    mask[9:20, 10:30] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return pixels, mask > 0, ["--image", tmp_path / "a.png", "--mask", tmp_path / "mask.png"]


def test_a_part_of_an_image(models, picture_and_mask, tmp_path):
    pixels, mask, options = picture_and_mask
    command = [*models, "--labels", "3", "1", "--count", "2"]
    for name, more in (("a.npz", []), ("jacobi.npz", ["--decoder", "jacobi"]), ("folder", [])):
        run(*command, *options, *more, "--output", tmp_path / name)
    found = read(tmp_path / "a.npz")
    images, codes = found["arr_0"], found["codes"].reshape(4, 4, 4)
    np.testing.assert_array_equal(images[:, ~mask], np.tile(pixels[~mask], (4, 1, 1)))
    kept = np.ones((4, 4), bool)
    kept[1:3, 1:] = False
    assert np.all(codes[:, kept] == codes[:1, kept])
    assert len(np.unique(codes[:, ~kept], axis=0)) == 4
    np.testing.assert_array_equal(read(tmp_path / "jacobi.npz")["codes"], found["codes"])
    png = Image.open(tmp_path / "folder" / "000002_class_1.png")
    np.testing.assert_array_equal(png, images[2])
    assert (png.text["image"], png.text["mask"]) == ("a.png", "mask.png")


def test_a_stopped_edit_goes_on_with_its_image_alone(models, picture_and_mask, monkeypatch):
    pixels, _, options = picture_and_mask
    monkeypatch.setattr(sample, "write_npz", lambda *args, **subjects: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(*models, *options, "--output", "x.npz")
    Image.fromarray(255 - pixels).save("a.png")
    line = fails(*models, *options, "--output", "x.npz")
    assert "x.npz.parts holds images of another command, with image and mask" in line


def test_images_and_masks_that_cannot_be_used(models, picture_and_mask, tmp_path):
    _, mask, options = picture_and_mask
    image = options[:2]
    assert "--mask is of an image: give --image" in fails(*models, *options[2:])
    assert "--resize does not go with --image" in fails(*models, *options, "--resize", "64")
    line = fails(*models, "--image", "none.png")
    assert line == "error: --image none.png cannot be read: No such file or directory"
    assert "a.png: nothing is transparent: give a mask" in fails(*models, *image)
    Image.fromarray(mask[:16]).save("half.png")
    line = fails(*models, *image, "--mask", "half.png")
    assert line == "error: --mask half.png: 32x16 px are not the image's 32x32 px"


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_of_the_original_and_exports_give_the_same(published, tmp_path, suffix):
    generator = write_original(tmp_path / f"c2i_L_32{suffix}", CLASS)
    tokenizer = write_original(tmp_path / f"vq_ds16_c2i{suffix}", TOKENIZER)
    write_export(tmp_path / "generator", CLASS)
    write_export(tmp_path / "tokenizer", TOKENIZER)
    for name, labels, weights in (
        ("a", ["golden retriever", "OTTER", "red panda", "974"], (generator, tokenizer)),
        ("b", ["207", "360", "387", "974"], (tmp_path / "generator", tmp_path / "tokenizer")),
    ):
        options = ["--generator", weights[0], "--tokenizer", weights[1], "--labels", *labels]
        options += ["--guidance-scale", "4", "--top-k", "20"]
        run(*options, "--output", tmp_path / f"{name}.npz")
    a, b = read(tmp_path / "a.npz"), read(tmp_path / "b.npz")
    np.testing.assert_array_equal(a["labels"], [207, 360, 387, 974])
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])


def test_class_names(published, models, tmp_path):
    options = [*models, "--output", tmp_path / "a.npz"]
    run(*options, "--labels", "Digit 4", "2")
    np.testing.assert_array_equal(read(tmp_path / "a.npz")["labels"], [4, 2])
    assert "such as 3 'digit 3'" in fails(*options, "--labels", "dgit 3")
    assert "classes are 0 to 9" in fails(*options, "--labels", "10")
    assert "'digit' is ambiguous" in fails(*options, "--labels", "digit")
    path = write_original(tmp_path / "c2i_L_32.safetensors", CLASS)
    line = fails(*models, "--generator", path, "--labels", "golden retreiver")
    assert "such as 207 'golden retriever'" in line


def test_models_of_the_wrong_kind(published, models, tmp_path):
    generator = write_original(tmp_path / "c2i_L_32.safetensors", CLASS)
    tokenizer = write_original(tmp_path / "vq_ds16_c2i.safetensors", TOKENIZER)
    assert fails(*models, "--generator", tokenizer).endswith(
        "vq_ds16_c2i.safetensors is a tokenizer; expected a transformer"
    )
    assert fails(*models, "--tokenizer", generator).endswith(
        "c2i_L_32.safetensors is a class-conditional transformer; expected a tokenizer"
    )
    assert "give --tokenizer" in fails("--generator", generator)


def test_models_that_do_not_fit(published, models, tmp_path):
    table = np.zeros((1 + 5 * 5, 4, 2), np.float32)
    path = write_original(tmp_path / "c2i_L_384.safetensors", CLASS, freqs_cis=table)
    assert "has codes on a 5x5 grid; expected 4x4" in fails(*models, "--generator", path)
    write_original(path, CLASS)
    assert "makes images of 32 px, unlike its name" in fails(*models, "--generator", path)
    other = write_export(tmp_path / "other", dataclasses.replace(TOKENIZER, codebook_size=64))
    assert "has 64 codes but the generator 32" in fails(*models, "--tokenizer", other)


class Code:
    def __reduce__(self):
        return os.mkdir, ("code-was-run",)


def test_files_that_are_no_checkpoints(published, models, tmp_path):
    torch = pytest.importorskip("torch")
    path = write_original(tmp_path / "c2i_L_32.pt", CLASS)
    path.write_bytes(path.read_bytes()[:5000])
    assert "c2i_L_32.pt is truncated or no" in fails(*models, "--generator", path)
    path.write_text("<html>")
    assert "c2i_L_32.pt is truncated or no" in fails(*models, "--generator", path)
    torch.save({"model": Code()}, path)
    assert "pickled code (posix.mkdir)" in fails(*models, "--generator", path)
    assert not (tmp_path / "code-was-run").exists()
    line = fails(*models, "--generator", "c2i_L_348.pt")
    assert "neither a file, a folder nor a published name" in line


def test_images_of_prompts_depend_on_their_number_and_prompt_alone(text_models, tmp_path):
    prompts = ["a red circle", "a blue square left of a cat", "ünïcödé photo", "a dog", "a red cat"]
    (tmp_path / "prompts.csv").write_text("PROMPT\n" + "\n".join(prompts))
    options = [*text_models, "--count", "2", "--output"]
    run(*options, tmp_path / "a.npz", "--prompts", *prompts)
    run(*options, tmp_path / "b.npz", "--prompt-file", "prompts.csv", "--batch-size", "8")
    changed = [prompts[0], "a dog", *prompts[2:]]
    run(*options, tmp_path / "c.npz", "--prompts", *changed, "--batch-size", "8")
    a, b, c = (read(tmp_path / f"{name}.npz") for name in "abc")
    assert a.keys() == {"arr_0", "prompts", "codes"}
    assert a["prompts"].tolist() == np.repeat(prompts, 2).tolist()
    assert (a["arr_0"].shape, a["arr_0"].dtype) == ((10, 32, 32, 3), np.uint8)
    assert len(np.unique(a["codes"], axis=0)) == 10
    np.testing.assert_array_equal(a["codes"], b["codes"])
    changed = np.any(a["codes"] != c["codes"], axis=1)
    np.testing.assert_array_equal(np.flatnonzero(changed), [2, 3])


def test_a_run_names_its_tokenizer_and_text_encoder(text_models, tmp_path):
    options = dict(zip(text_models[::2], text_models[1::2], strict=True))
    encoders = {"tokenizer": options["--tokenizer"], "text_encoder": options["--text-encoder"]}
    generator = write_export(tmp_path / "run", TEXT, **{k: str(v) for k, v in encoders.items()})
    prompts = ["--prompts", "a cat", "--output"]
    run("--generator", generator, *prompts, tmp_path / "a.npz")
    run(*text_models, *prompts, tmp_path / "b.npz")
    np.testing.assert_array_equal(
        read(tmp_path / "a.npz")["codes"], read(tmp_path / "b.npz")["codes"]
    )


def test_the_generator_reads_features_and_their_mask(text_models, monkeypatch):
    calls = []

    def generate(model, params, condition, **arguments):
        calls.append({"condition": condition, **arguments})
        return np.zeros((len(condition), model.config.code_length), int)

    monkeypatch.setattr(generation, "generate", generate)
    prompts = ["a red circle left of a cat", "a dog"]
    run(*text_models, "--prompts", *prompts, "--count", "4")
    encoder = lg.TextEncoder.load(text_models[-1], length=16, batch_size=64)
    features, mask = encoder.encode(prompts)
    (call,) = calls
    np.testing.assert_array_equal(call["condition"], np.repeat(features, 4, axis=0))
    np.testing.assert_array_equal(call["condition_mask"], np.repeat(mask, 4, axis=0))
    np.testing.assert_array_equal(call["sample_ids"], seeds.halves(np.arange(8)))


def test_prompts_are_guided_by_default(text_models, tmp_path):
    for name, options in (
        ("default", []),
        ("same", ["--guidance-scale", "7.5", "--top-k", "1000"]),
        ("other", ["--guidance-scale", "1.5"]),
    ):
        run(*text_models, "--prompts", "a red circle", *options, "--output", f"{name}.npz")
    codes = {path.stem: read(path)["codes"] for path in tmp_path.iterdir()}
    np.testing.assert_array_equal(codes["default"], codes["same"])
    assert not np.array_equal(codes["default"], codes["other"])


def test_pngs_hold_the_settings(models, text_models, tmp_path):
    prompts = ["a red circle", "图 photo"]
    options = [*text_models, "--prompts", *prompts, "--seed", "3"]
    run(*options, "--output", tmp_path / "folder")
    run(*options, "--output", tmp_path / "a.png")
    run(*options, "--output", tmp_path / "a.npz")
    expected = {"seed": "3", "guidance_scale": "7.5", "top_k": "1000", "top_p": "1.0"}
    expected |= {"temperature": "1.0", "greedy": "False", "decoder": "plain", "generator": "t2i"}
    paths = sorted((tmp_path / "folder").iterdir())
    assert [path.name for path in paths] == ["000000.png", "000001.png"]
    for i, (path, image) in enumerate(zip(paths, read(tmp_path / "a.npz")["arr_0"], strict=True)):
        with Image.open(path) as picture:
            np.testing.assert_array_equal(picture, image)
            assert picture.text == {"prompt": prompts[i], "number": str(i), **expected}
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.text == {"prompts": "\n".join(prompts), **expected}
    run(*models, "--labels", "3", "--output", tmp_path / "classes")
    with Image.open(tmp_path / "classes" / "000000_class_3.png") as picture:
        assert picture.text["label"] == "3"
        assert (picture.text["guidance_scale"], picture.text["top_k"]) == ("1.0", "0")


def test_longer_prompts_are_cut_with_a_warning(text_models, tmp_path, caplog):
    prompts = ["a cat", "a red circle left of a blue square " * 3]
    with caplog.at_level(logging.WARNING, "absl"):
        run(*text_models, "--prompts", *prompts, "--output", tmp_path / "a.npz")
    assert "cut to 16 tokens: 'a red circle left of a blue square" in caplog.text
    assert read(tmp_path / "a.npz")["prompts"].tolist() == prompts


def test_options_of_the_other_condition(models, text_models):
    for options in (["--prompts", "a cat"], ["--text-encoder", "tiny-t5"]):
        line = fails(*models, *options)
        assert line.startswith(f"error: {options[0]} does not fit the generator")
        assert line.endswith("which is a class-conditional transformer")
    line = fails(*text_models, "--labels", "3")
    assert "--labels does not fit" in line and "text-conditional" in line
    assert "give --prompts or --prompt-file" in fails(*text_models)
    prompts = ["--prompts", "a cat"]
    assert "give --text-encoder" in fails(*text_models[:-2], *prompts)


def test_prompts_and_encoders_that_cannot_be_used(text_models, spiece, tmp_path):
    prompts = ["--prompts", "a cat"]
    assert "prompt 2 of --prompts is empty" in fails(*text_models, *prompts, " ")
    (tmp_path / "a.tsv").write_text("Title\tNote\n")
    line = fails(*text_models, "--prompt-file", "a.tsv")
    assert "a.tsv has no column Prompt, Prompts, caption or text; its columns are: 'Title'" in line
    assert "nowhere is no folder" in fails(*text_models, *prompts, "--text-encoder", "nowhere")
    wide = write_export(tmp_path / "wide", dataclasses.replace(TEXT, caption_dim=24))
    line = fails(*text_models, *prompts, "--generator", wide)
    assert "has features of width 16 but the generator reads 24" in line
    assert {path.name for path in tmp_path.iterdir()} == {"a.tsv", "wide"}


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


def test_folders_that_benchmarks_read(text_models, tmp_path):
    lines = ['{"tag": "colors", "prompt": "a cat", "include": []}', '{"prompt": "a dog"}']
    (tmp_path / "geneval.jsonl").write_text("\n".join(lines))
    (tmp_path / "dpg").mkdir()
    for name, prompt in (("b7", "a dog"), ("a12", "a cat")):
        (tmp_path / "dpg" / f"{name}.txt").write_text(f"{prompt}\n")
    command = [*text_models, "--count", "4", "--prompt-file"]
    run(*command, "geneval.jsonl", "--output", "own", "--layout", "geneval")
    run(*command, "dpg", "--output", "pictures", "--layout", "dpg")
    run(*command, "geneval.jsonl", "--output", "a.npz")
    images = read(tmp_path / "a.npz")["arr_0"]
    for i, image in enumerate(images):
        path = tmp_path / "own" / f"{i // 4:05d}" / "samples" / f"{i % 4:04d}.png"
        np.testing.assert_array_equal(Image.open(path), image)
    assert (tmp_path / "own/00000/metadata.jsonl").read_text() == lines[0] + "\n"
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["a12.png", "b7.png"]
    picture = np.asarray(Image.open("pictures/b7.png"))
    np.testing.assert_array_equal(picture[:32, 32:], images[5])
    np.testing.assert_array_equal(picture[32:, :32], images[6])
    line = fails(*command, "dpg", "--output", "x", "--layout", "dpg", "--count", "3")
    assert "--layout dpg shows 4 images of each prompt: give --count 4" in line
    line = fails(*command, "dpg", "--output", "x.npz", "--layout", "geneval")
    assert "--layout geneval is a folder of images of prompts" in line


def test_the_command_line():
    shown = subprocess.run(
        [sys.executable, sample.__file__, "--help"], capture_output=True, text=True, check=True
    )
    assert "--guidance-scale" in shown.stdout
    assert shown.stderr == ""
