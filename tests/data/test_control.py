"""Control maps of crops: from the command that packs codes to the batches."""

import dataclasses
import itertools

import numpy as np
import pytest
import tiny
from PIL import Image

from llamagen_jax import control_maps
from llamagen_jax.data import transforms
from llamagen_jax.data.pipeline import eval_batches, train_batches
from llamagen_jax.data.prepare import __main__ as prepare
from llamagen_jax.data.records import Manifest, write_dataset
from llamagen_jax.data.sources import ArrayRecordSource, open_source
from llamagen_jax.errors import InputError
from llamagen_jax.images import encode
from llamagen_jax.weights import export

CONFIG = dataclasses.replace(
    tiny.DATA_CONFIG,
    source="array_record",
    image_size=16,
    random_flip=True,
    control=("canny", "depth"),
)


def config_of(folder, **changes):
    return dataclasses.replace(CONFIG, train=str(folder), eval=str(folder), **changes)


def run(*args):
    prepare.main([str(arg) for arg in args])


def fails(*args) -> str:
    """The one line that the command ends with."""
    return tiny.error_line(run, *args)


@pytest.fixture(scope="module")
def packing(tmp_path_factory):
    """Options of `prepare codes` for two images with maps of depth, and one without."""
    folder = tmp_path_factory.mktemp("packing")
    rng = np.random.default_rng(0)
    for name, has_map in (("a", True), ("b", True), ("c", False)):
        image = Image.fromarray(rng.integers(0, 256, (3, 4, 3), np.uint8)).resize((32, 24))
        (folder / "images" / "x").mkdir(parents=True, exist_ok=True)
        (folder / "depth" / "x").mkdir(parents=True, exist_ok=True)
        image.save(folder / "images" / "x" / f"{name}.png")
        if has_map:
            image.convert("L").resize((64, 48)).save(folder / "depth" / "x" / f"{name}.bmp")
    export.write(folder / "tokenizer", *tiny.vqgan())
    options = ["codes", "--source", "image_folder", "--location", folder / "images"]
    options += ["--tokenizer", folder / "tokenizer", "--batch-size", "2", "--image-size", "16"]
    return folder, options


def test_codes_keep_a_map_of_each_crop(packing, caplog):
    folder, options = packing
    maps = ["--control", "canny", "--control-maps", f"depth={folder / 'depth'}"]
    run(*options, folder / "out", "--crops", "center-flip", *maps)
    assert Manifest.read(folder / "out").control == ("canny", "depth")
    assert "it has no control map" in caplog.text
    records = list(ArrayRecordSource(folder / "out"))
    assert len(records) == 2
    for name, record in zip("ab", records, strict=True):
        image, depth = (
            transforms.decode((folder / path).read_bytes())
            for path in (f"images/x/{name}.png", f"depth/x/{name}.bmp")
        )
        crop = transforms.center_crop(image, 16)
        pairs = {"canny": crop, "depth": transforms.center_crop(depth, 16)}
        for kind, expected in pairs.items():
            stored = [np.asarray(transforms.decode(png)) for png in record["control"][kind]]
            if kind == "canny":
                mirrored = control_maps.detect(kind, crop[:, ::-1])
                expected = control_maps.detect(kind, crop)[..., None].repeat(3, -1)
                np.testing.assert_array_equal(stored[1][..., 0], mirrored)
            else:
                np.testing.assert_array_equal(stored[1], expected[:, ::-1])
            np.testing.assert_array_equal(stored[0], expected)


def test_maps_have_the_size_of_their_image(packing):
    """Wide and tall images, each with its map cut as it is."""
    folder, _ = packing
    tall = folder / "tall"
    (tall / "images" / "x").mkdir(parents=True)
    (tall / "depth" / "x").mkdir(parents=True)
    for number, size in enumerate([(32, 24), (24, 33), (32, 24), (24, 33)]):
        pixels = np.random.default_rng(number).integers(0, 256, (3, 3, 3), np.uint8)
        image = Image.fromarray(pixels).resize(size)
        image.save(tall / "images" / "x" / f"{number}.png")
        image.save(tall / "depth" / "x" / f"{number}.png")
    options = ["codes", tall / "out", "--source", "image_folder", "--location", tall / "images"]
    options += ["--tokenizer", folder / "tokenizer", "--sizes", "24x16", "16x24"]
    maps = ["--control", "canny", "--control-maps", f"depth={tall / 'depth'}"]
    run(*options, *maps)
    config = config_of(tall / "out", control=("depth",))
    source = open_source("array_record", str(tall / "out"))
    images = [
        transforms.center_crop(transforms.decode(path.read_bytes()), size)
        for paths, size in ((("0", "2"), (16, 24)), (("1", "3"), (24, 16)))
        for path in (tall / "images" / "x" / f"{name}.png" for name in paths)
    ]
    wide, high = eval_batches(source, config, batch_size=2)
    assert (wide["codes"].shape, high["codes"].shape) == ((2, 2, 3), (2, 3, 2))
    for image, control in zip(images, [*wide["control"], *high["control"]], strict=True):
        np.testing.assert_array_equal(control, image)
    for batch in itertools.islice(train_batches(source, config, batch_size=2, seed=0), 4):
        rows, columns = batch["codes"].shape[1:]
        assert batch["control"].shape == (2, 8 * rows, 8 * columns, 3)


