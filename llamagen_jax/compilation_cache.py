"""Compiled programs kept between the starts of a command, so that only the first one waits."""

import os
import platform
from pathlib import Path

import jax
from absl import logging

_MAX_BYTES = 4 * 2**30


def enable() -> None:
    """Keeps what JAX compiles from here on in the user's cache folder, at most 4 GiB of it.

    JAX's own settings come first: JAX_COMPILATION_CACHE_DIR names another folder, and
    JAX_ENABLE_COMPILATION_CACHE=false keeps nothing. A folder that cannot be made is warned of.
    """
    if jax.config.values["jax_compilation_cache_dir"]:
        return
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    # Programs for CPUs hold instructions that other machines of a shared home may lack.
    folder = Path(caches) / "llamagen_jax" / platform.node()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logging.warning("compiled programs are not kept for the next start: %s", error)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", _MAX_BYTES)
    # Many small programs take long together.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
