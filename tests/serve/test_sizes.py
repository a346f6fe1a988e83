"""Images of several sizes share the slots of an engine."""

import base64
import dataclasses
import io
import queue

import httpx
import jax
import numpy as np
import pytest
import tiny
from PIL import Image
from playwright.sync_api import expect
from served import download, draw, drop, image_of

from llamagen_jax.generation import ImageGenerator
from llamagen_jax.image_tokenizer import ModelTokenizer
from llamagen_jax.sampling.settings import SamplingSettings
from llamagen_jax.serve.engine import Engine
from llamagen_jax.serve.requests import Request

GRIDS = ((4, 4), (3, 6), (2, 3))
# Of the images of each grid.
SETTINGS = [
    SamplingSettings(seed=42, guidance_scale=3.0),
    SamplingSettings(seed=7, top_k=5),
    SamplingSettings(seed=8, guidance_scale=2.0, guidance_interval=2),
]
ROUTE = "/v1/images/generations"


@pytest.fixture(scope="module")
def engine():
    model, params = tiny.llama(dataclasses.replace(tiny.LLAMA_CONFIG, grids=GRIDS))
    model, params = model.for_decoding(tiny.with_sizes(params))
    weights = jax.device_put((params, ModelTokenizer(*tiny.vqgan())), jax.devices()[0])
    generator = ImageGenerator("generator", model, *weights, None, ())
    return Engine(generator, tiny.meshes((1, 1, 1))[0], num_slots=3, chunk=3, max_waiting=100)


@pytest.fixture(scope="module")
def client(address):
    return httpx.Client(base_url=address, timeout=60)


def test_images_do_not_depend_on_the_sizes_beside_them(engine, client):
    """More images than slots, so that sizes follow each other in every slot."""
    delivered, asked = queue.Queue(), {}
    for number in range(16):
        grid, settings = GRIDS[number % 3], SETTINGS[number % 3]
        asked[number] = number % 10, settings, grid
        request = Request(number % 10, [settings], grid=grid)
        engine.submit(request, lambda item, number=number: delivered.put((number, item)))
    drawn = dict(delivered.get(timeout=120) for _ in asked)
    for number, (label, settings, grid) in asked.items():
        np.testing.assert_array_equal(
            drawn[number].image, image_of(engine.generator, label, settings, grid)
        )


def test_windows_draw_the_same_images(engine, client):
    delivered, settings = queue.Queue(), SETTINGS[1]
    jacobi = dataclasses.replace(settings, decoder="jacobi")
    engine.submit(Request(4, [jacobi], grid=GRIDS[1]), delivered.put)
    image = delivered.get(timeout=120).image
    np.testing.assert_array_equal(image, image_of(engine.generator, 4, settings, GRIDS[1]))


def test_a_request_names_its_size(engine, client):
    body = {"prompt": "3", "seed": 7, "top_k": 5, "size": "48x24"}
    answer = client.post(ROUTE, json=body).json()
    assert answer["size"] == "48x24"
    assert answer["usage"]["output_tokens"] == 18
    picture = Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"])))
    assert picture.text["size"] == "48x24"
    np.testing.assert_array_equal(
        np.asarray(picture), image_of(engine.generator, 3, SETTINGS[1], (3, 6))
    )
    default = client.post(ROUTE, json={"prompt": "3", "size": "auto"}).json()
    assert default["size"] == "32x32"


def test_partial_pictures_have_their_size(engine, client):
    delivered = queue.Queue()
    request = Request(1, SETTINGS[:1], partial_at=(7, 12), grid=(3, 6))
    engine.submit(request, delivered.put)
    pictures = [delivered.get(timeout=120) for _ in range(3)]
    assert [picture.image.shape for picture in pictures] == [(24, 48, 3)] * 3
    grey = np.all(pictures[0].image == 128, axis=-1)[::8, ::8].ravel()
    assert 7 <= np.sum(~grey) < 7 + engine.chunk
    assert np.all(np.diff(grey.astype(int)) >= 0)


def test_the_page_chooses_among_sizes(engine, page):
    field = page.get_by_label("Size")
    expect(field.locator("option")).to_have_count(3)
    images = []
    for size, grid in (("48x24", GRIDS[1]), ("32x32", GRIDS[0])):
        field.select_option(size)
        draw(page, "3", n=1, seed=7, top_k=5)
        images.append(download(page))
        image = np.asarray(Image.open(io.BytesIO(images[-1])))
        expected = image_of(engine.generator, 3, SETTINGS[1], grid)
        np.testing.assert_array_equal(image, expected)
    expect(page.locator(".set .about").first).to_contain_text("size 32x32")
    drop(page, "wide.png", images[0])
    expect(field).to_have_value("48x24")


def test_sizes_are_told_and_others_refused(client):
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["size"], model["sizes"]) == ("32x32", ["32x32", "48x24", "24x16"])
    answer = client.post(ROUTE, json={"prompt": "3", "size": "24x48"})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "size"
    assert error["message"].endswith("makes images of 32x32, 48x24, 24x16, not of '24x48'")
