"""Draws the images of many requests at once: each enters when a slot is free and leaves when done.

Threads work beside the callers': one draws codes, chunk after chunk, one turns the codes of images
that are done, or partly done, into pixels, and one reads prompts and images to edit.

Axes: L codes, H W pixels.
"""

import collections
import dataclasses
import functools
import itertools
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from llamagen_jax import sharding
from llamagen_jax.errors import InputError
from llamagen_jax.generation import ImageGenerator
from llamagen_jax.images import to_uint8
from llamagen_jax.inpainting import Edit
from llamagen_jax.models.control import check_control
from llamagen_jax.models.llama_config import LlamaConfig
from llamagen_jax.sampling import jacobi
from llamagen_jax.sampling.generate import choose_decoder
from llamagen_jax.sampling.settings import SamplingSettings
from llamagen_jax.serve import slots
from llamagen_jax.serve.requests import (
    Deliver,
    FullError,
    Picture,
    Request,
    StoppedError,
    Ticket,
)
from llamagen_jax.text.captions import clean
from llamagen_jax.text.prompts import encode_prompts

# Of the pixels whose codes are not drawn yet.
_GREY = 128


@dataclasses.dataclass(eq=False)
class _Image:
    """An image that waits or is in a slot."""

    ticket: Ticket
    index: int
    sample: slots.Samples
    grid: tuple[int, int]
    done: int = 0
    partials: int = 0

    @property
    def settings(self) -> SamplingSettings:
        return self.ticket.request.settings[self.index]

    @property
    def length(self) -> int:
        return math.prod(self.grid)

    @property
    def guided(self) -> bool:
        """Whether codes are left to draw that are guided."""
        return self.done < self.settings.num_guided(self.length)


@dataclasses.dataclass
class Counts:
    """What an engine has done since it was made.

    Attributes:
      images: whole images that were delivered.
      passes: of the model over all slots.
      seconds: that these passes took.
    """

    images: int = 0
    passes: int = 0
    seconds: float = 0.0


