"""A tiny generator's server; a module with an `engine` of its own has a server of that one."""

import pytest
import tiny
from playwright.sync_api import expect, sync_playwright
from served import CHROMIUM, open_page, serving

from llamagen_jax.generation import ImageGenerator
from llamagen_jax.serve.engine import Engine

expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Engine:
    names = tiny.exports(tmp_path_factory.mktemp("models"))
    mesh = tiny.meshes((1, 1, 1))[0]
    return Engine(ImageGenerator.open(*map(str, names), mesh=mesh), mesh, num_slots=4, chunk=4)


@pytest.fixture(scope="module")
def address(engine):
    with serving(engine) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("needs chromium (apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    """A page that nothing has been drawn on, without errors in its scripts."""
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    open_page(page, address)
    yield page
    context.close()
    assert not errors
