"""Images to generate, over HTTP."""

import base64
import http.client
import io
import json
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import openai
import pytest
import tiny
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from served import image_of, pixels
from starlette.testclient import TestClient

from llamagen_jax.generation import ImageGenerator, generate_images
from llamagen_jax.sampling.settings import SamplingSettings
from llamagen_jax.serve.body import ImagesBody
from llamagen_jax.serve.engine import Engine
from llamagen_jax.serve.http import create_app
from llamagen_jax.serve.requests import Picture, Request, Ticket
from llamagen_jax.weights import export

ROUTE = "/v1/images/generations"
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def client(address):
    return openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0)


def test_each_of_many_clients_gets_its_own_images(engine, client):
    """200 requests of 20 clients."""

    def ask(number: int) -> None:
        label, seed, scale = number % 10, number % 7, (1.0, 3.0)[number % 2]
        body = {"seed": seed, "guidance_scale": scale}
        answer = client.images.generate(prompt=str(label), n=1, extra_body=body)
        expected = image_of(engine.generator, label, engine.generator.settings(**body))
        np.testing.assert_array_equal(pixels(answer.data[0].b64_json), expected)

    with ThreadPoolExecutor(20) as clients:
        list(clients.map(ask, range(200)))


def test_an_idle_connection_stays_open(address):
    """For longer than httpx, which openai's client uses, keeps one by itself (5 s)."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"))
    for idle in (6, 0):
        connection.request("GET", "/healthz")
        assert connection.getresponse().read()
        time.sleep(idle)
    connection.close()


def test_images_of_a_request(engine, client):
    four = client.images.generate(prompt="3", n=4, extra_body={"seed": 7})
    three = client.images.generate(prompt="3", n=3, extra_body={"seed": "7"})
    images = [image.b64_json for image in four.data]
    assert len(set(images)) == 4
    assert [image.b64_json for image in three.data] == images[:3]
    for image in four.data:
        alone = client.images.generate(prompt="3", extra_body={"seed": image.seed})
        assert alone.data[0].b64_json == image.b64_json
    assert four.usage.output_tokens == 4 * 16
    assert four.size == "32x32"
    png = Image.open(io.BytesIO(base64.b64decode(images[1])))
    assert png.text["seed"] == "8"
    assert png.text["label"] == "3"


def test_streamed_images(client):
    plain = client.images.generate(prompt="5", n=2, extra_body={"seed": 1})
    stream = client.images.generate(
        prompt="5", n=2, stream=True, partial_images=2, extra_body={"seed": 1}
    )
    kinds: dict[int, list] = {0: [], 1: []}
    for event in stream:
        index = event.image_index
        assert pixels(event.b64_json).shape == (32, 32, 3)
        if event.type == "image_generation.completed":
            assert event.b64_json == plain.data[index].b64_json
            assert event.usage.output_tokens == 16
            kinds[index].append("completed")
        else:
            assert event.type == "image_generation.partial_image"
            kinds[index].append(event.partial_image_index)
    assert kinds == {0: [0, 1, "completed"], 1: [0, 1, "completed"]}
    none = client.images.generate(prompt="5", stream=True, partial_images=0)
    assert [event.type for event in none] == ["image_generation.completed"]


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_formats(engine, client, format):
    answer = client.images.generate(
        prompt="5", output_format=format, response_format="url", extra_body={"seed": 1}
    )
    kind, data = answer.data[0].url.split(",")
    assert kind == f"data:image/{format};base64"
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.format == format.upper()
    difference = np.asarray(image).astype(int) - image_of(
        engine.generator, 5, SamplingSettings(seed=1)
    )
    assert np.abs(difference).mean() < 20


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"prompt": "eleven"}, 400, "there is no class 'eleven'"),
        ({"prompt": ""}, 400, "the prompt is empty"),
        ({"prompt": "\ud800"}, 400, "there is no class"),
        ({"prompt": 3.5}, 400, "prompt: "),
        ({"prompt": "3", "n": 0}, 400, "n must be from 1 to 10"),
        ({"prompt": "3", "n": 10**9}, 400, "n must be from 1 to 10"),
        ({"prompt": "3", "size": "1024x1024"}, 400, "makes images of 32x32, not of '1024x1024'"),
        ({"prompt": "3", "guidance_scale": float("nan")}, 400, "guidance_scale=nan must be finite"),
        ({"prompt": "3", "temperature": float("inf")}, 400, "temperature=inf must be finite"),
        ({"prompt": "3", "top_p": -1.0}, 400, "top_p=-1.0 must be in (0, 1]"),
        ({"prompt": "3", "top_k": "many"}, 400, "top_k: "),
        ({"prompt": "3", "seed": -1}, 400, "seed=-1 must be a whole number"),
        ({"prompt": "3", "partial_images": 4}, 400, "partial_images: "),
        ({"prompt": "3", "model": "dall-e-3"}, 404, "there is no model 'dall-e-3'"),
        ({"prompt": "3", "guidance": 2}, 400, "did you mean 'guidance_scale'?"),
        ({"prompt": "3", "decoder": "speculative"}, 400, "decoder: "),
    ],
)
def test_bad_fields_are_told_in_a_line(address, fields, status, message):
    data = json.dumps(fields)
    answer = httpx.post(f"{address}{ROUTE}", content=data, headers=JSON, timeout=60)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (status, "invalid_request_error")
    assert message in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


def test_prompts(tmp_path):
    """A text-conditional server: prompts are read in its company, bad ones told, others served."""
    export.write(tmp_path / "generator", *tiny.llama(tiny.TEXT_CONFIG))
    export.write(tmp_path / "tokenizer", *tiny.vqgan())
    encoder = tiny.write_t5(tmp_path / "t5", tiny.write_spiece(tmp_path))
    names = [str(tmp_path / "generator"), str(tmp_path / "tokenizer"), str(encoder)]
    mesh = tiny.meshes((1, 1, 1))[0]
    engine = Engine(ImageGenerator.open(*names, mesh=mesh), mesh, num_slots=4)
    with TestClient(create_app(engine)) as client:

        def ask(prompt):
            return client.post(
                ROUTE, content=json.dumps({"prompt": prompt, "seed": 3}), headers=JSON
            )

        bad = {"": "empty", "  ": "empty", "a\ud800": "no UTF-8", "red " * 9: "the model reads 5"}
        for prompt, message in bad.items():
            answer = ask(prompt)
            assert answer.status_code == 400
            assert message in answer.json()["error"]["message"]
        with ThreadPoolExecutor(3) as clients:
            answers = list(clients.map(ask, ["red", "a cat", "12"]))
    generator, read = engine.generator, engine.generator.read(["red", "a cat", "12"])
    for i, answer in enumerate(answers):
        rows = {name: array[i : i + 1] for name, array in read.items()}
        weights = generator.model, generator.params, generator.tokenizer
        settings = generator.settings(seed=3)
        samples = generate_images(*weights, settings=settings, sample_ids=[0], **rows)
        image = pixels(answer.json()["data"][0]["b64_json"])
        np.testing.assert_array_equal(image, samples.images[0])


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b"\xff", 400),
        (b"[" * 100_000, 400),
        (b'{"prompt": "3", "temperature": 1e999}', 400),
        (b'{"prompt": "3", "seed": ' + b"9" * 5000 + b"}", 400),
        (b'{"prompt": "' + b"3" * 2_000_000 + b'"}', 413),
    ],
)
def test_broken_bodies(address, data, status):
    answer = httpx.post(f"{address}{ROUTE}", content=data, headers=JSON, timeout=60)
    assert answer.status_code == status
    assert "message" in answer.json()["error"]


class _Instant:
    """Stands for the engine where only what leads to it is tried: it delivers at once."""

    failure, ready, num_waiting, num_busy, num_slots = None, True, 0, 0, 1

    def __init__(self, engine: Engine):
        self.generator, self.counts = engine.generator, engine.counts

    def start(self):
        pass

    def stop(self):
        pass

    def submit(self, request, deliver):
        for index in range(len(request.settings)):
            deliver(Picture(index, None, np.zeros((32, 32, 3), np.uint8)))
        return Ticket(request, deliver)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=3,
)
_FIELDS = st.sampled_from([*ImagesBody.model_fields, "other"])


def test_no_body_is_a_fault_of_the_server(engine):
    """A thousand of them, half with a prompt that there is."""
    app = create_app(_Instant(engine))
    statuses = set()
    with TestClient(app, raise_server_exceptions=False) as client:

        @given(st.dictionaries(_FIELDS, _VALUES, max_size=4), st.booleans())
        @hypothesis_settings(
            max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck)
        )
        def ask(body, prompted):
            body = body | {"prompt": "3"} if prompted else body
            answer = client.post(ROUTE, content=json.dumps(body), headers=JSON)
            statuses.add(answer.status_code)

        ask()
    assert 200 in statuses
    assert max(statuses) < 500


def test_other_routes(address, client):
    (model,) = client.models.list().data
    assert model.id == "generator"
    assert client.models.retrieve("generator").size == "32x32"
    assert httpx.get(f"{address}/readyz", timeout=60).json() == {"status": "ready"}
    assert httpx.get(f"{address}/healthz", timeout=60).status_code == 200
    assert "llamagen_slots 4.0" in httpx.get(f"{address}/metrics", timeout=60).text
    assert httpx.get(f"{address}/v1/none", timeout=60).json()["error"]["type"]
    page = httpx.get(address, timeout=60)
    assert "default-src 'self'" in page.headers["content-security-policy"]
    form = httpx.post(f"{address}{ROUTE}", data={"prompt": "3"}, timeout=60)
    assert form.status_code == 415


def test_a_client_that_hangs_up_frees_its_slots(engine, address):
    body = {"prompt": "3", "n": 10, "stream": True, "partial_rows": True}
    with httpx.stream("POST", f"{address}{ROUTE}", json=body, timeout=60) as answer:
        next(answer.iter_lines())
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{address}{ROUTE}", json={"prompt": "3", "n": 10}, timeout=0.001)
    after = httpx.post(f"{address}{ROUTE}", json={"prompt": "4"}, timeout=60)
    assert after.status_code == 200
    assert engine.num_waiting == 0


def test_a_full_queue_asks_to_come_again(engine):
    full = Engine(engine.generator, tiny.meshes((1, 1, 1))[0], num_slots=1, max_waiting=1)
    full.start = lambda: None  # so that nothing leaves it
    with TestClient(create_app(full, timeout=0.1)) as client:
        slow = client.post(ROUTE, json={"prompt": "3", "n": 2})
        assert slow.status_code == 504
        full.submit(Request(3, [SamplingSettings(seed=0)] * 2), lambda item: None)
        answer = client.post(ROUTE, json={"prompt": "3"})
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"


def test_keys(engine):
    app = create_app(_Instant(engine), api_keys=["one", "two"])
    with TestClient(app) as client:
        for key, status in (("one", 200), ("two", 200), ("three", 401), ("", 401), ("é", 401)):
            sent = {"authorization": f"Bearer {key}".encode()}
            answer = client.post(ROUTE, json={"prompt": "3"}, headers=sent)
            assert answer.status_code == status
        assert client.get("/v1/models").status_code == 401
        assert client.get("/healthz").status_code == 200
