"""AdamW with decayed and undecayed groups, learning-rate schedules, and the training state."""

import dataclasses
import re
from typing import Any, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import optax

from llamagen_jax import sharding
from llamagen_jax.errors import InputError, check_finite


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW as the original trains with it (paper section 3.1).

    Attributes:
      learning_rate: peak.
      schedule: "constant", or "cosine" down to 0 at the last step; either after `warmup_steps` of
        linear growth from 0.
      weight_decay: on the leaves of `decay_mask`.
      clip_norm: bound on the global gradient norm.
      ema_decay: decay of the parameters' moving average per step; 0 keeps none.

    Raises:
      ValueError: a value is impossible.
    """

    learning_rate: float
    schedule: str
    warmup_steps: int
    b1: float
    b2: float
    weight_decay: float
    clip_norm: float
    ema_decay: float

    def __post_init__(self):
        check_finite(self)
        if self.schedule not in ("constant", "cosine"):
            raise ValueError(f"schedule={self.schedule!r} must be 'constant' or 'cosine'")
        if self.learning_rate <= 0 or self.clip_norm <= 0:
            raise ValueError("learning_rate and clip_norm must be positive")
        for field in ("warmup_steps", "weight_decay"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field}={getattr(self, field)} must not be negative")
        for field in ("b1", "b2", "ema_decay"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)} must be in [0, 1)")


class TrainState(flax.struct.PyTreeNode):
    """What a step reads and writes; every leaf is checkpointed.

    Attributes:
      step: int32 scalar, optimiser steps taken.
      params: float32.
      ema: moving average of params, or None.
      opt_state: of the optax transformation.
    """

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any

    @property
    def eval_params(self) -> Any:
        """The moving average where there is one."""
        return self.params if self.ema is None else self.ema


State = TypeVar("State", bound=TrainState)


def init_state(params: Any, optimizer: optax.GradientTransformation, config) -> TrainState:
    """The state before the first step."""
    ema = jax.tree.map(jnp.array, params) if config.ema_decay else None
    return TrainState(jnp.zeros((), jnp.int32), params, ema, optimizer.init(params))


def with_params(state: State, params: dict) -> State:
    """A state fresh from its initialisation with `params`, on the host, in place of the drawn.

    Of the state's own parameters those stay whose first name `params` has not.
    """
    drawn = {name: tree for name, tree in state.params.items() if name in params}
    params = {**state.params, **sharding.put_like(params, drawn)}
    ema = None if state.ema is None else jax.tree.map(jnp.array, params)
    return state.replace(params=params, ema=ema)


def apply_gradients(
    state: State, grads: Any, optimizer: optax.GradientTransformation, config: OptimizerConfig
) -> State:
    """One optimiser step, and the moving average after it."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if config.ema_decay:
        ema = optax.incremental_update(params, ema, 1 - config.ema_decay)
    return state.replace(step=state.step + 1, params=params, ema=ema, opt_state=opt_state)


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step; `steps` is the length of the whole run."""
    after = max(steps - config.warmup_steps, 1)
    main = {
        "constant": optax.constant_schedule(config.learning_rate),
        "cosine": optax.cosine_decay_schedule(config.learning_rate, after),
    }[config.schedule]
    warmup = optax.linear_schedule(0, config.learning_rate, config.warmup_steps)
    return optax.join_schedules([warmup, main], [config.warmup_steps])


def adamw(config: OptimizerConfig, steps: int, trained: str = "") -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW.

    Args:
      trained: regular expression that is searched in the paths of parameters, such as
        "layers/attention/q/kernel"; those without a match stay as they are, and have no moments.

    `init` raises InputError where nothing is trained.
    """
    chain = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config, steps),
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
            mask=decay_mask,
        ),
    )
    if not trained:
        return chain

    def groups(params):
        def group(path, _):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            return "trained" if re.search(trained, name) else "kept"

        found = jax.tree_util.tree_map_with_path(group, params)
        if "trained" not in jax.tree.leaves(found):
            raise InputError(f"config.trained={trained!r} is found in the path of no parameter")
        return found

    return optax.partition({"trained": chain, "kept": optax.set_to_zero()}, groups)


def decay_mask(params: Any) -> Any:
    """True for the leaves that weight decay shrinks: kernels, embeddings, the output matrix and the
    codebook; False for norm scales, biases and the features of the null caption.

    These are the original's parameters of two and more dimensions. They are told by name because
    scanned layers' norm scales are stacked to rank 2, and the null caption's features, a buffer in
    the original, have rank 2 too.
    """
    undecayed = ("scale", "bias", "null_features")
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in undecayed, params)
