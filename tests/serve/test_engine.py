import dataclasses
import queue
import threading

import jax
import numpy as np
import pytest
import tiny

from llamagen_jax import sharding
from llamagen_jax.generation import ImageGenerator, generate_images
from llamagen_jax.inpainting import Edit
from llamagen_jax.sampling.settings import SamplingSettings
from llamagen_jax.serve import slots
from llamagen_jax.serve.engine import Engine
from llamagen_jax.serve.requests import FullError, Picture, Request, StoppedError

# Different in everything that a row of the batch has of its own.
SETTINGS = [
    SamplingSettings(seed=42),
    SamplingSettings(seed=42, guidance_scale=3.0),
    SamplingSettings(seed=7, guidance_scale=2.0, guidance_interval=3, top_k=5),
    SamplingSettings(seed=2**64 - 1, guidance_scale=4.0, top_p=0.8, temperature=1.3),
    SamplingSettings(seed=9, temperature=0.7, top_k=8, top_p=0.9),
    SamplingSettings(seed=10, guidance_scale=2.0, greedy=True),
]


@pytest.fixture(scope="module")
def generator(tmp_path_factory) -> ImageGenerator:
    return ImageGenerator.open(*map(str, tiny.exports(tmp_path_factory.mktemp("models"))))


@pytest.fixture(scope="module")
def engine(generator):
    everything = jax.device_put((generator.params, generator.tokenizer), jax.devices()[0])
    alone = ImageGenerator(
        generator.name, generator.model, *everything, None, generator.class_names
    )
    engine = Engine(alone, tiny.meshes((1, 1, 1))[0], num_slots=3, chunk=3, max_waiting=100)
    engine.start()
    yield engine
    engine.stop()


class Client:
    """Collects what the engine delivers."""

    def __init__(self, engine: Engine):
        self.engine, self.delivered = engine, queue.Queue()

    def submit(self, name, request: Request):
        return self.engine.submit(request, lambda item: self.delivered.put((name, item)))

    def next(self):
        name, item = self.delivered.get(timeout=120)
        if isinstance(item, Exception):
            raise item
        return name, item


def expected(engine: Engine, label: int, settings: SamplingSettings) -> np.ndarray:
    generator = engine.generator
    weights = generator.params, generator.tokenizer
    samples = generate_images(
        generator.model, *weights, np.array([label]), settings, sample_ids=[0]
    )
    return samples.images[0]


def test_images_do_not_depend_on_their_company(engine):
    """More images than slots, so that they enter and leave at every step and in every slot."""
    client, asked = Client(engine), {}
    for number in range(24):
        label, settings = number % 10, SETTINGS[number % len(SETTINGS)]
        asked[number] = label, settings
        client.submit(number, Request(label, [settings]))
    drawn = dict(client.next() for _ in asked)
    for number, (label, settings) in asked.items():
        np.testing.assert_array_equal(drawn[number].image, expected(engine, label, settings))


