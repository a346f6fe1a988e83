"""Training steps of the transformer on codes (paper section 3.1)."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from clu import metrics

from llamagen_jax import losses, seeds, zoo
from llamagen_jax.errors import naming
from llamagen_jax.models import attention
from llamagen_jax.models.llama import Llama, LlamaConfig
from llamagen_jax.training.config import GeneratorTraining
from llamagen_jax.training.optimizer import (
    TrainState,
    adamw,
    apply_gradients,
    init_state,
)
from llamagen_jax.training.task import Task
from llamagen_jax.weights.shapes import check_params

# Means over the steps since the last log.
TrainMetrics = metrics.Collection.create(
    loss=metrics.Average.from_output("loss"), grad_norm=metrics.Average.from_output("grad_norm")
)
# Means over the held-out set: cross-entropy in nats, share of codes guessed right.
EvalMetrics = metrics.Collection.create(
    loss=metrics.Average.from_output("loss"), accuracy=metrics.Average.from_output("accuracy")
)


def load_init(config: GeneratorTraining) -> dict | None:
    """Parameters on the host that training begins with; None where they are drawn.

    Those of control are missing where `config.init_from` is a model without control.

    Raises:
      InputError: `config.init_from` cannot be opened or is another model.
    """
    if not config.init_from:
        return None
    with naming("config.init_from"):
        before, params = zoo.load(config.init_from)
    what, model = f"config.model does not fit config.init_from={config.init_from}", config.model
    if isinstance(before.config, LlamaConfig):
        if model.grids:
            params = with_sizes(params, before.config, model)
        if not before.config.control_layers:
            model = dataclasses.replace(model, control_layers=0)
    check_params(params, model, what)
    if model != config.model:
        logging.info("control is new: its parameters are drawn, all others are of init_from")
    return params


def with_sizes(params: dict, before: LlamaConfig, after: LlamaConfig) -> dict:
    """Parameters of a model `before` that is to be trained for the grids of `after`.

    The embeddings of grids that it knows are kept, those of others begin at zero.
    """
    sizes = np.zeros((len(after.grids), before.dim), np.float32)
    embedding = dict(params["condition_embedding"])
    for grid, vector in zip(before.grids, embedding.pop("sizes", ()), strict=True):
        if grid in after.grids:
            sizes[after.size_index(grid)] = vector
    new = [grid for grid in after.grids if grid not in before.grids]
    if new:
        logging.warning("embeddings of the grids %s are new: they begin at zero", new)
    return params | {"condition_embedding": embedding | {"sizes": sizes}}


def make_task(config: GeneratorTraining) -> Task:
    """The transformer's side of the training loop."""
    training, model = _Training(config), config.model
    # Of several grids on average, as if all were drawn from equally.
    by_grid = [dataclasses.replace(model, grid_size=grid) for grid in model.trained_grids]
    flops_per_example = 3 * sum(map(forward_flops, by_grid)) / len(by_grid)
    return Task(
        config=config,
        compute_dtype=config.model.dtype,
        init=training.init,
        train_step=training.train_step,
        eval_step=training.eval_step,
        example=training.example,
        codes_per_example=sum(c.code_length for c in by_grid) / len(by_grid),
        step_flops=lambda traced: config.batch_size * flops_per_example,
    )


def forward_flops(config: LlamaConfig) -> float:
    """FLOPs of the matrix products of one example's forward pass, two per multiply-add.

    Products of queries with the keys after them, which causal attention hides, count too.
    """
    c = config
    positions = c.condition_length + c.code_length - 1  # the last code is never an input
    attention = 2 * c.n_heads * c.head_dim * positions
    projections = 2 * c.dim * (c.n_heads + c.kv_heads) * c.head_dim
    layer = positions * (projections + attention + 3 * c.dim * c.ffn_dim)
    output = c.code_length * c.dim * c.vocab_size
    captions = 0
    if c.condition == "text":
        captions = c.condition_length * c.dim * (c.caption_dim + c.dim)
    return 2.0 * (captions + c.n_layers * layer + output + _control_products(c))


def _control_products(c: LlamaConfig) -> int:
    """Multiply-adds of one control image."""
    if not c.control_layers:
        return 0
    block = 12 * c.control_dim**2 + 2 * c.control_dim * c.code_length
    ends = 3 * c.control_patch**2 + len(c.control_depths) * c.dim
    return c.code_length * (c.control_layers * block + c.control_dim * ends)


