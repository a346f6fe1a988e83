"""The command that samples images, with a text-conditional generator."""

import dataclasses
import logging

import numpy as np
from PIL import Image

import llamagen_jax as lg
from llamagen_jax import generation, seeds
from tests.sample.command import TEXT, fails, read, run, write_export


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
