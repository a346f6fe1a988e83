"""Training steps of the transformer on packed codes (paper section 3.1)."""

import functools
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import metrics

from llamagen_jax import flops, losses, sampling, sharding
from llamagen_jax.data.sources import Source
from llamagen_jax.errors import InputError
from llamagen_jax.export import weights_hash
from llamagen_jax.models import attention
from llamagen_jax.models.llama import Llama
from llamagen_jax.models.vqgan import VQGAN
from llamagen_jax.training.config import GeneratorTraining
from llamagen_jax.training.optimizer import TrainState, adamw, apply_gradients, init_state
from llamagen_jax.training.task import Task

# Up to this many classes, each with this many images, make the grid of samples while training.
_PREVIEW_CLASSES = 8
_PREVIEW_PER_CLASS = 4


@flax.struct.dataclass
class TrainMetrics(metrics.Collection):
    """Means over the steps since the last log."""

    loss: metrics.Average.from_output("loss")
    grad_norm: metrics.Average.from_output("grad_norm")


@flax.struct.dataclass
class EvalMetrics(metrics.Collection):
    """Means over the held-out set: cross-entropy in nats, share of codes guessed right."""

    loss: metrics.Average.from_output("loss")
    accuracy: metrics.Average.from_output("accuracy")


def make_task(config: GeneratorTraining, tokenizer: tuple[VQGAN, dict] | None = None) -> Task:
    """The transformer's side of the training loop.

    Args:
      config: of the run.
      tokenizer: VQGAN and parameters that turn sampled codes into pictures, or None for none.
    """
    kernel = attention.choose(config.attention, config.model.dtype)
    model = Llama(config.model, attention=kernel, remat=config.remat)
    optimizer = adamw(config.optimizer, config.steps)

    def init() -> TrainState:
        codes = jnp.zeros((1, config.model.code_length), jnp.int32)
        variables = model.init(jax.random.key(config.seed), codes, jnp.zeros(1, jnp.int32))
        return init_state(variables["params"], optimizer, config.optimizer)

    def loss_and_grads(params: dict, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
        def loss_of(params):
            logits = model.apply(
                {"params": params},
                batch["codes"],
                batch["label"],
                train=True,
                rngs={"dropout": key},
            )
            return jnp.mean(losses.cross_entropy(logits, batch["codes"]))

        return jax.value_and_grad(loss_of)(params)

    def train_step(state: TrainState, batch: dict) -> tuple[TrainState, TrainMetrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        if config.accumulation_steps == 1:
            loss, grads = loss_and_grads(state.params, batch, key)
        else:
            loss, grads = accumulate(
                functools.partial(loss_and_grads, state.params),
                batch,
                key,
                config.accumulation_steps,
            )
        train_metrics = TrainMetrics.single_from_model_output(
            loss=loss, grad_norm=optax.tree.norm(grads)
        )
        return apply_gradients(state, grads, optimizer, config.optimizer), train_metrics

    def eval_step(params: dict, batch: dict) -> EvalMetrics:
        logits = model.apply({"params": params}, batch["codes"], batch["label"])
        right = jnp.mean(jnp.argmax(logits, axis=-1) == batch["codes"], axis=1)
        return EvalMetrics.single_from_model_output(
            loss=losses.cross_entropy(logits, batch["codes"]),
            accuracy=right,
            mask=batch["weight"],
        )

    def preview(params: dict, batch: dict) -> np.ndarray:
        classes = np.arange(min(config.model.num_classes, _PREVIEW_CLASSES), dtype=np.int32)
        codes = sampling.generate(
            model,
            params,
            np.repeat(classes, _PREVIEW_PER_CLASS),
            seed=config.seed,
            guidance_scale=config.sample.guidance_scale,
            top_k=config.sample.top_k,
        )
        side = config.model.grid_size
        vqgan, vqgan_params = tokenizer
        decode = jax.jit(functools.partial(vqgan.apply, method="decode"))
        images = sharding.fetch(decode({"params": vqgan_params}, codes.reshape(-1, side, side)))
        return images.reshape(len(classes), _PREVIEW_PER_CLASS, *images.shape[1:])

    length = config.model.code_length
    codes = jax.ShapeDtypeStruct((1, length), jnp.int32)
    labels = jax.ShapeDtypeStruct((1,), jnp.int32)
    plain = Llama(config.model)
    variables = jax.eval_shape(plain.init, jax.random.key(0), codes, labels)
    return Task(
        init,
        train_step,
        eval_step,
        preview if tokenizer else None,
        example={
            "codes": jax.ShapeDtypeStruct((length,), jnp.int32),
            "label": jax.ShapeDtypeStruct((), jnp.int32),
        },
        codes_per_example=length,
        # For each matrix product the backward pass has two.
        flops_per_example=3 * flops.count(plain.apply, variables, codes, labels),
    )


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


def check_data(config: GeneratorTraining, source: Source, tokenizer) -> None:
    """Raises InputError when the codes to train on do not fit the model or the tokenizer."""
    model, name = config.model, config.data.train
    if config.data.source != "array_record" or source.manifest.tokenizer is None:
        raise InputError(
            f"config.data.train={name} holds no codes; make some of these images with "
            "`python -m llamagen_jax.data.prepare codes`"
        )
    made_by, length = source.manifest.tokenizer, source.manifest.code_shape[1]
    if length != model.code_length:
        raise InputError(
            f"{name} holds {length} codes per image but the model with grid_size="
            f"{model.grid_size} makes {model.code_length}; change config.model.grid_size"
        )
    if made_by.codebook_size > model.vocab_size:
        raise InputError(
            f"{name} holds codes below {made_by.codebook_size} but config.model.vocab_size="
            f"{model.vocab_size}; raise it"
        )
    if len(source.class_names) > model.num_classes:
        raise InputError(
            f"{name} has {len(source.class_names)} classes but config.model.num_classes="
            f"{model.num_classes}; raise it"
        )
    if tokenizer and weights_hash(tokenizer[1]) != made_by.sha256:
        raise InputError(
            f"{name} was made by another tokenizer ({made_by.name}) than "
            f"config.tokenizer={config.tokenizer}; extract the codes again or name that tokenizer"
        )
