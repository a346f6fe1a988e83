"""The command that compares images with their prompts, on a CLIP of random weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny

from llamagen_jax.evaluate import __main__ as evaluate
from llamagen_jax.evaluate import texts
from llamagen_jax.scenes import world
from llamagen_jax.scenes.world import held_out_prompts

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOWER = {"num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {"hidden_size": 24, "intermediate_size": 40, "vocab_size": 1200, "eos_token_id": 1199}
VISION = {"hidden_size": 32, "intermediate_size": 48, "image_size": 24, "patch_size": 6}
PROMPTS = ["a red fox", "two cats", "a teapot", "snow", "a blue bird"]
CATEGORIES = ["Animals", "Animals", "Objects", "World", "Animals"]
IMAGES = np.random.default_rng(0).integers(0, 256, (10, 24, 24, 3), np.uint8)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder of a CLIP, and the model that `transformers` makes of it."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config=TOWER | TEXT, vision_config=TOWER | VISION, projection_dim=20
    )
    theirs = transformers.CLIPModel(config).eval()
    theirs.save_pretrained(folder)
    return tiny.write_clip_tokenizer(folder, 1200), theirs


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("samples.npz", arr_0=IMAGES)
    lines = ["Prompt\tCategory", *map("\t".join, zip(PROMPTS, CATEGORIES, strict=True))]
    Path("prompts.tsv").write_text("\n".join(lines))


def run(*args):
    evaluate.main([*map(str, args), "--output", "out.json"])
    found = json.loads(Path("out.json").read_text())["figures"]
    return {figure["name"]: figure["value"] for figure in found}


def test_scores_are_cosines_of_transformers_embeddings(model):
    folder, theirs = model
    found = run("text", "samples.npz", "--prompts", "prompts.tsv", "--clip", folder)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    tokens = tokenizer(
        [texts.PREFIX + prompt for prompt in PROMPTS],
        padding="max_length",
        max_length=77,
        return_tensors="pt",
    )
    # OpenAI's.
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    std = np.array([0.26862954, 0.26130258, 0.27577711])
    pixels = torch.from_numpy(((IMAGES / 255 - mean) / std).transpose(0, 3, 1, 2)).float()
    with torch.no_grad():
        output = theirs(input_ids=tokens["input_ids"], pixel_values=pixels)
    cosines = (output.image_embeds * output.text_embeds.repeat_interleave(2, 0)).sum(1).numpy()
    assert found.pop("CLIP score") == pytest.approx(cosines.mean(), abs=1e-5)
    categories = np.repeat(CATEGORIES, 2)
    assert found == {
        name: pytest.approx(cosines[categories == name].mean(), abs=1e-5)
        for name in ("Animals", "Objects", "World")
    }


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_scores_do_not_depend_on_the_batch_size(model, batch_size):
    command = ["text", "samples.npz", "--prompts", "prompts.tsv", "--clip", model[0]]
    assert run(*command, "--batch-size", batch_size) == pytest.approx(run(*command), abs=1e-6)


def test_images_and_prompts_must_pair(model, tmp_path):
    def fails(samples, prompts="prompts.tsv"):
        return tiny.error_line(run, "text", samples, "--prompts", prompts, "--clip", model[0])

    np.savez("nine.npz", arr_0=IMAGES[:9])
    assert "nine.npz has 9 images and prompts.tsv 5 prompts: give" in fails("nine.npz")
    recorded = np.repeat(PROMPTS, 2)
    np.savez("right.npz", arr_0=IMAGES, prompts=recorded)
    run("text", "right.npz", "--prompts", "prompts.tsv", "--clip", model[0])
    recorded[3] = "two dogs"
    np.savez("other.npz", arr_0=IMAGES, prompts=recorded)
    line = fails("other.npz")
    assert "image 3 of other.npz is of the prompt 'two dogs', but prompts.tsv has 'two c" in line


def test_rendered_scenes_are_judged_by_their_pixels(capsys):
    prompts = held_out_prompts(6, seed=0)
    images = [world.render(prompt.scene, 32) for prompt in prompts]
    images[2] = images[2][::-1, ::-1]  # the things of its prompt in the wrong relation
    images[4] = np.full_like(images[4], 255)
    np.savez("scenes.npz", arr_0=np.array(images))
    Path("scenes.txt").write_text("\n".join(prompt.caption for prompt in prompts))
    found = run("text", "scenes.npz", "--prompts", "scenes.txt", "--scenes")
    assert found == pytest.approx({"things right": 5 / 6, "relation right": 4 / 6})
    for prompts, options, message in (
        ("prompts.tsv", ["--scenes"], "'a red fox' of prompts.tsv is no caption of the rendered"),
        ("scenes.txt", [], "nothing to judge by: give --clip, --scenes or both"),
    ):
        samples = "samples.npz" if prompts == "prompts.tsv" else "scenes.npz"
        assert message in tiny.error_line(run, "text", samples, "--prompts", prompts, *options)
