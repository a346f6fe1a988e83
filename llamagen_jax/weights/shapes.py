"""Shapes of parameters, without computing any, and the one check of shapes."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict

from llamagen_jax.errors import InputError
from llamagen_jax.weights.kinds import Config, build, kind_of

Shapes = Mapping[str, tuple[int, ...]]


@functools.cache
def param_shapes(config: Config) -> Shapes:
    """Shapes of the parameters of the model that `config` describes, by '/'-joined path."""
    return flat_shapes(abstract_params(build(config), *kind_of(config).inputs(config)))


def abstract_params(module: nn.Module, *inputs: jax.Array) -> dict[str, Any]:
    """The module's parameters as nested ShapeDtypeStructs; nothing is computed."""
    return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]


def flat_shapes(params: Mapping[str, Any]) -> Shapes:
    """Shapes of nested arrays or ShapeDtypeStructs by '/'-joined path."""
    leaves: dict[str, Any] = flatten_dict(params, sep="/")
    return {path: tuple(leaf.shape) for path, leaf in leaves.items()}


def check_shapes(found: Shapes, expected: Shapes, what: str) -> None:
    """Checks that the names and shapes are those expected.

    Args:
      what: begins the message of the error.

    Raises:
      InputError: it lists every missing, unexpected and mis-shaped tensor.
    """
    wrong = [
        f"{name} {list(found[name])} instead of {list(expected[name])}"
        for name in expected
        if name in found and tuple(found[name]) != tuple(expected[name])
    ]
    problems = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "wrong shape": wrong,
    }
    if any(problems.values()):
        lists = [f"{problem}: {', '.join(names)}" for problem, names in problems.items() if names]
        raise InputError(f"{what}: {'; '.join(lists)}")


def check_params(params: Mapping[str, Any], config: Config, what: str) -> None:
    """`check_shapes` of nested parameters against those of the model that `config` describes."""
    check_shapes(flat_shapes(params), param_shapes(config), what)
