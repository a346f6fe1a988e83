"""The page in Debian's chromium, before a server of a tiny generator."""

import base64
import io
import json
import shutil
import subprocess
import threading
import time

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect
from served import DRAWN, download, draw, drop, open_page, status

from llamagen_jax.images import save_png


def form(page):
    names = "prompt", "n", "seed", "guidance_scale", "temperature", "top_k", "top_p"
    return {name: page.locator(f"[name={name}]").input_value() for name in names}


def test_the_same_seed_draws_the_same_bytes(page):
    draw(page, seed=5)
    first = download(page)
    draw(page, seed=6)
    assert download(page) != first
    draw(page, seed=5)
    assert download(page) == first


def test_an_image_grows_and_is_cancelled(page, engine, monkeypatch):
    draw(page, seed=5)
    whole = download(page)
    chunks, advance = threading.Semaphore(0), engine._batch.advance

    def advance_when_told(images):
        chunks.acquire()
        return advance(images)

    monkeypatch.setattr(engine._batch, "advance", advance_when_told)
    try:
        page.get_by_role("button", name="Draw").click()
        picture = page.locator(".set").first.locator("img").first
        source, grey_rows = "", []
        for _ in range(2):
            chunks.release()
            expect(picture).not_to_have_attribute("src", source)
            source = picture.get_attribute("src")
            pixels = np.array(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))))
            grey_rows.append(np.all(pixels == 128, axis=(1, 2)).sum())
        assert grey_rows[0] > grey_rows[1] > 0
        page.get_by_role("button", name="Cancel").click()
        expect(status(page)).to_have_text("Cancelled. 0 images done.")
    finally:
        # An engine that waits could not be stopped.
        chunks.release(1000)
    deadline = time.monotonic() + 30
    while engine.num_busy and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine.num_busy == 0
    expect(page.locator(".set")).to_have_count(1)
    draw(page, seed=5)
    assert download(page) == whole


def test_random_seeds_differ(page):
    draw(page)
    seed = form(page)["seed"]
    draw(page)
    assert form(page)["seed"] != seed


def test_one_image_of_a_set_is_drawn_again_alone(page):
    draw(page, seed=5)
    second = download(page, 1)
    page.locator(".picture").nth(1).click()
    page.locator("#viewer").get_by_role("button", name="Use settings").click()
    assert form(page)["seed"] == "6"
    assert form(page)["n"] == "1"
    page.get_by_role("button", name="Draw").click()
    expect(page.locator(".set")).to_have_count(2)
    expect(status(page)).to_have_text(DRAWN)
    assert download(page) == second


def test_settings_return_from_a_dropped_png(page, address, tmp_path):
    draw(page, seed=5, guidance_scale=2.5, temperature=0.8, top_k=20, top_p=0.9)
    drawn = form(page)
    image = download(page, path=tmp_path / "image.png")
    page.reload()
    open_page(page, address)
    assert form(page) != drawn
    drop(page, "image.png", image)
    expect(status(page)).to_have_text("The settings are in the form.")
    assert form(page) == drawn | {"n": "1"}
    page.reload()
    open_page(page, address)
    page.locator("#file").set_input_files(tmp_path / "image.png")
    expect(status(page)).to_have_text("The settings are in the form.")
    assert form(page) == drawn | {"n": "1"}


def test_greedy_images_do_not_depend_on_their_seed(page):
    draw(page, seed=5)
    drawn_by_chance = np.array(Image.open(io.BytesIO(download(page))))
    page.get_by_label("Greedy").check()
    draw(page, seed=5)
    expect(page.locator(".set .about").first).to_contain_text("greedy")
    images = [download(page, index) for index in range(2)]
    first, second = (np.array(Image.open(io.BytesIO(image))) for image in images)
    np.testing.assert_array_equal(first, second)
    assert np.any(first != drawn_by_chance)
    page.get_by_label("Greedy").uncheck()
    drop(page, "image.png", images[0])
    expect(page.get_by_label("Greedy")).to_be_checked()
    page.locator(".set").nth(1).get_by_role("button", name="Use settings").click()
    expect(page.get_by_label("Greedy")).not_to_be_checked()


