"""Images to edit, over HTTP."""

import io

import httpx
import numpy as np
import openai
import pytest
from PIL import Image
from served import image_of, pixels

from llamagen_jax.inpainting import read_edit

ROUTE = "/v1/images/edits"


@pytest.fixture(scope="module")
def client(address):
    return openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0)


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
    generator = engine.generator
    edit = read_edit(FILES["image"], FILES["mask"], (32, 32))
    np.testing.assert_array_equal(edit.mask, HOLE)
    known = edit.known(generator.tokenizer)[None]
    fields = {"seed": 7, "guidance_scale": 2.0, "top_k": 20}
    settings = [generator.settings(**fields | {"seed": seed}) for seed in (7, 8)]
    expected = [edit.paste(image_of(generator, 3, each, known=known)) for each in settings]
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
    answer = httpx.post(f"{address}{ROUTE}", files=parts, timeout=60)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
    assert error["param"] == param
    assert message in error["message"]


def test_broken_forms(address):
    def post(content: bytes, kind: str = "multipart/form-data; boundary=x", **headers):
        sent = {"content-type": kind, **headers}
        answer = httpx.post(f"{address}{ROUTE}", content=content, headers=sent, timeout=60)
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
