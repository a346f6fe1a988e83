"""Every test process sees eight CPU devices, so that meshes are tested without accelerators."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
