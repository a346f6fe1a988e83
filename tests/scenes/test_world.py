"""The rendered world: true to its captions, with combinations held out, and read back from pixels.

Also the files of it: metadata with rows to filter, and tar shards of what is left.
"""

import io
import itertools
import re

import numpy as np
import pytest
import tiny
from PIL import Image
from scipy import ndimage

from llamagen_jax.data.prepare import __main__ as prepare
from llamagen_jax.data.tar_shards import TarShardsSource
from llamagen_jax.scenes import check as scene_check
from llamagen_jax.scenes.files import read_rows
from llamagen_jax.scenes.world import (
    COLORS,
    HELD_OUT,
    SHAPES,
    captions,
    described,
    held_out_prompts,
    random_scene,
    render,
    scattered,
)
from llamagen_jax.text.encoder import TextEncoder
from llamagen_jax.text.prompts import read_prompts

INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def scenes(count, *, seed=0, held_out=False):
    rngs = (np.random.default_rng((seed, i)) for i in range(count))
    return [random_scene(rng, held_out=held_out) for rng in rngs]


def combination(scene):
    first, second = scene.things
    return first.kind, scene.relation, second.kind


def through_jpeg(image, quality):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def blurred(image, sigma=1.0):
    return ndimage.gaussian_filter(image, (sigma, sigma, 0))


def autoencoded(image):
    """What a weak autoencoder does: bent edges, blotches, a tint, and lost detail."""
    rng = np.random.default_rng(0)
    side = len(image)
    bend = ndimage.gaussian_filter(rng.normal(size=(2, side, side)), (0, 4, 4))
    places = np.indices((side, side)) + 0.6 * bend / bend.std()
    bent = [ndimage.map_coordinates(c, places, order=1, mode="nearest") for c in image.T]
    blotches = ndimage.gaussian_filter(rng.normal(size=image.shape), (1.5, 1.5, 0))
    noisy = np.stack(bent).T + 10 * blotches / blotches.std() + 5 * rng.normal(size=3)
    return blurred(np.clip(noisy, 0, 255), 0.7).astype(np.uint8)


def test_held_out_combinations_are_never_trained_on():
    trained = [combination(scene) for scene in scenes(3000) if scene.relation]
    assert 1600 < len(trained) < 2000
    assert not HELD_OUT & set(trained)
    assert len(set(trained)) > 300
    held_out = {combination(scene) for scene in scenes(800, held_out=True)}
    assert held_out == HELD_OUT
    # Every thing is trained on in every role.
    roles = {(relation, kind, 0) for kind, relation, _ in trained}
    roles |= {(relation, kind, 1) for _, relation, kind in trained}
    assert len(roles) == 2 * 2 * len(COLORS) * len(SHAPES)


def test_things_do_not_touch():
    for scene in scenes(300):
        alone = [~(render(type(scene)((t,)), 64) == 255).all(-1) for t in scene.things]
        assert all(mask[[0, -1]].sum() + mask[:, [0, -1]].sum() == 0 for mask in alone)
        for a, b in itertools.combinations(alone, 2):
            assert not (ndimage.binary_dilation(a) & b).any()


def told(caption):
    """What a caption says: the things in its order, and the relation of the first to the second."""
    caption = caption.lower().replace("over", "above").replace("under", "below")
    noun = rf"(?:(small|large) )?({'|'.join(COLORS)}) ({'|'.join(SHAPES)})"
    things = re.findall(noun, caption)
    relation = re.search("|".join(INVERSE), caption)
    count = {"two": 2, "three": 3}.get(next(iter(re.findall("two|three", caption)), ""), 1)
    return things * count, relation and relation.group()


@pytest.mark.parametrize("size", [64, (64, 96), (96, 64)])
def test_scattered_things_are_told_by_the_same_captions(size):
    rng = np.random.default_rng(0)
    plain = [*scenes(150), *scenes(150, held_out=True)]
    moved = [scattered(scene, rng) for scene in plain]
    assert scene_check.score(np.stack([render(s, size) for s in moved]), plain) == (1, 1)
    steps = {(thing.x, scene.shift[0] * 64) for scene in moved for thing in scene.things}
    assert steps == {(0.5, -8), (0.5, 0), (0.5, 8), (0.25, 0), (0.75, 0)}


