"""Draws the images of many requests at once: each enters when a slot is free and leaves when done.

Threads work beside the callers': one draws codes, chunk after chunk, one turns the codes of images
that are done, or partly done, into pixels, and one reads prompts and images to edit.

Axes: L codes, H W pixels.
"""

import collections
import dataclasses
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from llamagen_jax.errors import InputError
from llamagen_jax.generation import ImageGenerator
from llamagen_jax.inpainting import Edit
from llamagen_jax.models.control import check_control
from llamagen_jax.models.llama_config import LlamaConfig
from llamagen_jax.sampling.settings import SamplingSettings
from llamagen_jax.serve import pixels, slots
from llamagen_jax.serve.batch import Batch, Image
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
        self.generator, self.max_waiting = generator, max_waiting
        is_text = generator.config.condition == "text"
        self.encoder = generator.open_text_encoder() if is_text else None
        self.chunk = chunk or generator.config.grid[1]
        self._batch = Batch(generator, mesh, num_slots, self.chunk)
        self.num_slots = self._batch.num_slots
        self.counts, self.failure = Counts(), None
        # On one device, since programs of several that run at once wait for each other.
        self._tokenizer = jax.device_put(generator.tokenizer, mesh.devices.flat[0])
        self._images: list[Image | None] = [None] * self.num_slots
        self._reading: collections.deque[list[Image]] = collections.deque()
        self._waiting: collections.deque[Image] = collections.deque()
        self._decoding: collections.deque[tuple[Image, int | None, int, np.ndarray]]
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

    @property
    def compiling(self) -> bool:
        """Whether a thread compiles what is needed before `ready`, stopped or not."""
        return not self._ready and any(thread.is_alive() for thread in self._threads)

    def start(self) -> None:
        """Starts the threads; drawing begins once all programs that it needs are compiled."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends the threads; requests that are not done are told `StoppedError`.

        A program that is `compiling` is not waited for: its thread ends after it.
        """
        self._end(StoppedError("the server is shutting down"))
        for thread in self._threads:
            if self._ready and thread.is_alive():
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

    def _image(self, ticket: Ticket, index: int) -> Image:
        request, config = ticket.request, self._config(ticket.request)
        has_control = request.control is not None
        sample = slots.sample_of(request.settings[index], 0, config, has_control)
        return Image(ticket, index, sample, config.grid)

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

    def _warm_up(self) -> Iterator[None]:
        """Compiles more programs at each step, until all are compiled."""
        tickets = []
        for grid in self.generator.config.trained_grids:
            tickets.append(self._try_grid(grid))
            yield
        yield from self._batch.compile(self._image(tickets[0], 0))

    def _try_grid(self, grid: tuple[int, int]) -> Ticket:
        """A request for an edit on this grid, once it is read; its pixels are decoded as well."""
        codes = np.zeros(math.prod(grid), np.int32)
        counts = pixels.row_counts(grid)
        picture = [pixels.first_rows(self._tokenizer, codes, grid, rows) for rows in counts][-1]
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
        for _ in self._warm_up():
            if self._stopping:
                return
        self._ready = True
        while True:
            with self._changed:
                self._drop_cancelled()
                while not self._stopping and not self._waiting and not any(self._images):
                    self._changed.wait()
                if self._stopping:
                    return
                entering, held = self._fill(), list(self._images)
            if entering:
                images, places = zip(*entering, strict=True)
                self._batch.enter(images, places)
            start = time.monotonic()
            codes, done = self._batch.advance(held)
            self.counts.passes += self.chunk
            self.counts.seconds += time.monotonic() - start
            with self._changed:
                self._collect(codes, done)

    def _fill(self) -> list[tuple[Image, int]]:
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
            if partial is None:
                self.counts.images += 1
                picture = pixels.whole(self._tokenizer, codes, image.grid)
            else:
                picture = pixels.begun(self._tokenizer, codes, image.grid, done)
            if edit := ticket.request.edit:
                picture = edit.paste(picture)
            ticket.deliver(Picture(image.index, partial, picture))
