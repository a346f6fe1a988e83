"""What a run would take, from shapes and the compiled step alone: nothing is allocated."""

import math
from typing import Any

import jax
from clu import parameter_overview
from jax.sharding import Mesh

from llamagen_jax import sharding
from llamagen_jax.training.task import Task

_GIB = 2**30


def report(task: Task, mesh: Mesh) -> str:
    """The parameters and where they are, memory per device and FLOPs per step, as text.

    "Activations and gradients" are the temporaries of the step as compiled for the platform at
    hand. On CPU they come out too high for bfloat16 models, since XLA widens their products there.

    Raises:
      InputError: a sharding rule does not fit, see `sharding.tree_shardings`.
    """
    state = sharding.abstract_init(task.init, task.config.sharding_rules, mesh)
    params, everything = bytes_per_device(state.params), bytes_per_device(state)
    traced = trace_step(task, state, mesh)
    memory: Any = traced.lower().compile().memory_analysis()
    temporaries = memory.temp_size_in_bytes
    flops = task.step_flops(traced)
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


def trace_step(task: Task, state: Any, mesh: Mesh) -> jax.stages.Traced:
    """The training step, traced from shapes; it can be lowered and compiled.

    Args:
      state: of `sharding.abstract_init`.
    """
    with jax.set_mesh(mesh):
        step = jax.jit(task.train_step, donate_argnums=0)
        return step.trace(state, task.batch_shapes(mesh))


def bytes_per_device(tree: Any) -> int:
    """Bytes that one device holds of a tree of ShapeDtypeStructs with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
