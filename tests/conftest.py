"""Every test process sees eight CPU devices, so that meshes are tested without accelerators."""

import atexit
import os
import shutil
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
# A program that several tests run is compiled once, also where several processes run the tests.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
