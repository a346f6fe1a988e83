import base64
import contextlib
import dataclasses
import functools
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import tiny
from served import image_of, pixels, serving

from llamagen_jax import ray_cluster
from llamagen_jax.generation import ImageGenerator
from llamagen_jax.images import encode
from llamagen_jax.inpainting import read_edit
from llamagen_jax.serve import __main__ as command
from llamagen_jax.serve.ray_serve import RayEngine
from llamagen_jax.weights import export

ROUTE = "/v1/images/generations"


@contextlib.contextmanager
def replicas(generator: str, tokenizer: str, count: int):
    """The address of a server before replicas in a cluster of their own."""
    sizes = {"num_slots": 8, "chunk": 2, "max_waiting": 1000}
    models = {"tokenizer": tokenizer, "text_encoder": None, "dtype": None}
    axes = {"data": -1, "fsdp": 1, "tensor": 1}
    make = functools.partial(command._open_engine, generator, models, axes, sizes)
    with ray_cluster.connected("local"):
        engine = RayEngine(make, replicas=count, num_slots=8, max_waiting=1000, devices=1)
        with serving(engine) as address:
            yield address


@pytest.mark.slow
def test_no_request_is_lost_with_a_replica(tmp_path):
    """One of two replicas is killed under load; all images are those of one process."""
    generator, tokenizer = map(str, tiny.exports(tmp_path))
    with replicas(generator, tokenizer, 2) as address:
        import ray

        begun = threading.Event()

        def ask(number: int) -> np.ndarray:
            body = {"prompt": str(number % 10), "seed": number, "n": 10}
            answer = httpx.post(f"{address}{ROUTE}", json=body, timeout=300)
            assert answer.status_code == 200, answer.text
            begun.set()
            return pixels(answer.json()["data"][1]["b64_json"])

        def kill() -> None:
            begun.wait()
            names = ray.util.list_named_actors(all_namespaces=True)
            replica = next(n for n in names if "Replica" in n["name"])
            ray.kill(ray.get_actor(replica["name"], namespace=replica["namespace"]))

        with ThreadPoolExecutor(20) as clients:
            killer = clients.submit(kill)
            answers = list(clients.map(ask, range(100)))
        killer.result()
    alone = ImageGenerator.open(generator, tokenizer)
    for number, image in enumerate(answers):
        settings = alone.settings(seed=number + 1)
        np.testing.assert_array_equal(image, image_of(alone, number % 10, settings))


@pytest.mark.slow
def test_sizes_edits_and_controls_reach_a_replica(tmp_path):
    config = dataclasses.replace(
        tiny.LLAMA_CONFIG, grids=((4, 4), (2, 3)), control_layers=1, control_dim=64, control_patch=8
    )
    model, params = tiny.llama(config)
    export.write(tmp_path / "generator", model, tiny.with_sizes(params))
    export.write(tmp_path / "tokenizer", *tiny.vqgan())
    names = str(tmp_path / "generator"), str(tmp_path / "tokenizer")
    picture = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    mask = np.zeros_like(picture)
    mask[:, 8:] = 255
    files = {"image": encode(picture, "png"), "mask": encode(mask, "png")}
    fields = {"prompt": "3", "seed": 7, "guidance_scale": 2.0, "size": "24x16"}
    control = {"control": base64.b64encode(encode(picture, "png")).decode()}
    with replicas(*names, 1) as address:
        answers = [
            httpx.post(f"{address}{ROUTE}", json=fields, timeout=300),
            httpx.post(f"{address}{ROUTE}", json=fields | control, timeout=300),
            httpx.post(f"{address}/v1/images/edits", data=fields, files=files, timeout=300),
            httpx.post(f"{address}{ROUTE}", json={**fields, "size": "32x32"}, timeout=300),
        ]
        assert [answer.status_code for answer in answers] == [200] * 4
    images = [pixels(answer.json()["data"][0]["b64_json"]) for answer in answers]
    alone = ImageGenerator.open(*names)
    settings = alone.settings(seed=7, guidance_scale=2.0)
    edit = read_edit(files["image"], files["mask"], (16, 24))
    known = edit.known(alone.tokenizer)[None]
    expected = [
        image_of(alone, 3, settings, (2, 3)),
        image_of(alone, 3, settings, (2, 3), control=picture[None]),
        edit.paste(image_of(alone, 3, settings, (2, 3), known=known)),
        image_of(alone, 3, settings, (4, 4)),
    ]
    assert len({image.tobytes() for image in images}) == 4
    for image, wanted in zip(images, expected, strict=True):
        np.testing.assert_array_equal(image, wanted)
