"""Control images of requests: each image's own, whatever its company has."""

import base64
import dataclasses
import io
import json
import re

import jax
import numpy as np
import pytest
import tiny
from PIL import Image
from starlette.testclient import TestClient

from llamagen_jax.control_maps import hide
from llamagen_jax.generation import ImageGenerator, generate_images
from llamagen_jax.images import encode, to_uint8
from llamagen_jax.inpainting import Edit
from llamagen_jax.sampling.generate import generate
from llamagen_jax.sampling.settings import SamplingSettings
from llamagen_jax.serve import body as bodies
from llamagen_jax.serve import slots
from llamagen_jax.serve.engine import Engine
from llamagen_jax.serve.http import create_app
from llamagen_jax.weights import export

CONFIG = dataclasses.replace(
    tiny.LLAMA_CONFIG,
    n_layers=1,
    grid_size=(2, 4),
    control_layers=1,
    control_dim=64,
    control_patch=8,
)
CONTROLS = np.random.default_rng(0).integers(0, 256, (2, 16, 32, 3), np.uint8)
ROUTE = "/v1/images/generations"
GUIDED = {"seed": 5, "guidance_scale": 2.0}


def test_slots_have_controls_of_their_own():
    """One sample with control, one without, one with half of it, which its null branch keeps: those
    of `generate`."""
    model, params = tiny.llama(CONFIG)
    model, params = model.for_decoding(params)
    settings = [
        SamplingSettings(**GUIDED, control_scale=scale, keep_control=scale < 1)
        for scale in (1.0, 1.0, 0.5)
    ]
    rows = [
        slots.sample_of(each, 0, CONFIG, has_control)
        for each, has_control in zip(settings, (True, False, True), strict=True)
    ]
    samples = slots.Samples(*map(np.concatenate, zip(*rows, strict=True)))
    images = CONTROLS[[0, 0, 1]]
    labels, places = np.full(3, 3, np.int32), np.array([2, 0, 1], np.int32)
    enter = jax.jit(slots.enter, static_argnums=0)
    known, free = None, slots.empty(model, 3)
    state = enter(model, params, free, places, labels, None, samples, known, [images])
    static = ("passes", "width", "guided", "size")
    advance = jax.jit(slots.advance, static_argnums=0, static_argnames=static)
    state = advance(model, params, state, passes=7, width=1, guided=True, size=3)
    for i, control in enumerate((images[:1], None, images[2:])):
        expected = generate(
            model, params, labels[:1], settings=settings[i], sample_ids=[0], control=control
        )
        np.testing.assert_array_equal(state.progress.codes[places[i]], expected[0])


def test_the_encoder_runs_for_controls_alone():
    """A broken one breaks no sample without control."""
    model, params = tiny.llama(CONFIG)
    model, params = model.for_decoding(params)
    encoder = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), params["control_encoder"])
    params = {**params, "control_encoder": encoder}
    enter = jax.jit(slots.enter, static_argnums=0)
    labels, places, free = np.full(1, 3, np.int32), np.zeros(1, np.int32), slots.empty(model, 1)
    for has_control in (False, True):
        samples = slots.sample_of(SamplingSettings(**GUIDED), 0, CONFIG, has_control)
        state = enter(model, params, free, places, labels, None, samples, None, [CONTROLS[:1]])
        assert np.any(np.isnan(state.control)) == has_control


def test_slots_have_controls_of_their_own_size():
    grids = ((2, 4), (4, 1), (3, 3))
    model, params = tiny.llama(dataclasses.replace(CONFIG, grids=grids))
    model, params = model.for_decoding(tiny.with_sizes(params))
    settings = SamplingSettings(**GUIDED)
    models = [model.for_grid(grid) for grid in grids]
    rows = [slots.sample_of(settings, 0, each.config, has_control=True) for each in models]
    samples = slots.Samples(*map(np.concatenate, zip(*rows, strict=True)))
    rng = np.random.default_rng(1)
    controls = [rng.integers(0, 256, (3, *m.config.control_size, 3), np.uint8) for m in models]
    labels, places = np.full(3, 3, np.int32), np.array([2, 0, 1], np.int32)
    enter = jax.jit(slots.enter, static_argnums=0)
    known, free = None, slots.empty(model, 3)
    state = enter(model, params, free, places, labels, None, samples, known, controls)
    static = ("passes", "width", "guided", "size")
    advance = jax.jit(slots.advance, static_argnums=0, static_argnames=static)
    state = advance(model, params, state, passes=8, width=1, guided=True, size=3)
    for i, each in enumerate(models):
        control = controls[i][i : i + 1]
        expected = generate(
            each, params, labels[:1], settings=settings, sample_ids=[0], control=control
        )[0]
        found = state.progress.codes[places[i]]
        np.testing.assert_array_equal(found[: len(expected)], expected)


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    _, tokenizer = tiny.exports(folder)
    export.write(folder / "controlled", *tiny.llama(CONFIG))
    mesh = tiny.meshes((1, 1, 1))[0]
    return ImageGenerator.open(str(folder / "controlled"), str(tokenizer), mesh=mesh)


