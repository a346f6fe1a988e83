"""Every test process sees eight CPU devices, so that meshes are tested without accelerators.

But for `pytest -m gpu`, whose tests see the machine's own devices.
"""

import atexit
import os
import shutil
import tempfile

import pytest

# A program that several tests run is compiled once, also where several processes run the tests.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"


def pytest_configure(config):
    if config.option.markexpr != "gpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
        # Most programs run once or twice here: compiling them lightly saves a third of the time.
        light = "--xla_backend_optimization_level=0"
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {light}"


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu"):
        import jax

        if jax.default_backend() != "gpu":
            pytest.skip("needs a GPU (pytest -m gpu)")