def test_bad_maps_are_told_in_one_line(packing, tmp_path):
    _, options = packing
    assert "did you mean 'canny'" in fails(*options, tmp_path / "a", "--control", "cany")
    assert "is not KIND=FOLDER" in fails(*options, tmp_path / "a", "--control-maps", "depth")
    absent = f"depth={tmp_path / 'absent'}"
    assert "no folder of control" in fails(*options, tmp_path / "a", "--control-maps", absent)
    (tmp_path / "x").mkdir()
    for name in "abc":
        Image.new("L", (40, 24)).save(tmp_path / "x" / f"{name}.png")
    other = f"depth={tmp_path}"
    line = fails(*options, tmp_path / "b", "--control-maps", other)
    assert "its control map of depth is of 40x24 px, another shape than 32x24" in line


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    """Record i has the codes [2 i], [2 i + 1] and maps of these brightnesses, of depth 100 more."""

    def record(i):
        rows = (2 * i, 2 * i + 1)
        maps = {
            kind: [encode(np.full((16, 16), row + more, np.uint8), "png") for row in rows]
            for kind, more in (("canny", 0), ("depth", 100))
        }
        return {"codes": np.uint16([[row] for row in rows]), "label": i, "control": maps}

    folder = tmp_path_factory.mktemp("data") / "codes"
    write_dataset(folder, map(record, range(6)), code_shape=(2, 1))
    return folder


def test_batches_hold_the_map_of_the_crop_that_is_drawn(codes):
    config = config_of(codes)
    source = open_source("array_record", str(codes))
    batches = list(itertools.islice(train_batches(source, config, batch_size=4, seed=0), 12))
    drawn = {name: np.concatenate([b[name] for b in batches]) for name in ("codes", "control")}
    assert (drawn["control"].shape, drawn["control"].dtype) == ((48, 16, 16, 3), np.uint8)
    more = drawn["control"][:, 3, 5, 1] - drawn["codes"][:, 0]
    assert set(more.tolist()) == {0, 100}
    assert set(drawn["codes"].ravel().tolist()) == set(range(12))
    # Which crop is drawn does not depend on whether there is control.
    plain = config_of(codes, control=())
    without = next(train_batches(source, plain, batch_size=4, seed=0))
    np.testing.assert_array_equal(without["codes"], batches[0]["codes"])
    assert "control" not in without
    held_out = next(eval_batches(source, config, batch_size=6))
    np.testing.assert_array_equal(held_out["control"][:, 0, 0, 0], [0, 2, 4, 6, 8, 10])


def test_images_have_maps_of_what_batches_show():
    config = config_of("train", source="digits", control=("soft-edges",))
    source = open_source("digits", "train")
    batch = next(train_batches(source, config, batch_size=4, seed=0))
    for image, control in zip(batch["image"], batch["control"], strict=True):
        found = control_maps.detect("soft-edges", image)
        assert found.any()
        np.testing.assert_array_equal(control, found[..., None].repeat(3, -1))


def test_surroundings_hide_another_part_in_every_epoch(packing, tmp_path):
    _, options = packing
    run(*options, tmp_path / "out", "--control", "surroundings")
    config = config_of(tmp_path / "out", control=("surroundings",))
    source = open_source("array_record", str(tmp_path / "out"))
    stored = [transforms.decode(record["control"]["surroundings"][0]) for record in source]
    brightest = np.max([np.asarray(image) for image in stored])
    batches = list(itertools.islice(train_batches(source, config, batch_size=3, seed=0), 4))
    shown = np.concatenate([batch["control"] for batch in batches])
    hidden = (shown == 0).all(-1)
    assert len(np.unique(hidden, axis=0)) > 8
    # Every record is drawn four times, and what is kept of it is the same each time.
    seen = np.where(hidden[..., None], 255, shown).reshape(4, 3, -1)
    assert (shown[~hidden] >= 64).all() and brightest > 200
    assert len({row.tobytes() for row in seen.reshape(12, -1)}) > 8
    again = next(train_batches(source, config, batch_size=3, seed=0))
    np.testing.assert_array_equal(again["control"], shown[:3])
    first = next(eval_batches(source, config, batch_size=3))["control"]
    assert ((first == 0).all(-1) == (first[:1] == 0).all(-1)).all()
    pictures = [control_maps.hide(np.asarray(s), (first[0] == 0).all(-1)) for s in stored]
    np.testing.assert_array_equal(first, pictures)


def test_codes_without_the_maps_are_refused(codes):
    source = open_source("array_record", str(codes))
    config = config_of(codes, control=("pose",))
    with pytest.raises(InputError, match=r"needs control maps of pose: make the codes with"):
        next(train_batches(source, config, batch_size=4, seed=0))
