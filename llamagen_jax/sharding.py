"""Device mesh, regex rules that place parameters on it, and sharded initialisation."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from llamagen_jax.errors import InputError

# A regex and, per dimension, the mesh axis (or axes, or None) to split it over.
Rules = Sequence[tuple[str, Sequence[Any]]]

LLAMA_RULES: Rules = (
    # Small, and its layers are apart: copied everywhere.
    (r"control_(encoder|fusion)", ()),
    (r"embedding/embedding$", (None, ("fsdp", "tensor"))),
    (r"classes/embedding$", (None, ("fsdp", "tensor"))),
    (r"fc1/kernel$", ("fsdp", "tensor")),
    (r"fc2/kernel$", ("tensor", "fsdp")),
    (r"(q|k|v|gate|up)/kernel$", (None, "fsdp", "tensor")),
    (r"(out|down)/kernel$", (None, "tensor", "fsdp")),
    (r"output$", ("fsdp", "tensor")),
)
# Of `Llama.for_decoding`, whose layers are apart, and whose integers are [out, in].
DECODING_RULES: Rules = (
    *((regex, spec[1:] if len(spec) == 3 else spec) for regex, spec in LLAMA_RULES),
    (r"(q|k|v|gate|up)/kernel/integers$", ("tensor", "fsdp")),
    (r"(out|down)/kernel/integers$", ("fsdp", "tensor")),
    (r"output/integers$", ("tensor", "fsdp")),
)
T5_RULES: Rules = (
    (r"embedding/embedding$", (None, ("fsdp", "tensor"))),
    (r"(q|k|v|gate|up)/kernel$", (None, "fsdp", "tensor")),
    (r"(out|down)/kernel$", (None, "tensor", "fsdp")),
)
VQGAN_RULES: Rules = (
    # Beside the VQGAN these are small, and their channels not always divisible: copied everywhere.
    (r"^(discriminator|lpips)/", ()),
    (r"(decoder/conv_out|quant_conv)/kernel$", ()),
    (r"dense_\d+/kernel$", (None, ("fsdp", "tensor"))),
    (r"kernel$", (None, None, None, ("fsdp", "tensor"))),
)


def make_mesh(data: int, fsdp: int, tensor: int) -> Mesh:
    """Mesh of all devices with axes "data", "fsdp" and "tensor".

    Args:
      data: ways the batch is split while parameters are copied.
      fsdp: ways both the batch and the parameters are split.
      tensor: ways the parameters alone are split.
        One of the three may be -1, which takes the devices left over.

    Raises:
      InputError: the sizes do not use all devices.
    """
    count, names = jax.device_count(), ("data", "fsdp", "tensor")
    asked = (data, fsdp, tensor)
    rest = math.prod(size for size in asked if size != -1)
    shape = tuple(count // max(rest, 1) if size == -1 else size for size in asked)
    if asked.count(-1) > 1 or min(shape) < 1 or math.prod(shape) != count:
        raise InputError(
            f"mesh data={data} x fsdp={fsdp} x tensor={tensor} does not use the {count} devices "
            "there are; the three must multiply to that number (one may be -1: what is left)"
        )
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * 3)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """First dimension split over "data" and "fsdp"."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Joins every process's part of a batch, arrays [B / processes, ...], on the mesh."""
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def fetch(array: jax.Array | np.ndarray) -> np.ndarray:
    """The whole of an array that is spread over devices, in every process; all must ask for it."""
    return multihost_utils.process_allgather(array, tiled=True)


def tree_shardings(tree: Any, rules: Rules, mesh: Mesh) -> Any:
    """`NamedSharding` for every leaf by the first rule whose regex is found in its path.

    Args:
      tree: arrays or ShapeDtypeStructs; the path of a leaf is its keys joined with "/", so one rule
        places a parameter and its optimiser moments alike.
      rules: leaves that no rule matches, and scalars, are copied to every device.
      mesh: of `make_mesh`.

    Raises:
      InputError: a rule splits a dimension that is not there or not divisible.
    """

    def place(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if leaf.ndim == 0:
            return NamedSharding(mesh, P())
        spec = next((spec for regex, spec in rules if re.search(regex, name)), ())
        if len(spec) > leaf.ndim:
            raise InputError(f"sharding rule {tuple(spec)} does not fit {name} {leaf.shape}")
        for size, axes in zip(leaf.shape, spec, strict=False):
            axes = (axes,) if isinstance(axes, str) else tuple(axes or ())
            ways = math.prod(mesh.shape[axis] for axis in axes)
            if size % ways:
                raise InputError(
                    f"{name} {leaf.shape}: {size} is not divisible by mesh axes {axes} = {ways}; "
                    "choose a smaller axis or change the rule in config.sharding_rules"
                )
        return NamedSharding(mesh, P(*(tuple(a) if isinstance(a, list) else a for a in spec)))

    return jax.tree_util.tree_map_with_path(place, tree)


def abstract_init(init: Callable[[], Any], rules: Rules, mesh: Mesh) -> Any:
    """Shapes, dtypes and shardings (ShapeDtypeStructs) of what `init` returns, without running it.

    Raises:
      InputError: a rule does not fit, see `tree_shardings`.
    """
    shapes = jax.eval_shape(init)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        tree_shardings(shapes, rules, mesh),
    )


def sharded_init(init: Callable[[], Any], rules: Rules, mesh: Mesh) -> Any:
    """Runs `init` so that every array is born in its place; raises as `abstract_init`."""
    shardings = tree_shardings(jax.eval_shape(init), rules, mesh)
    return jax.jit(init, out_shardings=shardings)()


def put_like(values: Any, like: Any) -> Any:
    """Host arrays on the mesh, each where the array of the same path in `like` is."""
    return jax.tree.map(
        lambda value, there: jax.make_array_from_callback(
            there.shape, there.sharding, lambda index: np.asarray(value[index], there.dtype)
        ),
        values,
        like,
    )
