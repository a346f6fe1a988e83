import base64
import functools
import io
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import tiny
import uvicorn
from PIL import Image

from llamagen_jax import ray_cluster
from llamagen_jax.generation import ImageGenerator, generate_images
from llamagen_jax.serve import __main__ as command
from llamagen_jax.serve.http import create_app
from llamagen_jax.serve.ray_serve import RayEngine

ROUTE = "/v1/images/generations"


@pytest.mark.slow
def test_no_request_is_lost_with_a_replica(tmp_path):
    """One of two replicas is killed under load; all images are those of one process."""
    generator, tokenizer = map(str, tiny.exports(tmp_path))
    sizes = {"num_slots": 8, "chunk": 2, "max_waiting": 1000}
    models = {"tokenizer": tokenizer, "text_encoder": None, "dtype": None}
    axes = {"data": -1, "fsdp": 1, "tensor": 1}
    make = functools.partial(command._open_engine, generator, models, axes, sizes)
    with ray_cluster.connected("local"), socket.create_server(("127.0.0.1", 0)) as listener:
        import ray

        engine = RayEngine(make, replicas=2, num_slots=8, max_waiting=1000, devices=1)
        server = uvicorn.Server(uvicorn.Config(create_app(engine), log_level="error"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"

        begun = threading.Event()

        def ask(number: int) -> bytes:
            body = {"prompt": str(number % 10), "seed": number, "n": 10}
            answer = httpx.post(f"{address}{ROUTE}", json=body, timeout=300)
            assert answer.status_code == 200, answer.text
            begun.set()
            return base64.b64decode(answer.json()["data"][1]["b64_json"])

        def kill() -> None:
            begun.wait()
            names = ray.util.list_named_actors(all_namespaces=True)
            replica = next(n for n in names if "Replica" in n["name"])
            ray.kill(ray.get_actor(replica["name"], namespace=replica["namespace"]))

        with ThreadPoolExecutor(20) as clients:
            killer = clients.submit(kill)
            answers = list(clients.map(ask, range(100)))
        killer.result()
        server.should_exit = True
        thread.join()
    alone = ImageGenerator.open(generator, tokenizer)
    for number, png in enumerate(answers):
        settings = alone.settings(seed=number + 1)
        weights = alone.model, alone.params, alone.tokenizer
        samples = generate_images(*weights, np.array([number % 10]), settings, sample_ids=[0])
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), samples.images[0])
