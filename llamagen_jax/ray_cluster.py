"""Connects a process to a Ray cluster."""

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator

import jax

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
        import ray
    except ImportError:
        raise InputError('a Ray cluster needs Ray: pip install "llamagen_jax[prepare]"') from None
    try:
        _check_port(address)
        with _sigterm_kept():
            ray.init(
                address,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"cannot reach the Ray cluster {address}: {reason}") from error
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
