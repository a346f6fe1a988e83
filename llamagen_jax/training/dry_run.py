"""What a run would take, from shapes and the compiled step alone: nothing is allocated."""

import math
from typing import Any

import jax
from clu import parameter_overview
from jax.sharding import Mesh

from llamagen_jax import sharding
from llamagen_jax.training.config import GeneratorTraining, TokenizerTraining
from llamagen_jax.training.task import Task

_GIB = 2**30


def report(task: Task, config: TokenizerTraining | GeneratorTraining, mesh: Mesh) -> str:
    """The parameters and where they are, memory per device and FLOPs per step, as text.

    "Activations and gradients" are the temporaries of the step as compiled for the platform at
    hand. On CPU they come out too high for bfloat16 models, since XLA widens their products there.

    Raises:
      InputError: a sharding rule does not fit, see `sharding.tree_shardings`.
    """
    state = sharding.abstract_init(task.init, config.sharding_rules, mesh)
    params, everything = bytes_per_device(state.params), bytes_per_device(state)
    compiled = compile_step(task, state, config.batch_size, mesh)
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    flops = config.batch_size * task.flops_per_example
    lines = [
        ("devices", " x ".join(f"{name} {size}" for name, size in mesh.shape.items())),
        ("parameters, GiB per device", f"{params / _GIB:.2f}"),
        ("optimizer and the rest of the state", f"{(everything - params) / _GIB:.2f}"),
        ("activations and gradients", f"{temporaries / _GIB:.2f}"),
        ("all", f"{(everything + temporaries) / _GIB:.2f}"),
        ("FLOPs per step", f"{flops:.3g}"),
        ("FLOPs per step and device", f"{flops / mesh.size:.3g}"),
    ]
    table = parameter_overview.get_parameter_overview(state.params, include_stats="sharding")
    return "\n".join([table, "", *(f"{name:40}{value:>12}" for name, value in lines)])


def compile_step(task: Task, state: Any, batch_size: int, mesh: Mesh) -> jax.stages.Compiled:
    """The training step, compiled for this platform from shapes.

    Args:
      state: of `sharding.abstract_init`.
      batch_size: examples per step over all devices.
    """
    rows = sharding.batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct((batch_size, *leaf.shape), leaf.dtype, sharding=rows)
        for name, leaf in task.example.items()
    }
    with jax.set_mesh(mesh):
        return jax.jit(task.train_step, donate_argnums=0).lower(state, batch).compile()


def bytes_per_device(tree: Any) -> int:
    """Bytes that one device holds of a tree of ShapeDtypeStructs with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
