"""The command that compares samples with a reference, on a network of random products."""

import dataclasses
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from llamagen_jax import sample
from llamagen_jax.data.records import write_dataset
from llamagen_jax.evaluate import __main__ as evaluate
from llamagen_jax.evaluate import distances, features, image_sets
from llamagen_jax.evaluate.features import Network
from llamagen_jax.generation import ImageGenerator
from llamagen_jax.models.clip import CLIP, CLIPConfig

PIXELS = 8 * 8 * 3
# Of features: fewer than Inception's, for the roots of large matrices take long.
WIDTHS = {"pool": 64, "probabilities": 32, "spatial": 48}


def images(count, seed):
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, (count, 1, 1, 3))
    return (base // 2 + rng.integers(0, 128, (count, 8, 8, 3))).astype(np.uint8)


SAMPLES, REFERENCE = images(53, 0), images(70, 1)


def random_network(path, protocol):
    rng = np.random.default_rng(0)
    matrices = {
        name: rng.standard_normal((PIXELS, columns)).astype(np.float32) / PIXELS
        for name, columns in WIDTHS.items()
    }

    def run(batch):
        rows = batch.reshape(len(batch), -1) / np.float32(128)
        # One by one, as products of another shape may round differently.
        found = {n: np.stack([row @ matrix for row in rows]) for n, matrix in matrices.items()}
        scores = np.exp(4 * found["probabilities"])
        return found | {"probabilities": scores / scores.sum(axis=1, keepdims=True)}

    columns = {name: WIDTHS[name] for name in features.COLUMNS[protocol]}
    return Network(protocol, "random", run, columns)


@pytest.fixture(autouse=True)
def network(monkeypatch, tmp_path):
    monkeypatch.setattr(Network, "open", random_network)
    monkeypatch.chdir(tmp_path)
    np.savez("samples.npz", arr_0=SAMPLES)
    np.savez("reference.npz", arr_0=REFERENCE)


def run(samples, reference, *options):
    command = ["images", samples, reference, "--inception", "x", "--output", "out.json", *options]
    evaluate.main(list(map(str, command)))
    found = json.loads(Path("out.json").read_text())
    return {figure["name"]: figure["value"] for figure in found["figures"]}, found


def fails(*args) -> str:
    """The one line that the command ends with."""
    return tiny.error_line(run, *args)


@pytest.fixture
def figures():
    return run("samples.npz", "reference.npz")[0]


def test_sets_may_come_from_anywhere(tmp_path, figures):
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    for number, image in enumerate(SAMPLES):
        where = "folder/deep" if number > 40 else "folder"
        (tmp_path / where / f"{number:03d}.png").write_bytes(tiny.png(image))
    write_dataset("packed", [{"image": tiny.png(image), "label": 0} for image in SAMPLES])
    (tmp_path / "tar").mkdir()
    with tarfile.open("tar/0.tar", "w") as shard:
        for number, image in enumerate(SAMPLES):
            info = tarfile.TarInfo(f"{number:03d}.png")
            info.size = len(tiny.png(image))
            shard.addfile(info, io.BytesIO(tiny.png(image)))
    np.savez_compressed("compressed.npz", arr_0=SAMPLES)
    for path in ("folder", "packed", "tar", "compressed.npz"):
        found, about = run(path, "reference.npz")
        assert about["images"] == 53
        assert found == pytest.approx(figures, rel=1e-6)


@pytest.mark.parametrize("batch_size", [1, 8, 53, 64])
def test_figures_do_not_depend_on_the_batch_size(figures, batch_size):
    found, about = run("samples.npz", "reference.npz", "--batch-size", batch_size)
    assert (about["images"], about["reference_images"]) == (53, 70)
    assert found == pytest.approx(figures, rel=1e-9)


def test_order_is_of_no_matter(figures):
    np.savez("shuffled.npz", arr_0=np.random.default_rng(0).permutation(SAMPLES))
    found, _ = run("shuffled.npz", "reference.npz")
    assert found == pytest.approx(figures, rel=1e-6)


def test_a_stopped_command_goes_on(figures, monkeypatch):
    calls = []

    def stopping(path, protocol):
        whole = random_network(path, protocol)

        def some(batch):
            calls.append(len(batch))
            if len(calls) == 4:
                raise KeyboardInterrupt
            return whole.run(batch)

        return dataclasses.replace(whole, run=some)

    monkeypatch.setattr(Network, "open", stopping)
    options = ["--keep", "kept", "--batch-size", 16]
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run("samples.npz", "reference.npz", *options)
    assert run("samples.npz", "reference.npz", *options)[0] == figures
    # Four batches of samples and five of the reference, one of them twice.
    assert len(calls) == 10
    line = fails("reference.npz", "samples.npz", *options)
    assert "kept/samples was made with images samples.npz, not reference.npz: name another" in line


def test_statistics_stand_for_their_images(figures, caplog):
    run("reference.npz", "samples.npz", "--save-statistics", "statistics.npz")
    found, _ = run("samples.npz", "statistics.npz")
    assert {n: found[n] for n in found} == {
        n: figures[n] for n in ("FID", "sFID", "IS", "IS, whole")
    }
    assert "precision, recall and KID are left out" in caplog.text
    # As ADM's reference files are.
    with np.load("statistics.npz") as file:
        np.savez("both.npz", arr_0=REFERENCE, **file)
    assert run("samples.npz", "both.npz")[0] == figures
    line = fails("samples.npz", "statistics.npz", "--protocol", "clean-fid")
    assert "was made with protocol adm, not with clean-fid" in line


def test_exchanging_the_sets_exchanges_precision_and_recall(figures):
    found, _ = run("reference.npz", "samples.npz")
    assert (found["precision"], found["recall"]) == (figures["recall"], figures["precision"])
    assert found["FID"] == pytest.approx(figures["FID"])


def test_a_set_against_itself_is_told(caplog):
    assert run("samples.npz", "samples.npz")[0]["FID"] == pytest.approx(0, abs=1e-9)
    assert "hold the same images: that proves nothing" in caplog.text


def test_broken_images_are_left_out_and_counted(tmp_path, figures):
    (tmp_path / "folder").mkdir()
    for number, image in enumerate(SAMPLES):
        (tmp_path / "folder" / f"{number:03d}.png").write_bytes(tiny.png(image))
    (tmp_path / "folder" / "020b.png").write_bytes(b"<html>")
    found, about = run("folder", "reference.npz", "--batch-size", 8)
    assert (about["images"], about["broken_images"]) == (53, 1)
    assert found == pytest.approx(figures, rel=1e-6)


def test_bad_input_is_one_line(tmp_path):
    def line(**arrays):
        np.savez("bad.npz", **arrays)
        return fails("bad.npz", "reference.npz")

    assert "nowhere does not exist" in fails("nowhere", "reference.npz")
    assert "holds float32 [2, 8, 8, 3] as arr_0; expected uint8" in line(
        arr_0=np.zeros((2, 8, 8, 3), np.float32)
    )
    assert "[2, 8, 8, 4] as arr_0" in line(arr_0=np.zeros((2, 8, 8, 4), np.uint8))
    assert "[2, 8, 8] as arr_0" in line(arr_0=np.zeros((2, 8, 8), np.uint8))
    assert "holds images.npy; expected images as arr_0" in line(images=SAMPLES)
    assert "holds 1 images; at least 2" in line(arr_0=SAMPLES[:1])
    data = (tmp_path / "samples.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(data[:5000])
    assert "cut.npz is no whole .npz file" in fails("cut.npz", "reference.npz")
    (tmp_path / "flipped.npz").write_bytes(data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
    assert "flipped.npz is damaged" in fails("flipped.npz", "reference.npz")
    (tmp_path / "mixed").mkdir()
    for side in (8, 9):
        Image.new("RGB", (side, 8)).save(f"mixed/{side}.png")
    assert "images of 8x8 px and of 9x8 px: give --size" in fails("mixed", "reference.npz")
    np.savez("other.npz", mu=np.zeros(64), sigma=np.eye(64))
    assert "holds no mu_s and sigma_s" in fails("samples.npz", "other.npz")
    np.savez("none.npz", a=1)
    assert "holds neither images (arr_0) nor statistics" in fails("samples.npz", "none.npz")


@pytest.fixture
def clip(monkeypatch):
    """Puts colours of a corner in the place of a CLIP's embeddings."""

    def embed(images):
        rows = images.reshape(len(images), -1)[:, :20] / np.float32(255) - np.float32(0.5)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    params = {"weights": np.zeros(3)}
    monkeypatch.setattr(
        features.clip, "load", lambda folder: (CLIP(CLIPConfig(embedding_dim=20)), params)
    )
    monkeypatch.setattr(features.texts, "image_embedder", lambda model, params: embed)
    return embed


def test_cmmd_of_a_clip_is_beside_the_others(figures, clip):
    found, _ = run("samples.npz", "reference.npz", "--clip", "x", "--batch-size", 16)
    expected = distances.cmmd(clip(REFERENCE), clip(SAMPLES))
    assert found.pop("CMMD") == pytest.approx(expected, rel=1e-6)
    assert found == pytest.approx(figures)
    run("reference.npz", "samples.npz", "--save-statistics", "statistics.npz")
    line = fails("samples.npz", "statistics.npz", "--clip", "x")
    assert "CMMD needs images, and statistics.npz holds none: leave --clip out" in line


def test_only_what_the_protocol_compares_is_kept(monkeypatch):
    summed, moments = [], features.moments
    monkeypatch.setattr(features, "moments", lambda rows: summed.append(rows) or moments(rows))
    names = {"adm": {"pool", "probabilities", "spatial"}}
    names |= {"torch-fidelity": {"pool", "probabilities"}, "clean-fid": {"pool"}}
    for protocol, kept in names.items():
        run("samples.npz", "reference.npz", "--protocol", protocol, "--keep", protocol)
        for of in ("samples", "reference"):
            assert {path.stem for path in Path(protocol, of).glob("*.npy")} == kept
        assert len(summed) == (4 if protocol == "adm" else 2)
        summed.clear()


def test_a_generator_draws_its_samples_once(tmp_path, monkeypatch, clip):
    generator, tokenizer = tiny.exports(tmp_path / "models")
    models = ["--tokenizer", tokenizer, "--guidance-scale", 2, "--resize", 8]
    np.savez("large.npz", arr_0=REFERENCE.repeat(4, 1).repeat(4, 2))
    drawn, sampled = [], ImageGenerator.sample

    def counting(self, *args, **options):
        for samples in sampled(self, *args, **options):
            drawn.append(samples)
            yield samples

    monkeypatch.setattr(ImageGenerator, "sample", counting)
    options = ["--count", 24, "--size", 8, "--batch-size", 8]
    found, about = run(generator, "large.npz", *models, *options, "--clip", "x")
    assert about["images"] == 24
    assert found["CMMD"] > 0
    assert len(drawn) == 3
    command = ["--generator", generator, *models, "--output", "own.npz"]
    sample.main(list(map(str, command)))
    settings = {"count": 24, "batch_size": 8, "size": 8, "guidance_scale": 2.0, "seed": 0}
    images = image_sets.generated(str(generator), str(tokenizer), **settings)
    with np.load("own.npz") as own:
        np.testing.assert_allclose(next(images.read(3)).astype(int), own["arr_0"][3], atol=1)
    assert "give --tokenizer" in fails(generator, "large.npz")
