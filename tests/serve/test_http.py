import base64
import io
import json
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import tiny
import uvicorn
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

from llamagen_jax.errors import InputError
from llamagen_jax.generation import ImageGenerator, generate_images
from llamagen_jax.inpainting import read_edit
from llamagen_jax.sampling.settings import SamplingSettings
from llamagen_jax.serve import __main__ as command
from llamagen_jax.serve import http as served
from llamagen_jax.serve.engine import Engine
from llamagen_jax.serve.requests import Picture, Request, Ticket
from llamagen_jax.weights import export

openai = pytest.importorskip("openai")
ROUTE = "/v1/images/generations"
EDITS = "/v1/images/edits"
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Engine:
    names = tiny.exports(tmp_path_factory.mktemp("models"))
    mesh = tiny.meshes((1, 1, 1))[0]
    return Engine(ImageGenerator.open(*map(str, names), mesh=mesh), mesh, num_slots=4, chunk=4)


@pytest.fixture(scope="module")
def address(engine):
    """Of a server in a thread of this process."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(served.create_app(engine), log_level="error"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def client(address):
    return openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0)


def pixels(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def drawn(engine: Engine, label: int, *, known=None, **fields) -> np.ndarray:
    generator = engine.generator
    samples = generate_images(
        generator.model,
        generator.params,
        generator.tokenizer,
        np.array([label]),
        generator.settings(**fields),
        sample_ids=[0],
        known=known,
    )
    return samples.images[0]


def test_each_of_many_clients_gets_its_own_images(engine, client):
    """200 requests of 20 clients."""

    def ask(number: int) -> None:
        label, seed, scale = number % 10, number % 7, (1.0, 3.0)[number % 2]
        body = {"seed": seed, "guidance_scale": scale}
        answer = client.images.generate(prompt=str(label), n=1, extra_body=body)
        expected = drawn(engine, label, seed=seed, guidance_scale=scale)
        np.testing.assert_array_equal(pixels(answer.data[0].b64_json), expected)

    with ThreadPoolExecutor(20) as clients:
        list(clients.map(ask, range(200)))


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
    difference = np.asarray(image).astype(int) - drawn(engine, 5, seed=1)
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
    with TestClient(served.create_app(engine)) as client:

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


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


PICTURE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
HOLE = np.kron([[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]], np.ones((8, 8))) > 0
# As OpenAI's masks, transparent where the image is edited.
FILES = {
    "image": png(PICTURE),
    "mask": png(np.dstack([PICTURE, np.where(HOLE, 0, 255)]).astype("u1")),
}


def test_edits(engine, client):
    edit = read_edit(FILES["image"], FILES["mask"], (32, 32))
    np.testing.assert_array_equal(edit.mask, HOLE)
    known = edit.known(engine.generator.tokenizer)[None]
    fields = {"seed": 7, "guidance_scale": 2.0, "top_k": 20}
    expected = [
        edit.paste(drawn(engine, 3, known=known, **(fields | {"seed": seed}))) for seed in (7, 8)
    ]
    assert not np.array_equal(*expected)
    body = {**fields, "decoder": "jacobi"}
    answer = client.images.edit(**FILES, prompt="3", n=2, size="32x32", extra_body=body)
    for image, pixels_ in zip(answer.data, expected, strict=True):
        np.testing.assert_array_equal(pixels(image.b64_json), pixels_)
    assert answer.usage.output_tokens == 2 * 16
    # The mask may be in the image, and that in a list.
    answer = client.images.edit(image=[FILES["mask"]], prompt="3", extra_body=fields)
    np.testing.assert_array_equal(pixels(answer.data[0].b64_json), expected[0])
    stream = client.images.edit(
        **FILES, prompt="3", stream=True, partial_images=1, input_fidelity="high", extra_body=fields
    )
    partial, whole = stream
    assert (partial.type, whole.type) == ("image_edit.partial_image", "image_edit.completed")
    np.testing.assert_array_equal(pixels(whole.b64_json), expected[0])
    np.testing.assert_array_equal(pixels(partial.b64_json)[~HOLE], PICTURE[~HOLE])


@pytest.mark.parametrize(
    ("changes", "param", "message"),
    [
        ({"image": None}, "image", "the image is missing"),
        ({"image": b"PNG"}, "image", "image: no image that can be read"),
        ({"image": FILES["image"][:200]}, "image", "image: no image that can be read"),
        (
            {"image": png(PICTURE[:16])},
            "image",
            "32x16 px have another aspect ratio than the 32x32",
        ),
        ({"image[]": FILES["image"]}, "image", "there is more than one 'image'"),
        ({"mask": None}, "image", "image: nothing is transparent: give a mask"),
        ({"mask": b""}, "mask", "mask: no image that can be read"),
        ({"mask": png(HOLE[:16])}, "mask", "mask: 32x16 px are not the image's 32x32 px"),
        ({"mask": png(~np.ones_like(HOLE))}, "mask", "mask: masks nothing"),
        ({"mask": "a text"}, "mask", "'mask' must be a file"),
        ({"prompt": png(PICTURE)}, "prompt", "'prompt' is no file"),
        ({"prompt": None}, "prompt", "prompt: Field required"),
        ({"n": "11"}, "n", "n must be from 1 to 10"),
        ({"n": "one"}, "n", "n: Input should be a valid integer"),
        ({"size": "64x64"}, "size", "makes images of 32x32"),
        ({"temperature": "nan"}, "temperature", "temperature=nan must be finite"),
        ({"markup": "x"}, "markup", "there is no field 'markup'"),
    ],
    ids=range(17),
)
def test_bad_forms_are_told_in_a_line(address, changes, param, message):
    given = {
        name: value
        for name, value in ({"prompt": "3"} | FILES | changes).items()
        if value is not None
    }
    # A text is a part without the name of a file.
    parts = [
        (name, (name if isinstance(value, bytes) else None, value)) for name, value in given.items()
    ]
    answer = httpx.post(f"{address}{EDITS}", files=parts, timeout=60)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
    assert error["param"] == param
    assert message in error["message"]


def test_broken_forms(address):
    def post(content: bytes, kind: str = "multipart/form-data; boundary=x", **headers):
        sent = {"content-type": kind, **headers}
        answer = httpx.post(f"{address}{EDITS}", content=content, headers=sent, timeout=60)
        assert answer.json()["error"]["message"]
        return answer.status_code

    part = b'--x\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n'
    assert post(b"", "multipart/form-data") == 400
    assert post(b"nothing of the kind") == 400
    assert post(part + b"no end") == 400
    assert post(b"--x\r\n\r\nno name\r\n--x--") == 400
    assert post(part + b"0" * 2**24) == 413
    assert post(b"{}", "application/json") == 415
    assert post(part, **{"sec-fetch-site": "cross-site"}) == 403


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
_FIELDS = st.sampled_from([*served.ImagesBody.model_fields, "other"])


def test_no_body_is_a_fault_of_the_server(engine):
    """A thousand of them, half with a prompt that there is."""
    app = served.create_app(_Instant(engine))
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
    with TestClient(served.create_app(full, timeout=0.1)) as client:
        slow = client.post(ROUTE, json={"prompt": "3", "n": 2})
        assert slow.status_code == 504
        full.submit(Request(3, [SamplingSettings(seed=0)] * 2), lambda item: None)
        answer = client.post(ROUTE, json={"prompt": "3"})
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"


def test_keys(engine):
    app = served.create_app(_Instant(engine), api_keys=["one", "two"])
    with TestClient(app) as client:
        for key, status in (("one", 200), ("two", 200), ("three", 401), ("", 401), ("é", 401)):
            sent = {"authorization": f"Bearer {key}".encode()}
            answer = client.post(ROUTE, json={"prompt": "3"}, headers=sent)
            assert answer.status_code == status
        assert client.get("/v1/models").status_code == 401
        assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "give --api-key-file"),
        (["--generator", "nowhere"], "--generator: "),
        (["--api-key-file", "{empty}"], "holds no key"),
        (["--port", "{taken}"], "choose another --port"),
        (["--tokenizer", "{generator}"], "expected a tokenizer"),
        (["--tensor", "3"], "does not use the 8 devices"),
    ],
)
def test_bad_options_are_told_in_a_line(tmp_path, options, message):
    generator, tokenizer = tiny.exports(tmp_path)
    (tmp_path / "empty").write_text("\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        names = {
            "empty": tmp_path / "empty",
            "taken": taken.getsockname()[1],
            "generator": generator,
        }
        given = [option.format(**names) for option in options]
        default = ["--generator", str(generator), "--tokenizer", str(tokenizer), "--port", "0"]
        args = command._parser().parse_args([*default, *given])
        with pytest.raises(InputError, match=message):
            command.run(args)


def test_process_drains_and_leaves_nothing(tmp_path):
    """SIGTERM lets the request end and exits with 0; kill -9 leaves a free port and no file."""
    generator, tokenizer = tiny.exports(tmp_path)
    (tmp_path / "empty").mkdir()
    options = ["--generator", str(generator), "--tokenizer", str(tokenizer), "--slots", "8"]

    def start(port: int) -> tuple[subprocess.Popen, str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "llamagen_jax.serve", *options, "--port", str(port)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=tmp_path / "empty",
        )
        assert process.stdout
        return process, process.stdout.readline().split()[-1]

    process, address = start(0)
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0)
    stream = client.images.generate(prompt="1", n=4, stream=True, extra_body={"partial_rows": True})
    events = iter(stream)
    first = next(events)
    process.send_signal(signal.SIGTERM)
    kinds = [first.type, *(event.type for event in events)]
    assert kinds.count("image_generation.completed") == 4
    assert process.wait(60) == 0
    port = int(address.rpartition(":")[2])
    process, again = start(port)
    assert again == address
    process.kill()
    process.wait()
    with socket.create_server(("127.0.0.1", port)):
        pass
    assert list((tmp_path / "empty").iterdir()) == []