class Engine:
    """Slots for the images of one generator, with a queue before them.

    Attributes:
      generator: that draws.
      encoder: that reads prompts for it; None for classes.
      num_slots: images that are drawn at a time.
      counts: for whoever watches.
      failure: what ended the engine, or None.
    """

    def __init__(
        self,
        generator: ImageGenerator,
        mesh: Mesh,
        *,
        num_slots: int = 16,
        chunk: int | None = None,
        max_waiting: int = 64,
    ):
        """Takes the memory of all slots; draws nothing before `start`.

        Args:
          mesh: that the generator was opened on.
          num_slots: rounded up to a multiple of the ways that the mesh splits a batch.
          chunk: passes of the model after which requests may enter and leave; None for as many as
            the grid of codes has columns.
          max_waiting: images that may wait for a slot.

        Raises:
          InputError: the text encoder cannot be opened, or the mesh does not divide the heads.
        """
        ways = mesh.shape["data"] * mesh.shape["fsdp"]
        num_slots += -num_slots % ways
        self.generator, self.num_slots = generator, num_slots
        # Few images take a step of fewer rows, and each size a program of its own.
        sizes = (num_slots // 16, num_slots // 4, num_slots)
        self._sizes = [size for size in sizes if size and size % ways == 0]
        is_text = generator.config.condition == "text"
        self.encoder = generator.open_text_encoder() if is_text else None
        self.max_waiting, self.chunk = max_waiting, chunk or generator.config.grid[1]
        self.counts, self.failure = Counts(), None
        self._weights = sum(leaf.nbytes for leaf in jax.tree.leaves(generator.params))
        init = functools.partial(slots.empty, generator.model, num_slots)
        self._slots = sharding.sharded_init(init, slots.RULES, mesh)
        # Kept where they are, so that every call runs the same programs in place.
        places = jax.tree.map(lambda leaf: leaf.sharding, self._slots)
        in_place = {"donate_argnames": "slots", "out_shardings": places}
        self._enter_slots = jax.jit(slots.enter, static_argnames="model", **in_place)
        static = ("model", "passes", "width", "guided", "size")
        self._advance_slots = jax.jit(slots.advance, static_argnames=static, **in_place)
        # On one device, since programs of several that run at once wait for each other.
        self._tokenizer = jax.device_put(generator.tokenizer, mesh.devices.flat[0])
        self._images: list[_Image | None] = [None] * num_slots
        self._reading: collections.deque[list[_Image]] = collections.deque()
        self._waiting: collections.deque[_Image] = collections.deque()
        self._decoding: collections.deque[tuple[_Image, int | None, int, np.ndarray]]
        self._decoding = collections.deque()
        self._changed = threading.Condition()
        self._ready = self._stopping = False
        self._threads = [
            threading.Thread(target=self._guard, args=(work,), name=work.__name__, daemon=True)
            for work in (self._read, self._draw, self._decode)
        ]

    @property
    def ready(self) -> bool:
        """Whether images are drawn as soon as they are asked for."""
        return self._ready and not self._stopping

    def start(self) -> None:
        """Starts the threads; drawing begins once all programs that it needs are compiled."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends the threads; requests that are not done are told `StoppedError`."""
        self._end(StoppedError("the server is shutting down"))
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def submit(self, request: Request, deliver: Deliver) -> Ticket:
        """Puts all images of a request into the queue.

        Args:
          deliver: is given every picture, or one exception after which nothing follows.

        Raises:
          InputError: the prompt has more tokens than the model reads, or the control does not fit.
          FullError: more images would wait than may.
          StoppedError: the engine was stopped, or has failed.
        """
        if isinstance(request.subject, str):
            self._check_length(request.subject)
        if request.control is not None:
            check_control(self._config(request), request.control[None])
        ticket = Ticket(request, deliver)
        images = [self._image(ticket, index) for index in range(len(request.settings))]
        with self._changed:
            if self._stopping:
                raise StoppedError("the server is shutting down")
            self._drop_cancelled()
            free = self._images.count(None)
            if self.num_waiting + len(images) > self.max_waiting + free:
                raise FullError(self._seconds_until_free())
            if self.encoder or request.edit:
                self._reading.append(images)
            else:
                self._waiting.extend(images)
            self._changed.notify_all()
        return ticket

    def _image(self, ticket: Ticket, index: int) -> _Image:
        request, config = ticket.request, self._config(ticket.request)
        has_control = request.control is not None
        sample = slots.sample_of(request.settings[index], 0, config, has_control)
        return _Image(ticket, index, sample, config.grid)

    def _config(self, request: Request) -> LlamaConfig:
        """Of the generator on the grid that is asked for."""
        config = self.generator.config
        return dataclasses.replace(config, grid_size=request.grid or config.grid)

    def _check_length(self, prompt: str) -> None:
        assert self.encoder
        num_tokens = self.encoder.tokenizer.num_tokens(clean(prompt))
        if num_tokens > self.encoder.length:
            raise InputError(
                f"the prompt has {num_tokens} tokens; the model reads {self.encoder.length}"
            )

    @property
    def num_waiting(self) -> int:
        """Images that wait for what they are of to be read, for a slot, or for their pixels."""
        unread = sum(map(len, self._reading))
        finals = sum(partial is None for _, partial, _, _ in self._decoding)
        return unread + len(self._waiting) + finals

    @property
    def num_busy(self) -> int:
        """Slots that hold an image."""
        return self.num_slots - self._images.count(None)

    def _seconds_until_free(self) -> float:
        per_pass = self.counts.seconds / max(self.counts.passes, 1)
        return max(1.0, per_pass * self.generator.config.code_length)

    def _guard(self, work: Callable[[], None]) -> None:
        """A thread of the engine: what ends it unexpectedly ends the engine."""
        try:
            work()
        except Exception as error:
            logging.exception("the engine has failed")
            self.failure = error
            self._end(StoppedError("the engine has failed; the server's log says why"))

    def _end(self, error: StoppedError) -> None:
        with self._changed:
            self._stopping = True
            held = [image for image in self._images if image]
            held += itertools.chain(*self._reading, self._waiting)
            held += [image for image, *_ in self._decoding]
            self._reading.clear()
            self._waiting.clear()
            self._decoding.clear()
            self._images = [None] * self.num_slots
            self._changed.notify_all()
        for ticket in dict.fromkeys(image.ticket for image in held):
            if not ticket.cancelled:
                ticket.cancel()
                ticket.deliver(error)

    def _warm_up(self) -> None:
        tickets = [self._try_grid(grid) for grid in self.generator.config.trained_grids]
        image = self._image(tickets[0], 0)
        size = 1
        while size < 2 * self.num_slots:
            self._enter([image] * min(size, self.num_slots), [self.num_slots] * size)
            size *= 2
        for size, guided in itertools.product(self._sizes, (True, False)):
            self._advance(1, guided, size)

    def _try_grid(self, grid: tuple[int, int]) -> Ticket:
        """A request for an edit on this grid, once it is read; its pixels are decoded as well."""
        codes = np.zeros(math.prod(grid), np.int32)
        picture = [self._pixels(codes, grid, rows) for rows in _row_counts(grid)][-1]
        edit = Edit(picture, np.zeros(picture.shape[:2], bool))
        subject = "a word" if self.encoder else 0
        request = Request(subject, [SamplingSettings(seed=0)], edit=edit, grid=grid)
        ticket = Ticket(request, lambda picture: None)
        self._encode([ticket])
        return ticket

    def _read(self) -> None:
        most = self.encoder.batch_size if self.encoder else 1
        while True:
            with self._changed:
                while not self._stopping and not self._reading:
                    self._changed.wait()
                if self._stopping:
                    return
                read = list(itertools.islice(self._reading, most))
            self._encode([images[0].ticket for images in read])
            with self._changed:
                for images in read if self._reading else ():
                    self._reading.popleft()
                    self._waiting.extend(images)
                self._changed.notify_all()

    def _encode(self, tickets: Sequence[Ticket]) -> None:
        """Reads the prompts of tickets, at most a batch of the text encoder, and their images."""
        if self.encoder:
            prompts = [str(ticket.request.subject) for ticket in tickets]
            read = encode_prompts(self.encoder, prompts)
            for i, ticket in enumerate(tickets):
                ticket.condition = {name: rows[i] for name, rows in read.items()}
        for ticket in tickets:
            if edit := ticket.request.edit:
                ticket.known = edit.known(self._tokenizer)

    def _draw(self) -> None:
        self._warm_up()
        self._ready = True
        while True:
            with self._changed:
                self._drop_cancelled()
                while not self._stopping and not self._waiting and not any(self._images):
                    self._changed.wait()
                if self._stopping:
                    return
                entering = self._fill()
            if entering:
                images, places = zip(*entering, strict=True)
                self._enter(images, places)
            start = time.monotonic()
            active = [image for image in self._images if image]
            guided = any(image.guided for image in active)
            used = max((place for place, image in enumerate(self._images) if image), default=0) + 1
            size = next(size for size in self._sizes if size >= used)
            self._advance(self._width(active), guided, size)
            codes, done = jax.device_get(self._slots.progress[:2])
            self.counts.passes += self.chunk
            self.counts.seconds += time.monotonic() - start
            with self._changed:
                self._collect(codes, done)

    def _fill(self) -> list[tuple[_Image, int]]:
        """Gives waiting images the free slots."""
        entering = []
        for place, held in enumerate(self._images):
            if held is None and self._waiting:
                image = self._images[place] = self._waiting.popleft()
                entering.append((image, place))
        return entering

    def _drop_cancelled(self) -> None:
        for place, image in enumerate(self._images):
            if image and image.ticket.cancelled:
                self._images[place] = None
        waiting = [image for image in self._waiting if not image.ticket.cancelled]
        self._waiting = collections.deque(waiting)

    def _enter(self, images: Sequence[_Image], places: Sequence[int]) -> None:
        """Prefills images, in a batch of one of few sizes."""
        size = 1 << (len(images) - 1).bit_length()
        filled = [*images, *[images[0]] * (size - len(images))]
        conditions = [image.ticket.condition for image in filled]
        assert conditions[0] is not None
        rows = {name: np.stack([c[name] for c in conditions if c]) for name in conditions[0]}
        samples = zip(*(image.sample for image in filled), strict=True)
        known = np.full((size, self._slots.progress.codes.shape[1]), -1, np.int32)
        for row, image in zip(known, filled, strict=True):
            if image.ticket.known is not None:
                row[: image.length] = image.ticket.known
        self._slots = self._enter_slots(
            self.generator.model,
            self.generator.params,
            self._slots,
            np.array([*places, *[self.num_slots] * size], np.int32)[:size],
            rows["condition"],
            rows.get("condition_mask"),
            slots.Samples(*map(np.concatenate, samples)),
            known,
            self._controls(filled),
        )
        for image in images:
            image.done = 1

    def _controls(self, images: Sequence[_Image]) -> list[np.ndarray] | None:
        """Of `slots.enter`."""
        config = self.generator.config
        if not config.control_layers:
            return None
        controls = []
        for grid in config.trained_grids:
            height, width = (side * config.control_patch for side in grid)
            rows = np.zeros((len(images), height, width, 3), np.uint8)
            for row, image in zip(rows, images, strict=True):
                control = image.ticket.request.control
                if control is not None and image.grid == grid:
                    row[:] = control
            controls.append(rows)
        return controls

    def _advance(self, width: int, guided: bool, size: int) -> None:
        self._slots = self._advance_slots(
            self.generator.model,
            self.generator.params,
            self._slots,
            passes=self.chunk,
            width=width,
            guided=guided,
            size=size,
        )

    def _width(self, active: Sequence[_Image]) -> int:
        """Codes in a pass: several where all that are drawn now ask for it, or it pays."""
        for image in active:
            if choose_decoder(image.settings, len(active), self._weights, False) == "plain":
                return 1
        shortest = min(map(math.prod, self.generator.config.trained_grids))
        return min(jacobi.WINDOW, shortest - 1)

    def _collect(self, codes: np.ndarray, done: np.ndarray) -> None:
        """Hands images that are done, and partial pictures that are due, to the decoding thread."""
        for place, image in enumerate(self._images):
            if image is None or image.ticket.cancelled:
                continue
            image.done = int(done[place])
            own, whole = codes[place][: image.length], image.done == image.length
            partial_at = image.ticket.request.partial_at
            while image.partials < len(partial_at) and partial_at[image.partials] <= image.done:
                item = image, image.partials, image.done, own
                self._decoding.append(item)
                image.partials += 1
            if whole:
                self._decoding.append((image, None, image.done, own))
                self._images[place] = None
        self._changed.notify_all()

    def _decode(self) -> None:
        while True:
            with self._changed:
                while not self._stopping and not self._decoding:
                    self._changed.wait()
                if self._stopping:
                    return
                image, partial, done, codes = self._decoding.popleft()
                ticket = image.ticket
                stale = ticket.request.skip and partial is not None
                stale = stale and any(later is image for later, *_ in self._decoding)
            if ticket.cancelled or stale:
                continue
            rows, columns = image.grid
            if partial is None:
                self.counts.images += 1
                picture = self._pixels(codes, image.grid, rows)
            else:
                begun = -(-done // columns)
                enough = next(count for count in _row_counts(image.grid) if count >= begun)
                picture = self._on_grey(self._pixels(codes, image.grid, enough), image.grid, done)
            if edit := ticket.request.edit:
                picture = edit.paste(picture)
            ticket.deliver(Picture(image.index, partial, picture))

    def _pixels(self, codes: np.ndarray, grid: tuple[int, int], rows: int) -> np.ndarray:
        """uint8 [h, W, 3] of the first rows of codes [L]; of one image at a time, so that its bytes
        depend on no other's."""
        columns = grid[1]
        part = codes[: rows * columns].reshape(1, rows, columns)
        return to_uint8(_decode(self._tokenizer, part))[0]

    def _on_grey(self, picture: np.ndarray, grid: tuple[int, int], done: int) -> np.ndarray:
        """uint8 [H, W, 3], of `picture` [h, W, 3] the pixels of the first `done` codes."""
        rows, columns = grid
        drawn = (np.arange(rows * columns) < done).reshape(rows, columns)
        side = self.generator.tokenizer.downsampling
        drawn = np.kron(drawn, np.ones((side, side), bool))[..., None]
        below = np.zeros((len(drawn) - len(picture), *picture.shape[1:]), np.uint8)
        return np.where(drawn, np.concatenate([picture, below]), np.uint8(_GREY))


def _row_counts(grid: tuple[int, int]) -> list[int]:
    """Of codes that are decoded: all, and fewer for partial pictures to come sooner; ascending."""
    rows = grid[0]
    return sorted({-(-rows // 4), -(-rows // 2), rows})


@jax.jit
def _decode(tokenizer: Any, codes: jax.Array) -> jax.Array:
    return tokenizer.decode(codes)