def test_settings_return_from_a_png_of_another_generator(page, tmp_path):
    told = {"prompt": "naïve 图片", "seed": 2**64 - 1, "top_k": 7, "generator": "other"}
    save_png(tmp_path / "image.png", np.zeros((8, 8, 3), np.uint8), told)
    drop(page, "image.png", (tmp_path / "image.png").read_bytes())
    expect(status(page)).to_contain_text("other drew this image")
    returned = form(page)
    assert {name: returned[name] for name in ("prompt", "seed", "top_k")} == {
        "prompt": "naïve 图片",
        "seed": str(2**64 - 1),
        "top_k": "7",
    }


def test_a_png_without_settings_is_told(page, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    drop(page, "plain.png", (tmp_path / "plain.png").read_bytes())
    expect(status(page)).to_contain_text("plain.png carries no settings")
    drop(page, "note.png", b"not a picture")
    expect(status(page)).to_contain_text("note.png carries no settings")


def test_history_survives_a_reload_and_is_removed_on_request(page, address):
    draw(page, "3")
    draw(page, "7")
    image = download(page)
    page.reload()
    open_page(page, address)
    expect(page.locator(".set h2")).to_have_text(["7", "3"])
    assert download(page) == image
    page.get_by_role("button", name="Remove", exact=True).first.click()
    expect(page.locator(".set h2")).to_have_text(["3"])
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Remove all").click()
    expect(page.get_by_text("Nothing drawn yet.")).to_be_visible()
    page.reload()
    open_page(page, address)
    expect(page.locator(".set")).to_have_count(0)


def test_an_absent_server_is_told_and_its_return(page, address):
    page.route("**/v1/images/generations", lambda route: route.abort())
    page.route("**/readyz", lambda route: route.abort())
    page.get_by_label("Class", exact=True).fill("7")
    page.get_by_role("button", name="Draw").click()
    expect(status(page)).to_have_text(
        f"The server at {address.removeprefix('http://')} does not answer. Is it still running?"
    )
    page.unroute_all()
    expect(status(page)).to_have_text("The server is back.")
    draw(page)


@pytest.mark.parametrize(
    ("code", "headers", "message"),
    [
        (429, {"Retry-After": "7"}, "The server is full. Try again in 7 s."),
        (503, {}, "The server is stopping or not ready, and takes no images now."),
        (400, {}, "There is no class '7'."),
    ],
)
def test_refusals_are_told_in_one_line(page, code, headers, message):
    error = {"message": "there is no class '7'", "type": "", "param": "prompt", "code": None}
    page.route(
        "**/v1/images/generations",
        lambda route: route.fulfill(status=code, headers=headers, json={"error": error}),
    )
    page.get_by_label("Class", exact=True).fill("7")
    page.get_by_role("button", name="Draw").click()
    expect(status(page)).to_have_text(message)
    expect(page.locator(".set")).to_have_count(0)


def test_the_key_is_asked_for_once(page, address):
    keys = []

    def check(route):
        keys.append(route.request.headers.get("authorization"))
        if keys[-1] == "Bearer secret":
            route.continue_()
        else:
            error = {"message": "wrong key", "type": "", "param": None, "code": None}
            route.fulfill(status=401, json={"error": error})

    page.route("**/v1/**", check)
    page.goto(address)
    page.get_by_label("API key").fill("guess")
    page.keyboard.press("Enter")
    expect(page.locator("#refusal")).to_have_text("Wrong key.")
    page.get_by_label("API key").fill("secret")
    page.keyboard.press("Enter")
    draw(page)
    open_page(page, address)
    assert keys[:2] == [None, "Bearer guess"]
    assert set(keys[2:]) == {"Bearer secret"}


def test_the_request_as_code_draws_the_same(page, tmp_path, monkeypatch):
    page.get_by_label("Greedy").check()
    draw(page, seed=5, temperature=0.8)
    image = download(page, 1)
    page.get_by_role("button", name="Request as code").click()
    page.locator("#snippets").get_by_role("button", name="Copy").nth(1).click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    monkeypatch.chdir(tmp_path)
    exec(page.evaluate("navigator.clipboard.readText()"), {})
    assert (tmp_path / "1.png").read_bytes() == image
    if shutil.which("curl"):
        command = page.locator("#curl").inner_text()
        subprocess.run(["bash", "-c", command], check=True, capture_output=True)
        answer = json.loads((tmp_path / "images.json").read_text())
        assert base64.b64decode(answer["data"][1]["b64_json"]) == image


def test_everything_works_by_keyboard(page):
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    assert form(page)["prompt"] == "9"
    page.keyboard.press("Enter")
    expect(status(page)).to_have_text(DRAWN)
    page.locator(".picture").first.focus()
    page.keyboard.press("Enter")
    caption = page.locator("figcaption")
    first = caption.inner_text()
    page.keyboard.press("ArrowRight")
    expect(caption).not_to_have_text(first)
    page.keyboard.press("Escape")
    expect(page.locator(".picture").first).to_be_focused()


def tell(page, address, **changes):
    """Opens the page again, with an entry of /v1/models that says something else."""

    def change(route):
        answer = route.fetch()
        models = answer.json()
        models["data"][0].update(changes)
        route.fulfill(response=answer, json=models)

    page.route("**/v1/models", change)
    open_page(page, address)


def test_class_names_are_completed(page, address):
    tell(page, address, class_names=["crane", "pot", "otter, sea otter", "crane"], num_classes=4)
    field, options = page.get_by_label("Class", exact=True), page.get_by_role("option")
    field.click()
    expect(options).to_have_count(4)
    field.press_sequentially("ot")
    # Names with a word that begins so come first.
    expect(options).to_have_text(["otter, sea otter2", "pot1"])
    field.press("ArrowDown")
    field.press("Enter")
    expect(field).to_have_value("otter, sea otter")
    field.fill("cra")
    # A name that two classes have means neither.
    options.last.click()
    expect(field).to_have_value("3")
    expect(page.locator("#classes")).to_be_hidden()


def test_a_generator_of_captions_takes_a_prompt(page, address):
    tell(page, address, condition="text")
    page.get_by_label("Prompt").fill("7")
    page.keyboard.press("Enter")
    expect(status(page)).to_have_text(DRAWN)
    expect(page.get_by_label("Class", exact=True)).to_have_count(0)


def test_nothing_runs_off_a_narrow_screen(page):
    page.set_viewport_size({"width": 320, "height": 640})
    draw(page, "7")
    page.locator("summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    for open_dialog in (".picture", ".set .code"):
        page.locator(open_dialog).first.click()
        dialog = page.locator("dialog[open]")
        assert dialog.evaluate("(element) => element.scrollWidth <= element.clientWidth")
        page.keyboard.press("Escape")


# What lies on what, and the contrast that WCAG 2.2 AA asks of it: 4.5 of text, 3 of edges.
CONTRASTS = [
    *((text, ground, 4.5) for text in ("text", "muted", "problem", "accent")
      for ground in ("background", "surface")),
    ("text", "tile", 4.5),
    ("muted", "tile", 4.5),
    ("on-accent", "accent", 4.5),
    ("field-border", "surface", 3),
    ("field-border", "background", 3),
]  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_contrast(page, scheme):
    page.emulate_media(color_scheme=scheme)
    names = {name for text, ground, _ in CONTRASTS for name in (text, ground)}
    colours = {
        name: page.evaluate(
            "(name) => getComputedStyle(document.documentElement).getPropertyValue(name)",
            f"--{name}",
        )
        for name in names
    }
    for text, ground, least in CONTRASTS:
        light, dark = sorted(map(luminance, (colours[text], colours[ground])), reverse=True)
        contrast = (light + 0.05) / (dark + 0.05)
        assert contrast >= least, f"{text} on {ground}: {contrast:.2f}"


def luminance(colour: str) -> float:
    """Relative luminance of "#rrggbb", as WCAG defines it."""
    channels = [int(colour.strip()[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