class _Training:
    """The functions of the task, around the model that the configuration describes."""

    def __init__(self, config: GeneratorTraining):
        c = config.model
        kernel = attention.choose(config.attention, c.dtype)
        self._config = config
        self._model: Any = Llama(c, attention=kernel, remat=config.remat)
        self._optimizer = adamw(config.optimizer, config.steps, config.trained)
        # The largest of several grids, which tells what memory a run needs.
        largest = dataclasses.replace(c, grid_size=max(c.trained_grids, key=math.prod))
        codes = largest.grid if c.grids else (c.code_length,)
        self.example = {"codes": jax.ShapeDtypeStruct(codes, jnp.int32)}
        if c.condition == "class":
            self.example["label"] = jax.ShapeDtypeStruct((), jnp.int32)
        else:
            text = (c.condition_length, c.caption_dim)
            self.example["features"] = jax.ShapeDtypeStruct(text, jnp.bfloat16)
            self.example["mask"] = jax.ShapeDtypeStruct(text[:1], bool)
        if c.control_layers:
            self.example["control"] = jax.ShapeDtypeStruct((*largest.control_size, 3), jnp.uint8)

    def init(self) -> TrainState:
        zeros = {name: jnp.zeros((1, *x.shape), x.dtype) for name, x in self.example.items()}
        key = seeds.key(self._config.seed)
        model, codes = self._on_grid(zeros["codes"])
        params = model.init(key, codes, **_inputs(zeros))["params"]
        return init_state(params, self._optimizer, self._config.optimizer)

    def train_step(self, state: TrainState, batch: dict) -> tuple[TrainState, metrics.Collection]:
        config = self._config
        key = jax.random.fold_in(seeds.key(config.seed), state.step)
        loss_and_grads = functools.partial(self._loss_and_grads, state.params)
        if config.accumulation_steps == 1:
            loss, grads = loss_and_grads(batch, key)
        else:
            loss, grads = accumulate(loss_and_grads, batch, key, config.accumulation_steps)
        train_metrics = TrainMetrics.single_from_model_output(
            loss=loss, grad_norm=optax.tree.norm(grads)
        )
        return apply_gradients(state, grads, self._optimizer, config.optimizer), train_metrics

    def eval_step(self, params: dict, batch: dict) -> metrics.Collection:
        model, codes = self._on_grid(batch["codes"])
        logits = model.apply({"params": params}, codes, **_inputs(batch))
        right = jnp.mean(jnp.argmax(logits, axis=-1) == codes, axis=1)
        return EvalMetrics.single_from_model_output(
            loss=losses.cross_entropy(logits, codes),
            accuracy=right,
            mask=batch["weight"],
        )

    def _loss_and_grads(self, params: dict, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
        def loss_of(params):
            rngs = {"dropout": key}
            (model, codes), inputs = self._on_grid(batch["codes"]), _inputs(batch)
            logits = model.apply({"params": params}, codes, **inputs, train=True, rngs=rngs)
            return jnp.mean(losses.cross_entropy(logits, codes))

        return jax.value_and_grad(loss_of)(params)

    def _on_grid(self, codes: jax.Array) -> tuple[Any, jax.Array]:
        """The model for the grid of a batch's codes, and the codes [B, L]."""
        if codes.ndim == 2:
            return self._model, codes
        return self._model.for_grid(codes.shape[1:]), codes.reshape(len(codes), -1)


def _inputs(batch: dict) -> dict:
    """What a call of `Llama` takes beside the codes."""
    condition = batch["label"] if "label" in batch else batch["features"]
    return {
        "condition": condition,
        "condition_mask": batch.get("mask"),
        "control": batch.get("control"),
    }


def accumulate(
    loss_and_grads: Callable[[dict, jax.Array], tuple[jax.Array, dict]],
    batch: dict,
    key: jax.Array,
    steps: int,
) -> tuple[jax.Array, dict]:
    """Loss and gradients of a batch, computed in `steps` equal parts one after another.

    Args:
      loss_and_grads: (part of the batch, random key) -> mean loss, its gradients.
      batch: arrays [B, ...]; `steps` divides each device's share of the rows.
      key: of which every part gets one of its own.
      steps: number of parts.
    """

    def split(rows):
        # Strided, so that every part has an equal share of each device's rows.
        return jnp.swapaxes(rows.reshape(-1, steps, *rows.shape[1:]), 0, 1)

    def add(total, part):
        index, rows = part
        now = loss_and_grads(rows, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, total, now), None

    parts = jnp.arange(steps), jax.tree.map(split, batch)
    shapes = jax.eval_shape(loss_and_grads, jax.tree.map(lambda rows: rows[0], parts[1]), key)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, parts)
    return jax.tree.map(lambda leaf: leaf / steps, total)