def edits(count: int) -> list[Edit]:
    """Random pictures, each with another square masked."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
    made = [Edit(picture, np.zeros((32, 32), bool)) for picture in pictures]
    for edit in made:
        top, left = rng.integers(0, 20, 2)
        edit.mask[top : top + 12, left : left + 12] = True
    return made


def expected_edit(engine: Engine, label: int, settings: SamplingSettings, edit: Edit):
    generator = engine.generator
    known = edit.known(generator.tokenizer)[None]
    assert 0 < np.sum(known >= 0) < 16
    weights = generator.model, generator.params, generator.tokenizer
    labels = np.array([label])
    samples = generate_images(*weights, labels, settings, sample_ids=[0], known=known)
    return edit.paste(samples.images[0])


@pytest.mark.parametrize("decoder", ["plain", "jacobi"])
def test_edits_do_not_depend_on_their_company(engine, decoder):
    """Among images that are drawn whole, so that a slot holds one kind after the other."""
    client, asked = Client(engine), {}
    for number, edit in enumerate(edits(8)):
        settings = SamplingSettings(seed=number, guidance_scale=2.0)
        asked[number] = settings, edit
        settings = dataclasses.replace(settings, decoder=decoder)
        client.submit(number, Request(number, [settings], edit=edit))
        client.submit(f"whole {number}", Request(number, [settings]))
    drawn = dict(client.next() for _ in range(16))
    for label, (settings, edit) in asked.items():
        image = expected_edit(engine, label, settings, edit)
        np.testing.assert_array_equal(drawn[label].image, image)
        whole = drawn[f"whole {label}"].image
        np.testing.assert_array_equal(whole, expected(engine, label, settings))


def test_partial_pictures_of_an_edit_show_what_is_kept(engine):
    client, edit = Client(engine), edits(1)[0]
    client.submit("", Request(1, [SETTINGS[0]], partial_at=(1,), edit=edit))
    partial, whole = client.next()[1].image, client.next()[1].image
    np.testing.assert_array_equal(partial[~edit.mask], edit.image[~edit.mask])
    np.testing.assert_array_equal(whole, expected_edit(engine, 1, SETTINGS[0], edit))
    assert np.any(partial != whole)


def test_windows_draw_the_same_images(engine):
    client = Client(engine)
    passes = engine.counts.passes
    settings = [
        SamplingSettings(seed=seed, guidance_scale=2.0, decoder="jacobi") for seed in (3, 4)
    ]
    client.submit("", Request(5, settings))
    for picture in (client.next()[1], client.next()[1]):
        plain = SamplingSettings(seed=settings[picture.index].seed, guidance_scale=2.0)
        np.testing.assert_array_equal(picture.image, expected(engine, 5, plain))
    assert engine.counts.passes - passes < 16


def test_partial_pictures_show_what_is_drawn(engine):
    client = Client(engine)
    client.submit("", Request(1, [SETTINGS[0]], partial_at=(4, 10)))
    pictures = [client.next()[1] for _ in range(3)]
    assert [picture.partial for picture in pictures] == [0, 1, None]
    whole = pictures[-1].image
    np.testing.assert_array_equal(whole, expected(engine, 1, SETTINGS[0]))
    side = engine.generator.tokenizer.downsampling
    for picture, fewest in zip(pictures, (4, 10), strict=False):
        grey = np.all(picture.image == 128, axis=-1)[::side, ::side].ravel()
        assert fewest <= np.sum(~grey) < fewest + engine.chunk
        assert np.all(np.diff(grey.astype(int)) >= 0)


def test_cancelled_requests_free_their_slots(engine):
    client = Client(engine)
    ticket = client.submit("cancelled", Request(1, [SETTINGS[0]] * 90))
    client.next()
    ticket.cancel()
    client.submit("kept", Request(2, [SETTINGS[1]]))
    names = [client.next()[0]]
    while names[-1] != "kept":
        names.append(client.next()[0])
    assert len(names) < 80
    assert engine.num_waiting == 0


def test_a_full_queue_is_told(generator):
    engine = Engine(
        generator, sharding.make_mesh(data=-1, fsdp=1, tensor=1), num_slots=8, max_waiting=4
    )
    engine.submit(Request(1, [SETTINGS[0]] * 12), lambda item: None)
    with pytest.raises(FullError) as caught:
        engine.submit(Request(1, [SETTINGS[0]]), lambda item: None)
    assert caught.value.seconds >= 1
    told = []
    ticket = engine._waiting[0].ticket
    ticket.deliver = told.append
    engine.stop()
    assert isinstance(told[0], StoppedError)
    with pytest.raises(StoppedError):
        engine.submit(Request(1, [SETTINGS[0]]), lambda item: None)


def test_what_fails_is_told_to_all(generator, monkeypatch):
    engine = Engine(generator, sharding.make_mesh(data=-1, fsdp=1, tensor=1), num_slots=8)
    monkeypatch.setattr(engine, "_warm_up", lambda: 1 / 0)
    client = Client(engine)
    client.submit("", Request(1, [SETTINGS[0]]))
    engine.start()
    with pytest.raises(StoppedError, match="has failed"):
        client.next()
    assert isinstance(engine.failure, ZeroDivisionError)
    engine.stop()


def test_an_engine_stops_while_it_compiles(generator, monkeypatch):
    """A program that is compiled is not waited for, and none is compiled after it."""
    engine = Engine(generator, sharding.make_mesh(data=-1, fsdp=1, tensor=1))
    begun, told, compiled = threading.Event(), threading.Event(), []

    def compile_slowly():
        begun.set()
        told.wait()
        compiled.append("one")
        yield
        compiled.append("another")

    monkeypatch.setattr(engine, "_warm_up", compile_slowly)
    engine.start()
    assert begun.wait(120)
    delivered = []
    engine.submit(Request(1, [SETTINGS[0]]), delivered.append)
    stopping = threading.Thread(target=engine.stop, daemon=True)
    stopping.start()
    stopping.join(120)
    assert not stopping.is_alive()
    assert engine.compiling
    assert isinstance(delivered[0], StoppedError)
    told.set()
    for thread in engine._threads:
        thread.join(120)
    assert compiled == ["one"]
    assert not engine.compiling
    assert not engine.ready


def test_sharded_slots_draw_the_same_codes():
    """Slots over two devices and heads over two more."""
    mesh = tiny.meshes((2, 1, 2))[0]
    model, params = tiny.llama()
    model, params = model.for_decoding(params)
    split = sharding.tree_shardings(params, sharding.DECODING_RULES, mesh)
    drawn = []
    for weights, place in (
        (params, None),
        (jax.device_put(params, split), mesh),
    ):
        state = slots.empty(model, 2)
        if place:
            state = jax.device_put(state, sharding.tree_shardings(state, slots.RULES, place))
        rows = [slots.sample_of(settings, 0, model.config) for settings in SETTINGS[1:3]]
        samples = slots.Samples(*map(np.concatenate, zip(*rows, strict=True)))
        labels = np.array([3, 4], np.int32)
        enter = jax.jit(slots.enter, static_argnums=0)
        state = enter(model, weights, state, np.arange(2), labels, None, samples)
        advance = jax.jit(
            slots.advance, static_argnums=0, static_argnames=("passes", "width", "guided", "size")
        )
        state = advance(model, weights, state, passes=15, width=1, guided=True, size=2)
        drawn.append(np.asarray(state.progress.codes))
    np.testing.assert_array_equal(*drawn)


def test_pictures_of_a_request_keep_their_order(engine):
    client = Client(engine)
    client.submit("", Request(1, SETTINGS[:3], partial_at=(2, 5, 9), skip=True))
    last = {}
    for _ in range(12):
        if sum(number is None for number in last.values()) == 3:
            break
        picture = client.next()[1]
        assert isinstance(picture, Picture)
        before = last.get(picture.index, -1)
        assert picture.partial is None or picture.partial > before
        last[picture.index] = picture.partial
    assert list(last.values()) == [None] * 3