@pytest.fixture(scope="module")
def client(generator):
    engine = Engine(generator, tiny.meshes((1, 1, 1))[0], num_slots=2, chunk=3)
    with TestClient(create_app(engine)) as client:
        yield client


def drawn(generator, control, **fields):
    samples = generate_images(
        generator.model,
        generator.params,
        generator.tokenizer,
        np.array([3]),
        SamplingSettings(**fields),
        sample_ids=[0],
        control=None if control is None else control[None],
    )
    return samples.images[0]


def text_of(control):
    return base64.b64encode(encode(control, "png")).decode()


@pytest.mark.slow
def test_every_image_has_its_own_control(generator, client):
    """Requests follow each other in the slots, with control and without."""
    asked = [
        (CONTROLS[0], {"guidance_scale": 2.0}),
        (None, {"guidance_scale": 2.0}),
        (CONTROLS[1], {"control_scale": 0.5, "guidance_scale": 2.0, "keep_control": True}),
    ]
    pictures = []
    for control, fields in asked:
        body = {"prompt": "3", "n": 2, "seed": 5, **fields}
        if control is not None:
            body["control"] = text_of(control)
        answer = client.post(ROUTE, json=body).json()
        for i, image in enumerate(answer["data"]):
            picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))))
            np.testing.assert_array_equal(picture, drawn(generator, control, seed=5 + i, **fields))
            pictures.append(picture.tobytes())
    assert len(set(pictures)) == 6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"control": "no base64!"}, "base64"),
        ({"control": base64.b64encode(b"no image").decode()}, "is no image, or damaged"),
        ({"control": text_of(CONTROLS[0][:, :16])}, "another shape than the images of 32x16 px"),
        ({"control": text_of(CONTROLS[0]), "control_kind": "cany"}, "did you mean 'canny'"),
        ({"control_kind": "canny"}, "control_kind is for a control"),
        ({"control_kind": "surroundings"}, "are those of an image to edit"),
    ],
)
def test_bad_controls_are_told(fields, message):
    body = bodies.parse(json.dumps({"prompt": "3", **fields}).encode())
    with pytest.raises(bodies.ApiError, match=re.escape(message)) as error:
        bodies.control_of(body, CONFIG, None)
    assert error.value.status == 400
    assert error.value.param.startswith("control")
    with pytest.raises(bodies.ApiError, match=r"trained without control|is for a control"):
        bodies.control_of(body, tiny.LLAMA_CONFIG, None)


def test_an_edit_shows_its_surroundings(client, generator):
    """The pixels that are sent are the control of the hole in them."""
    edit = Edit(CONTROLS[0], np.zeros((16, 32), bool))
    edit.mask[8:, 5:20] = True
    image = np.concatenate([edit.image, np.where(edit.mask, 0, 255)[..., None]], axis=-1)
    data = io.BytesIO()
    Image.fromarray(image.astype(np.uint8)).save(data, "png")
    fields = {"prompt": "3", "seed": "5", "control_kind": "surroundings"}
    answer = client.post("/v1/images/edits", data=fields, files={"image": data.getvalue()})
    picture = base64.b64decode(answer.json()["data"][0]["b64_json"])
    codes = generate(
        generator.model,
        generator.params,
        [3],
        seed=5,
        sample_ids=[0],
        control=hide(*edit)[None],
        known=edit.known(generator.tokenizer)[None],
    )
    drawn = to_uint8(generator.tokenizer.decode(codes.reshape(1, 2, 4)))
    expected = edit.paste(np.asarray(drawn[0]))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(picture))), expected)
    plain = client.post(
        "/v1/images/edits", data={"prompt": "3", "seed": "5"}, files={"image": data.getvalue()}
    )
    assert plain.json()["data"][0]["b64_json"] != answer.json()["data"][0]["b64_json"]