def test_captions_are_true():
    phrasings = set()
    for number, scene in enumerate(scenes(400)):
        texts = captions(scene, np.random.default_rng(number))
        assert texts.keys() == {"long", "short"}
        for name, caption in texts.items():
            things, relation = told(caption)
            expected = list(scene.things)
            if relation and relation != scene.relation:
                assert INVERSE[relation] == scene.relation
                expected.reverse()
            assert [(color, shape) for _, color, shape in things] == [t.kind for t in expected]
            sizes = [t.size if name == "long" else "" for t in expected]
            assert [size for size, _, _ in things] == sizes
            assert bool(relation) == bool(scene.relation)
            assert (scene.position in caption) or name == "short"
            phrasings.add(re.sub("small|large|" + "|".join([*COLORS, *SHAPES]), "", caption))
    assert len(phrasings) > 30


def test_prompts_ask_for_what_is_held_out():
    prompts = held_out_prompts(300, seed=1)
    assert len({prompt.caption for prompt in prompts}) == 300
    assert {combination(prompt.scene) for prompt in prompts} <= HELD_OUT
    assert prompts == held_out_prompts(300, seed=1)
    assert prompts != held_out_prompts(300, seed=2)
    long = [told(prompt.caption)[0][0][0] != "" for prompt in prompts]
    assert 0.6 < np.mean(long) < 0.8


@pytest.mark.parametrize(
    ("size", "distort"),
    [
        (64, lambda image: image),
        (128, lambda image: image),
        ((64, 96), lambda image: image),
        ((96, 64), lambda image: image),
        ((64, 96), lambda image: through_jpeg(image, 75)),
        (64, lambda image: through_jpeg(image, 75)),
        (64, blurred),
        (64, autoencoded),
    ],
    ids=["64", "128", "wide", "tall", "wide-jpeg", "jpeg", "blur", "autoencoder"],
)
def test_pixels_tell_the_scene(size, distort):
    every = scenes(200)
    images = np.stack([distort(render(scene, size)) for scene in every])
    found = scene_check.score(images, every)
    assert found.things >= 0.99
    assert found.relation >= 0.99


def test_other_images_score_at_chance():
    every = scenes(300, held_out=True)
    images = np.stack([render(scene, 64) for scene in every])
    shuffled = scene_check.score(images, every[1:] + every[:1])
    # One of 105 pairs of things, and one of four relations.
    assert shuffled.things < 0.04
    assert shuffled.relation < 0.02
    mirrored = scene_check.score(images[:, ::-1, ::-1], every)
    assert mirrored.relation == 0


def test_what_is_no_shape_is_wrong():
    scene = next(scene for scene in scenes(100) if len(scene.things) == 1)
    image = render(scene, 64)
    assert scene_check.score(image[None], [scene]).things == 1
    assert np.isnan(scene_check.score(image[None], [scene]).relation)
    blank = np.full_like(image, 255)
    assert scene_check.find(blank) == []
    assert scene_check.score(blank[None], [scene]).things == 0
    bar = blank.copy()
    bar[30:34, 5:60] = COLORS["red"]
    assert [thing.shape for thing in scene_check.find(bar)] == ["blob"]
    two = np.minimum(image, image[::-1, ::-1])
    two[:10, :10] = COLORS["blue"]
    assert scene_check.score(two[None], [scene]).things == 0


def run(*args):
    prepare.main([str(arg) for arg in args])


