"""The network that is trained on the images at hand, and the figures by it."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny

from llamagen_jax.data.records import write_dataset
from llamagen_jax.evaluate import __main__ as evaluate
from llamagen_jax.evaluate import image_sets, small_network
from llamagen_jax.evaluate.features import Network


def images(count, seed):
    """Noise, red or blue by turns."""
    pixels = np.random.default_rng(seed).integers(0, 100, (count, 16, 16, 3), np.uint8)
    pixels[::2, ..., 0] += 100
    pixels[1::2, ..., 2] += 100
    return pixels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images with classes and with captions, samples of them, and a network of the classes."""
    folder = tmp_path_factory.mktemp("small")
    names = ("a red one", "A blue one.")
    told = {
        "classes": [{"label": i % 2} for i in range(40)],
        "captions": [{"captions": {"short": names[i % 2]}} for i in range(40)],
    }
    for name, rows in told.items():
        pixels = zip(images(40, 0), rows, strict=True)
        records = [{"image": tiny.png(image)} | row for image, row in pixels]
        class_names = ("red", "blue") if name == "classes" else ()
        write_dataset(folder / name, records, class_names=class_names)
    samples = images(30, 1)
    np.savez(folder / "samples.npz", arr_0=samples)
    np.savez(folder / "red.npz", arr_0=samples[::2])
    np.savez(folder / "large.npz", arr_0=samples.repeat(2, axis=1).repeat(2, axis=2))
    run("network", folder / "classes", folder / "network", "--steps", 40)
    return folder


def run(*command):
    evaluate.main(list(map(str, command)))


def fails(*args) -> str:
    """The one line that the command ends with."""
    return tiny.error_line(run, *args)


@pytest.mark.parametrize(("name", "classes"), [("classes", 2), ("captions", 4)])
def test_it_learns_classes_and_the_words_of_captions(folder, name, classes):
    examples = small_network.read(image_sets.open_source(str(folder / name)), None, 30)
    assert examples.images.shape == (30, 16, 16, 3)
    assert examples.targets.shape == (30, classes)
    np.testing.assert_allclose(examples.targets.sum(axis=1), 1)
    _, _, losses = small_network.train(examples, 40, 0)
    # Of shares of three words the loss cannot fall below the entropy of these.
    least = 0 if name == "classes" else np.log(3)
    assert losses[-1] - least < 0.3 * (losses[0] - least)


def test_figures_by_it_say_so_and_tell_good_samples_from_bad(folder, tmp_path):
    fids = []
    for samples in ("samples.npz", "red.npz"):
        out = tmp_path / "out.json"
        options = "--network", folder / "network", "--output", out
        run("images", folder / samples, folder / "classes", *options)
        found = json.loads(Path(out).read_text())["figures"]
        note = f"by a small network trained on {folder / 'classes'}, not comparable with published"
        assert all(note in figure["compare"] for figure in found)
        fids.append(found[0]["value"])
    assert found[0]["name"] == "FID"
    assert 10 * fids[0] < fids[1]


def test_what_does_not_fit_is_refused(folder, tmp_path):
    network, samples, reference = folder / "network", folder / "samples.npz", folder / "classes"
    run("network", reference, tmp_path / "other", "--steps", 1, "--seed", 1)
    statistics = tmp_path / "statistics.npz"
    run("images", samples, reference, "--network", network, "--save-statistics", statistics)
    line = fails("images", samples, statistics, "--network", tmp_path / "other")
    assert "statistics.npz' was made with network" in line
    line = fails("images", folder / "large.npz", reference, "--network", network)
    assert "was trained on images of 16x16 px, not 32x32: crop" in line
    options = "--network", network, "--protocol", "clean-fid"
    assert "clean-fid is a protocol of Inception" in fails("images", samples, reference, *options)
    assert "exists" in fails("network", reference, network)
    assert "no network" in fails("network", reference, tmp_path / "odd", "--size", 12)
    (tmp_path / "empty").mkdir()
    line = fails("images", samples, reference, "--network", tmp_path / "empty")
    assert "config.json is missing" in line


def test_its_features_have_its_sizes(folder):
    network = Network.open(str(folder / "network"), "adm")
    assert network.columns == {"pool": 64, "probabilities": 2, "spatial": 16}
    found = network.run(images(3, 2))
    np.testing.assert_allclose(found["probabilities"].sum(axis=1), 1, rtol=1e-5)
