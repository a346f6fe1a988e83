"""The engine that serves images, beside calls of `generate` for one batch after another."""

import dataclasses
import itertools
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from llamagen_jax import sharding
from llamagen_jax.benchmark.bench import Bench, Timing, random_llama
from llamagen_jax.generation import ImageGenerator, generate_images
from llamagen_jax.image_tokenizer import ModelTokenizer
from llamagen_jax.models.vqgan import VQGAN
from llamagen_jax.sampling.settings import SamplingSettings
from llamagen_jax.serve.engine import Engine
from llamagen_jax.serve.requests import Picture, Request

_SLOTS = 16
# Of all that the engine draws when its slots are always full.
_LOAD = 0.8
# Of the engine's rate, between which that of batch after batch with the same mean is sought, and
# how often what lies between is halved: to 3 %.
_SHARES = (0.25, 2.0)
_HALVINGS = 6

# Takes an image's number and what is called when it is there.
Submit = Callable[[int, Callable[[], None]], None]


class Arrivals(NamedTuple):
    """How long images took that were asked for at random times.

    Attributes:
      rate: images per second that were asked for.
      mean, worst: seconds from asking to having; the worst is the 95th percentile.
    """

    rate: float
    mean: float
    worst: float


def serving(bench: Bench) -> Iterator[Timing]:
    """A full queue; then random arrivals, and the highest rate at which batch after batch keeps the
    engine's mean latency."""
    s = bench.setting
    generator = _generator(bench)
    mesh = sharding.make_mesh(data=-1, fsdp=1, tensor=1)
    engine = Engine(generator, mesh, num_slots=_SLOTS, max_waiting=10_000)
    settings = SamplingSettings(seed=0, guidance_scale=s.guidance_scale)
    engine.start()
    while not engine.ready:
        time.sleep(0.1)
    what = f"{s.generator} {s.dtype}, {generator.config.code_length} codes, {s.tokenizer}"
    labels = np.zeros(_SLOTS, np.int32)
    weights = generator.model, generator.params, generator.tokenizer
    one_call = bench.time(
        "serve, one call of generate",
        f"{what}, {_SLOTS} images",
        lambda: generate_images(*weights, labels, settings),
        count=_SLOTS,
        unit="images",
    )
    queued = bench.time(
        "serve, queued images",
        f"{what}, {_SLOTS} images",
        lambda: _draw_all(engine, settings),
        count=_SLOTS,
        unit="images",
    )
    ratio = queued.rate / one_call.rate
    yield one_call
    yield dataclasses.replace(queued, shapes=f"{queued.shapes}, {ratio:.2f} of generate's rate")
    first, whole = _first_partial(engine, settings)
    shapes = f"{what}, {first / whole:.2f} of the whole time"
    yield Timing("serve, first partial image", shapes, first, 1 / first, "images")
    yield from _random_arrivals(bench, engine, settings, what, queued.rate)
    engine.stop()


def _generator(bench: Bench) -> ImageGenerator:
    s = bench.setting
    model, params = random_llama(s, condition="class", grid_size=s.grid_size)
    model, params = model.for_decoding(params, s.weights)
    tokenizer = VQGAN(s.config(s.tokenizer))
    side = tokenizer.config.downsampling
    images = np.zeros((1, side, side, 3), np.float32)
    opened = ModelTokenizer(tokenizer, jax.jit(tokenizer.init)(jax.random.key(0), images)["params"])
    return ImageGenerator(s.generator, model, params, opened, None, ())


def _draw_all(engine: Engine, settings: SamplingSettings) -> None:
    left, done = itertools.count(1), threading.Event()

    def deliver(item: Picture | Exception) -> None:
        if next(left) == _SLOTS:
            done.set()

    for _ in range(_SLOTS):
        engine.submit(Request(0, [settings]), deliver)
    done.wait()