def test_metadata_are_filtered_and_rendered(tmp_path, capsys):
    run("scenes", tmp_path / "metadata.parquet", "--count", 400, "--seed", 5)
    run("filter", tmp_path / "metadata.parquet", tmp_path / "kept")
    removed = re.findall(r"^(\w+) .* (\d+) +[\d.]+%$", capsys.readouterr().out, re.M)
    counts = {name: int(count) for name, count in removed}
    for rule in ("url", "width", "aesthetic", "watermark", "similarity", "hash"):
        assert 3 <= counts[rule] <= 35
    run("render", tmp_path / "kept", tmp_path / "shards", "--image-size", 48, "--shard-size", 150)
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == [
        "00000.tar",
        "00001.tar",
        "00002.tar",
    ]
    source = TarShardsSource(tmp_path / "shards")
    assert len(source) == counts["kept"]
    for record in itertools.islice(source, 40):
        image = np.asarray(Image.open(io.BytesIO(record["image"])))
        assert image.shape == (48, 48, 3)
        texts = record["captions"]
        assert texts["txt"] == texts["caption"] == texts["short"]
        kinds = sorted((color, shape) for _, color, shape in told(texts["long"])[0])
        assert sorted((thing.color, thing.shape) for thing in scene_check.find(image)) == kinds


def test_scenes_of_several_sizes(tmp_path):
    rows = ("scenes", tmp_path / "square.parquet", "--count", 60)
    run(*rows)
    run(*rows[:1], tmp_path / "sizes.parquet", *rows[2:], "--sizes", "64x64", "96x64", "64x96")
    told_before, told_now = (
        read_rows(str(tmp_path / f"{name}.parquet"), "URL", "TEXT", "aesthetic_score")
        for name in ("square", "sizes")
    )
    assert told_before == told_now
    run("render", tmp_path / "sizes.parquet", tmp_path / "shards", "--image-size", 32)
    shapes = set()
    for record in TarShardsSource(tmp_path / "shards"):
        image = np.asarray(Image.open(io.BytesIO(record["image"])))
        shapes.add(image.shape)
        kinds = sorted((color, shape) for _, color, shape in told(record["captions"]["long"])[0])
        assert sorted((thing.color, thing.shape) for thing in scene_check.find(image)) == kinds
    assert {(32, 32, 3), (32, 48, 3), (48, 32, 3)} <= shapes


def test_prompts_of_held_out_scenes_are_written_and_drawn(tmp_path):
    prompts = held_out_prompts(20, 5)
    moved = {}
    for scatter in ("", "--scatter"):
        text, drawings = tmp_path / f"prompts{scatter}.txt", tmp_path / f"drawings{scatter}"
        options = ("--count", 20, "--seed", 5, "--drawings", drawings, *filter(None, [scatter]))
        run("scene-prompts", text, *options)
        assert read_prompts(text) == [prompt.caption for prompt in prompts]
        images = np.stack([np.asarray(Image.open(path)) for path in sorted(drawings.iterdir())])
        assert scene_check.score(images, [prompt.scene for prompt in prompts]) == (1, 1)
        plain = np.stack([render(prompt.scene, 64) for prompt in prompts])
        moved[scatter] = np.any(images != plain, axis=(1, 2, 3)).mean()
    assert moved[""] == 0
    assert moved["--scatter"] > 0.5


def test_shards_of_scattered_scenes(tmp_path):
    run("scenes", tmp_path / "rows.parquet", "--count", 60)
    shards = []
    for number, options in enumerate(((), ("--scatter",), ("--scatter",))):
        folder = tmp_path / f"shards{number}"
        run("render", tmp_path / "rows.parquet", folder, "--image-size", 32, *options)
        shards.append(list(TarShardsSource(folder)))
    plain, moved, again = shards
    assert moved == again
    assert [record["captions"] for record in plain] == [record["captions"] for record in moved]
    differ = [a["image"] != b["image"] for a, b in zip(plain, moved, strict=True)]
    assert 0.3 < np.mean(differ) < 0.8


