"""Applies a function to items on a Ray cluster: one actor per GPU or, without GPUs, per node."""

import contextlib
import logging as standard_logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from absl import logging

from llamagen_jax.errors import InputError


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connects this process to a cluster, and leaves the accelerators to its actors.

    Args:
      address: HOST:PORT of a cluster, or "auto" for the one that runs on this machine. None takes
        the environment's RAY_ADDRESS or else starts a local cluster that ends with the context.

    Raises:
      InputError: Ray is not installed, or the cluster cannot be reached.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    # Read when Ray is imported: nothing is reported to its makers, nor internals to the terminal.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if address != "local":
        # The default of 20 takes a quarter of an hour where a cluster is gone.
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
    try:
        import ray.data
    except ImportError:
        raise InputError(
            'the engine "ray" needs Ray: pip install "llamagen_jax[prepare]"'
        ) from None
    try:
        _check_port(address)
        with _sigterm_kept():
            ray.init(
                address,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=standard_logging.ERROR,
            )
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"cannot reach the Ray cluster {address}: {reason}") from error
    standard_logging.getLogger("ray.data").setLevel(standard_logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    jax.config.update("jax_platforms", "cpu")
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Gives SIGTERM back to who handled it before Ray took it."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _check_port(address: str) -> None:
    """Raises OSError if nothing listens at HOST:PORT, which Ray takes a minute to find out."""
    host, _, port = address.rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


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