def _first_partial(engine: Engine, settings: SamplingSettings) -> tuple[float, float]:
    """Seconds until the first row of codes is shown, and until the image is whole."""
    times, done = [], threading.Event()

    def deliver(item: Picture | Exception) -> None:
        times.append(time.monotonic())
        if isinstance(item, Exception) or item.partial is None:
            done.set()

    start = time.monotonic()
    columns = engine.generator.config.grid[1]
    engine.submit(Request(0, [settings], partial_at=[columns], skip=True), deliver)
    done.wait()
    return times[0] - start, times[-1] - start


def _random_arrivals(
    bench: Bench, engine: Engine, settings: SamplingSettings, what: str, full: float
) -> Iterator[Timing]:
    count = 8 if bench.setting.tiny else 48

    def ask_engine(number: int, finished: Callable[[], None]) -> None:
        engine.submit(Request(0, [settings]), lambda item: finished())

    batches, rate = _Batches(engine.generator, settings), _LOAD * full
    start = time.monotonic()
    ours, theirs = _highest(
        lambda: _arrive(ask_engine, rate, count),
        lambda share: _arrive(batches.ask, share * rate, count),
    )
    seconds = time.monotonic() - start
    batches.stop()
    held = "its latency or less" if theirs.mean <= ours.mean else "still later"
    shapes = (
        f"{what}, {held} at {theirs.rate / ours.rate:.2f} of its rate, found by {_HALVINGS} x "
        f"{count} images of each in {seconds:.0f} s"
    )
    yield _timing("serve, random arrivals", what, ours)
    yield _timing("serve, batch after batch", shapes, theirs)


def _highest(
    ours: Callable[[], Arrivals], theirs: Callable[[float], Arrivals]
) -> tuple[Arrivals, Arrivals]:
    """The pair of the highest share of our rate at which their mean is at most ours, by bisection;
    where there is none, of the lowest share that was tried.

    Each is timed beside the other, since a machine may be faster a minute later.
    """
    low, high = _SHARES
    tried = []
    for _ in range(_HALVINGS):
        share = (low + high) / 2
        tried.append((ours(), theirs(share)))
        if tried[-1][1].mean <= tried[-1][0].mean:
            low = share
        else:
            high = share
    kept = [pair for pair in tried if pair[1].mean <= pair[0].mean]
    return (kept or tried)[-1]


def _timing(name: str, what: str, arrivals: Arrivals) -> Timing:
    shapes = f"{what}, mean {arrivals.mean:.2f} s, 95 % within {arrivals.worst:.2f} s"
    return Timing(name, shapes, arrivals.mean, arrivals.rate, "images")


def _arrive(ask: Submit, rate: float, count: int) -> Arrivals:
    """Asks for images at random times (a Poisson process), and waits for all."""
    waits = np.random.default_rng(0).exponential(1 / rate, count)
    took, done = [], threading.Event()
    for number, wait in enumerate(waits):
        time.sleep(wait)

        def finished(start: float = time.monotonic()) -> None:
            took.append(time.monotonic() - start)
            if len(took) == count:
                done.set()

        ask(number, finished)
    done.wait()
    return Arrivals(rate, statistics.mean(took), float(np.quantile(took, 0.95)))


class _Batches:
    """A server without an engine: all that wait are drawn in one call, in the smallest batch of few
    sizes that holds them; others wait until it is over."""

    def __init__(self, generator: ImageGenerator, settings: SamplingSettings):
        self._generator, self._settings = generator, settings
        self._waiting: list[Callable[[], None]] = []
        self._changed, self._stopping = threading.Condition(), False
        size = 1
        while size <= _SLOTS:
            self._draw(size)
            size *= 2
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def ask(self, number: int, finished: Callable[[], None]) -> None:
        with self._changed:
            self._waiting.append(finished)
            self._changed.notify()

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._stopping:
                    self._changed.wait()
                if self._stopping:
                    return
                batch, self._waiting = self._waiting[:_SLOTS], self._waiting[_SLOTS:]
            self._draw(1 << (len(batch) - 1).bit_length())
            for finished in batch:
                finished()

    def _draw(self, size: int) -> None:
        g = self._generator
        generate_images(g.model, g.params, g.tokenizer, np.zeros(size, np.int32), self._settings)