def test_random_encoder_tells_what_stands_beside_a_shape(tmp_path):
    """A linear map reads a shape's colour, and whether it is the first or the second, off it."""
    pytest.importorskip("sentencepiece")
    run("scenes", tmp_path / "rows.parquet", "--count", 500)
    run("scene-encoder", tmp_path / "rows.parquet", tmp_path / "t5")
    encoder = TextEncoder.load(tmp_path / "t5", length=20, batch_size=64)
    rng = np.random.default_rng(0)
    texts = [captions(scene, rng)["long"].lower() for scene in scenes(900) if scene.relation]
    features, mask = encoder.encode(texts)
    assert features.shape == (len(texts), 20, 128) and mask.all(axis=1).sum() == 0
    rows, colors, places = [], [], []
    for text, tokens in zip(texts, features, strict=True):
        words = text.replace(".", " .").split()
        shapes = [i for i, word in enumerate(words) if word in SHAPES]
        for place, i in enumerate(shapes):
            rows.append(tokens[i - len(words) - 1])  # every word is one token, then comes the end
            colors.append(list(COLORS).index(words[i - 1]))
            places.append(place)
    rows = np.array(rows, np.float32)
    half = len(rows) // 2
    for facts, count in ((colors, len(COLORS)), (places, 2)):
        targets = np.eye(count)[facts]
        weights, *_ = np.linalg.lstsq(rows[:half], targets[:half], rcond=1e-3)
        right = (rows[half:] @ weights).argmax(1) == facts[half:]
        assert right.mean() > 0.95


def test_unfiltered_rows_are_rendered_as_they_would_be_fetched(tmp_path, capsys):
    run("scenes", tmp_path / "a.parquet", "--count", 60, "--held-out")
    run("render", tmp_path / "a.parquet", tmp_path / "shards", "--image-size", 200)
    wrote, skipped = re.findall(r"wrote (\d+) images .*; skipped (\d+)", capsys.readouterr().out)[0]
    urls = [url for (url,) in read_rows(str(tmp_path / "a.parquet"), "URL")]
    without = sum(not url.startswith("https://scenes.example/held-out/") for url in urls)
    assert 0 < without < 60
    assert (int(wrote), int(skipped)) == (60 - without, without)
    records = list(TarShardsSource(tmp_path / "shards"))
    sides = [Image.open(io.BytesIO(record["image"])).width for record in records]
    assert max(sides) == 200
    assert min(sides) < 128
    assert all(told(record["captions"]["long"])[1] for record in records)


def test_bad_input_of_the_commands(tmp_path):
    def fails(message, *args):
        assert re.search(message, tiny.error_line(run, *args))

    fails(r"error: argument --count: 0 must be", "scenes", tmp_path / "a.parquet", "--count", 0)
    refused = ("--count", 1, "--seed", -1)
    fails(r"error: argument --seed: seed=-1 must be", "scenes", tmp_path / "a.parquet", *refused)
    fails(r"error: argument --seed: seed=-1 must be", "scene-prompts", tmp_path / "a.txt", *refused)
    run("scenes", tmp_path / "a.parquet", "--count", 1)
    fails(r"error: .*a\.parquet exists", "scenes", tmp_path / "a.parquet", "--count", 1)
    fails(r"error: image size 4", "render", tmp_path / "a.parquet", tmp_path, "--image-size", 4)
    fails(r"error: there is no parquet file", "render", tmp_path / "b.parquet", tmp_path / "out")
    (tmp_path / "b.parquet").write_text("<html>")
    fails(r"error: .* no metadata of scenes", "render", tmp_path / "b.parquet", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]


def test_captions_describe_their_scenes():
    for seed, scene in enumerate(scenes(200) + scenes(100, held_out=True)):
        for kind, caption in captions(scene, np.random.default_rng(seed)).items():
            read = described(caption)
            assert read is not None, caption
            assert [thing.kind for thing in read.things] == [thing.kind for thing in scene.things]
            assert read.relation == scene.relation, caption
            if kind == "long" and len({thing.kind for thing in scene.things}) == len(scene.things):
                assert read == scene, caption
    assert described("a dog left of a red circle") is None
    assert described("a red circle and more") is None
