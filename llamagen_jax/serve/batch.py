"""The slots of an engine on its devices, and the programs that images enter and are drawn by."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from llamagen_jax import sharding
from llamagen_jax.generation import ImageGenerator
from llamagen_jax.sampling import jacobi
from llamagen_jax.sampling.generate import choose_decoder
from llamagen_jax.sampling.settings import SamplingSettings
from llamagen_jax.serve import slots
from llamagen_jax.serve.requests import Ticket


@dataclasses.dataclass(eq=False)
class Image:
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


class Batch:
    """Slots and their programs.

    Attributes:
      num_slots: images that are drawn at a time.
    """

    def __init__(self, generator: ImageGenerator, mesh: Mesh, num_slots: int, chunk: int):
        """Takes the memory of all slots.

        Args:
          num_slots: rounded up to a multiple of the ways that the mesh splits a batch.
          chunk: passes of the model in a call of `advance`.
        """
        ways = mesh.shape["data"] * mesh.shape["fsdp"]
        num_slots += -num_slots % ways
        self.num_slots, self._generator, self._chunk = num_slots, generator, chunk
        # Few images take a step of fewer rows, and each size a program of its own.
        sizes = (num_slots // 16, num_slots // 4, num_slots)
        self._sizes = [size for size in sizes if size and size % ways == 0]
        self._weights = sum(leaf.nbytes for leaf in jax.tree.leaves(generator.params))
        init = functools.partial(slots.empty, generator.model, num_slots)
        self._slots = sharding.sharded_init(init, slots.RULES, mesh)
        # Kept where they are, so that every call runs the same programs in place.
        places = jax.tree.map(lambda leaf: leaf.sharding, self._slots)
        in_place = {"donate_argnames": "slots", "out_shardings": places}
        self._enter_slots = jax.jit(slots.enter, static_argnames="model", **in_place)
        static = ("model", "passes", "width", "guided", "size")
        self._advance_slots = jax.jit(slots.advance, static_argnames=static, **in_place)

    def compile(self, image: Image) -> Iterator[None]:
        """Runs a program at each step, until all were, for an image that goes nowhere."""
        size = 1
        while size < 2 * self.num_slots:
            self.enter([image] * min(size, self.num_slots), [self.num_slots] * size)
            yield
            size *= 2
        for size, guided in itertools.product(self._sizes, (True, False)):
            self._advance(1, guided, size)
            yield

    def enter(self, images: Sequence[Image], places: Sequence[int]) -> None:
        """Prefills images whose conditions are read, in a batch of one of few sizes."""
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
            self._generator.model,
            self._generator.params,
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

    def _controls(self, images: Sequence[Image]) -> list[np.ndarray] | None:
        """Of `slots.enter`."""
        config = self._generator.config
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

    def advance(self, images: Sequence[Image | None]) -> tuple[np.ndarray, np.ndarray]:
        """A chunk of passes over the images of all slots, of which there is one or more.

        Returns:
          codes int32 [S, L], and int32 [S] how many of each are drawn.
        """
        active = [image for image in images if image]
        used = 1 + max(place for place, image in enumerate(images) if image)
        size = next(size for size in self._sizes if size >= used)
        self._advance(self._width(active), any(image.guided for image in active), size)
        codes, done = jax.device_get(self._slots.progress[:2])
        return codes, done

    def _advance(self, width: int, guided: bool, size: int) -> None:
        self._slots = self._advance_slots(
            self._generator.model,
            self._generator.params,
            self._slots,
            passes=self._chunk,
            width=width,
            guided=guided,
            size=size,
        )

    def _width(self, active: Sequence[Image]) -> int:
        """Codes in a pass: several where all that are drawn now ask for it, or it pays."""
        for image in active:
            if choose_decoder(image.settings, len(active), self._weights, False) == "plain":
                return 1
        shortest = min(map(math.prod, self._generator.config.trained_grids))
        return min(jacobi.WINDOW, shortest - 1)
