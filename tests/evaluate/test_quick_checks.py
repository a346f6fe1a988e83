"""A generator that is used as it was made passes the quick checks; each common mistake fails one.

The generator is not trained: the codes that it draws itself stand in for real images.
"""

import functools
import json

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

from llamagen_jax.data import transforms
from llamagen_jax.data.records import TokenizerId, write_dataset
from llamagen_jax.evaluate import __main__ as evaluate
from llamagen_jax.evaluate import quick_checks
from llamagen_jax.image_tokenizer import ModelTokenizer
from llamagen_jax.images import save_png
from llamagen_jax.sampling import draw
from llamagen_jax.sampling.generate import generate
from llamagen_jax.weights import export

COUNT = 100
LABELS = np.arange(COUNT, dtype=np.int32) % 10


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a generator whose classes differ much, and with what it draws."""
    folder = tmp_path_factory.mktemp("made")
    tiny.exports(folder)
    model, params = tiny.llama()
    classes = params["condition_embedding"]["classes"]["embedding"]
    # The null condition is in the midst of the classes, as training puts it.
    rows = 1 + 0.4 * jax.random.normal(jax.random.key(1), classes.shape)
    params["condition_embedding"]["classes"]["embedding"] = rows.at[-1].set(rows[:-1].mean(0))
    params["output"] = params["output"] * 2
    export.write(folder / "used", model, params)
    write_images(folder / "codes", np.asarray(generate(model, params, LABELS, seed=5)))
    return folder, model, params


def write_images(folder, codes):
    records = (
        {"codes": row[None].astype(np.uint16), "label": i % 10} for i, row in enumerate(codes)
    )
    names = tuple("0123456789")
    made_by = TokenizerId("tiny", "0", 32)
    write_dataset(folder, records, class_names=names, tokenizer=made_by, code_shape=(1, 16))


def failures(folder, generator="used", codes="codes"):
    """What fails of the checks, and what to check then, from the command's own output."""
    output = folder / "out.json"
    command = ["verify", str(folder / generator), str(folder / codes), "--quick"]
    command += ["--tokenizer", str(folder / "tokenizer"), "--output", str(output)]
    try:
        evaluate.main(command)
        status = 0
    except SystemExit as error:
        assert error.code == 1
        status = 1
    figures = json.loads(output.read_text())["figures"]
    failed = {f["name"].strip() for f in figures if f["compare"].startswith("FAIL")}
    assert bool(failed) == bool(status)
    return failed


def changed(made, name, change):
    """Exports the generator with other rows for its classes."""
    folder, model, params = made
    table = params["condition_embedding"]["classes"]["embedding"]
    embedding = params["condition_embedding"] | {"classes": {"embedding": change(table)}}
    export.write(folder / name, model, params | {"condition_embedding": embedding})
    return name


def test_a_generator_that_is_used_as_it_was_made_passes(made):
    assert not failures(made[0])


def test_another_order_of_the_labels_fails(made):
    order = changed(made, "order", lambda rows: rows.at[:-1].set(rows[:-1][::-1]))
    assert {"below another's", "below none's"} <= failures(made[0], order)


def test_another_row_as_the_null_condition_fails(made):
    null = changed(made, "null", lambda rows: rows.at[-1].set(rows[-2]))
    assert "none's below another's" in failures(made[0], null)


def test_codes_of_another_tokenizer_fail(made):
    folder, model, params = made
    codes = np.asarray(generate(model, params, LABELS, seed=5))
    write_images(folder / "others", np.random.default_rng(0).permutation(32)[codes])
    assert "below chance" in failures(folder, codes="others")


def test_guidance_the_wrong_way_round_fails(made, monkeypatch):
    guide = draw.guide
    monkeypatch.setattr(draw, "guide", lambda cond, uncond, scale: guide(uncond, cond, scale))
    jax.clear_caches()
    assert failures(made[0]) == {"guidance's gain"}
    jax.clear_caches()


def test_reconstructions_must_be_nearer_than_a_flat_colour(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(4):
        save_png(tmp_path / f"images/{number}.png", rng.integers(0, 256, (40, 40, 3), np.uint8))
    location = str(tmp_path / "images")
    check = functools.partial(quick_checks.tokenizer_figures, location=location, size=32)
    random = ModelTokenizer(*tiny.vqgan())
    assert check(random, count=4, batch_size=3)[-1].compare.startswith("FAIL: check weights")

    class Near:
        downsampling, codebook_size = 8, None

        def encode(self, images):
            return images

        def decode(self, codes):
            return codes * 0.9

    jax.tree_util.register_static(Near)
    assert [f.compare for f in check(Near(), count=4, batch_size=3)[-1:]] == ["pass"]


def squash(image, size):
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


def pick(image, size):
    step, left = min(image.size) // size, (image.width - image.height) // 2
    return np.asarray(image)[::step, left : left + image.height : step]


@pytest.mark.parametrize("size", [16, 256, 384])
def test_another_resize_of_the_images_fails(monkeypatch, size):
    assert [f.compare for f in quick_checks.resize_figures(size)] == ["pass", "pass"]
    for wrong, told in ((squash, "proportions of crops"), (pick, "contrast of fine stripes")):
        monkeypatch.setattr(transforms, "center_crop", wrong)
        failed = [f for f in quick_checks.resize_figures(size) if f.compare != "pass"]
        assert [f.name for f in failed] == [told]
        assert abs(failed[0].value - (told == "proportions of crops")) > 0.3


def test_images_of_one_class_or_of_another_size_are_told(made, tmp_path):
    folder = made[0]
    for location, message in (
        (tiny.write_codes(tmp_path / "one", num_classes=1), "of one condition alone"),
        (folder / "none", "there is no image folder"),
    ):
        command = ["verify", str(folder / "used"), str(location), "--quick"]
        command += ["--tokenizer", str(folder / "tokenizer")]
        assert message in tiny.error_line(evaluate.main, command)
