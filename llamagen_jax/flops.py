"""Floating-point operations: what a function needs, and what a device can do."""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
from jax.interpreters import partial_eval

# Dense bfloat16 FLOP/s per chip in the vendors' data sheets, by a part of JAX's `device_kind`.
_PEAKS = {
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "L4": 121e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
}


def count(function: Callable, *arguments: Any) -> float:
    """FLOPs of the matrix products and convolutions of one call, two per multiply-add.

    Scans count once per iteration; recomputation under `jax.checkpoint` counts too.

    Args:
      function: traced, not run.
      arguments: arrays or ShapeDtypeStructs.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def count_traced(traced: jax.stages.Traced) -> float:
    """FLOPs as of `count`, of a function that is traced; what it has no use for does not count."""
    jaxpr = traced.jaxpr.jaxpr
    used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _count(used)


def _count(jaxpr) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracting, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod(shape[d] for d in contracting)
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
            per_output = math.prod(kernel) // outputs
            # Zeros between inputs, as gradients of strided convolutions have them, are no work.
            spread = math.prod(equation.params["lhs_dilation"])
            total += 2 * equation.outvars[0].aval.size * per_output / spread
        else:
            times = equation.params["length"] if equation.primitive.name == "scan" else 1
            inner = (j for p in equation.params.values() for j in _jaxprs(p))
            total += times * sum(map(_count, inner))
    return total


def _jaxprs(parameter):
    if isinstance(parameter, jax.extend.core.ClosedJaxpr):
        yield parameter.jaxpr
    elif isinstance(parameter, jax.extend.core.Jaxpr):
        yield parameter
    elif isinstance(parameter, tuple | list):
        for item in parameter:
            yield from _jaxprs(item)


def peak(dtype: str) -> float:
    """FLOP/s of one local device, of which a model FLOP/s utilisation is the used share.

    The data sheet's where it is known, else that of a large matrix product in `dtype`, measured.
    """
    kind = jax.local_devices()[0].device_kind
    if dtype == "bfloat16":
        for name, value in _PEAKS.items():
            if name in kind:
                return value
    return measured_peak(dtype)


def measured_peak(dtype: str, repeats: int = 5) -> float:
    """FLOP/s of the product of two square matrices in `dtype` on one device; no mesh may be set."""
    device = jax.local_devices()[0]
    size = 1024 if device.platform == "cpu" else 8192
    matrix = jax.device_put(jax.random.normal(jax.random.key(0), (size, size), dtype), device)
    product = jax.jit(jnp.dot)
    return 2 * size**3 / median_seconds(lambda: product(matrix, matrix), repeats)


def median_seconds(call: Callable[[], Any], repeats: int) -> float:
    """Median time of `call` until its arrays are ready, after one call that compiles."""
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])
