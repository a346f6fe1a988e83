"""Applies a function to items on a Ray cluster: one actor per GPU or, without GPUs, per node."""

import contextlib
import logging as standard_logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import logging

from llamagen_jax.errors import InputError


def for_each(make: Callable[[], Callable[[int], None]], items: list[int]) -> Iterator[int]:
    """Applies a function to items on the connected cluster; yields each when it is done.

    The warnings of an item are logged here. When an actor is lost, with its node or because memory
    is full, Ray starts another, which tries its item again.

    Args:
      make: gives the function. It is pickled and called once in every actor, in the folder in which
        this process works.
      items: to apply the function to, once each, in any order.

    Raises:
      InputError: of `make` or of its function.
    """
    import ray.data

    if not items:
        return
    standard_logging.getLogger("ray.data").setLevel(standard_logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(resources.get("GPU", 0) for resources in nodes))
    actors = gpus or sum(resources.get("CPU", 0) > 0 for resources in nodes)
    done = ray.data.from_items(items, override_num_blocks=len(items)).map(
        _Actor,  # pyright: ignore[reportArgumentType]
        fn_constructor_args=(make, Path.cwd()),
        num_gpus=1 if gpus else None,
        # An item takes long: it waits for the actor that is free first.
        compute=ray.data.ActorPoolStrategy(
            size=min(actors, len(items)), max_tasks_in_flight_per_actor=1
        ),
    )
    for row in done.iter_rows():
        for warning in row["warnings"]:
            logging.warning("%s", warning)
        if row["error"]:
            raise InputError(row["error"])
        yield row["item"]


class _Actor:
    """What of an item must reach the terminal travels with it: warnings, and what was wrong."""

    def __init__(self, make: Callable[[], Callable[[int], None]], folder: Path):
        # Where it is missing, absolute paths may still do.
        with contextlib.suppress(OSError):
            os.chdir(folder)
        self._make, self._function = make, None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        warnings, error = [], ""
        try:
            # Not in `__init__`, whose errors would not arrive as they are.
            if self._function is None:
                self._function = self._make()
            with _warnings_to(warnings):
                self._function(row["item"])
        except InputError as wrong:
            error = str(wrong)
        return row | {"warnings": warnings, "error": error}


@contextlib.contextmanager
def _warnings_to(messages: list[str]) -> Iterator[None]:
    """Appends what absl logs meanwhile, as warnings or worse."""
    handler = standard_logging.Handler(standard_logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = standard_logging.getLogger("absl")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
