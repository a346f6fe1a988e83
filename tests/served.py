"""A server in a thread of this process, its page in a browser, and the images that it owes."""

import base64
import contextlib
import io
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from llamagen_jax.generation import ImageGenerator, generate_images
from llamagen_jax.sampling.settings import SamplingSettings
from llamagen_jax.serve.engine import Engine
from llamagen_jax.serve.http import create_app, make_server
from llamagen_jax.serve.ray_serve import RayEngine

CHROMIUM = shutil.which("chromium")
DRAWN = re.compile(r"\d images? in [\d.]+ s\.")


@contextlib.contextmanager
def serving(engine: Engine | RayEngine) -> Iterator[str]:
    """The address, without a slash at its end, once images are drawn."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = make_server(create_app(engine))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            while thread.is_alive() and not engine.ready:
                time.sleep(0.1)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def pixels(text: str) -> np.ndarray:
    """Of an answer's image."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def image_of(
    generator: ImageGenerator,
    label: int,
    settings: SamplingSettings,
    grid: tuple[int, int] | None = None,
    **given: np.ndarray | None,
) -> np.ndarray:
    """The image that `generate` draws, alone; `given` is `known` or `control`."""
    model = generator.model.for_grid(grid) if grid else generator.model
    weights = generator.params, generator.tokenizer
    labels = np.array([label])
    return generate_images(model, *weights, labels, settings, sample_ids=[0], **given).images[0]


def open_page(page: Page, address: str) -> None:
    page.goto(address)
    expect(page.locator("#draw")).to_have_attribute("aria-disabled", "false")


def status(page: Page) -> Locator:
    return page.locator("#status")


def draw(page: Page, prompt: str = "7", **settings) -> None:
    """Draws images, two of them unless `n` is among the settings."""
    page.get_by_label("Class", exact=True).fill(prompt)
    for name, value in ({"n": 2} | settings).items():
        page.locator(f"[name={name}]").fill(str(value))
    page.get_by_role("button", name="Draw").click()
    expect(status(page)).to_have_text(DRAWN)


def download(page: Page, index: int = 0, path: Path | None = None) -> bytes:
    """The bytes of an image of the newest set, as the page's download saves them."""
    page.locator(".set").first.locator(".picture").nth(index).click()
    with page.expect_download() as started:
        page.get_by_role("link", name="Download").click()
    page.keyboard.press("Escape")
    saved = started.value.path()
    if path:
        shutil.copy(saved, path)
    return Path(saved).read_bytes()


def drop(page: Page, name: str, data: bytes) -> None:
    """Drops a file on the page."""
    files = page.evaluate_handle(
        """([name, data]) => {
          const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
          const transfer = new DataTransfer();
          transfer.items.add(new File([bytes], name, { type: "image/png" }));
          return transfer;
        }""",
        [name, base64.b64encode(data).decode()],
    )
    page.dispatch_event("main", "drop", {"dataTransfer": files})
