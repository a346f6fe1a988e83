"""Training steps of the transformer on packed codes (paper section 3.1)."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import metrics

from llamagen_jax import flops, losses, sharding, zoo
from llamagen_jax.data.records import Manifest, TextEncoderId, TokenizerId
from llamagen_jax.data.sources import Source
from llamagen_jax.errors import InputError
from llamagen_jax.generation import generate_images
from llamagen_jax.image_tokenizer import ModelTokenizer
from llamagen_jax.models import attention
from llamagen_jax.models.llama import Llama
from llamagen_jax.models.vqgan import VQGAN
from llamagen_jax.sampling.settings import SamplingSettings
from llamagen_jax.training.config import GeneratorTraining
from llamagen_jax.training.optimizer import (
    TrainState,
    adamw,
    apply_gradients,
    init_state,
    with_params,
)
from llamagen_jax.training.task import Task
from llamagen_jax.weights.integrity import weights_hash
from llamagen_jax.weights.shapes import check_params

# Up to this many classes or captions, each with this many images, make the samples' grid.
_PREVIEW_ROWS = 8
_PREVIEW_COLUMNS = 4


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


def load_init(config: GeneratorTraining) -> dict | None:
    """Parameters on the host that training begins with; None where they are drawn.

    Raises:
      InputError: `config.init_from` cannot be opened or is another model.
    """
    if not config.init_from:
        return None
    _, params = zoo.load(config.init_from)
    what = f"config.model does not fit config.init_from={config.init_from}"
    check_params(params, config.model, what)
    return params


def make_task(
    config: GeneratorTraining,
    tokenizer: tuple[VQGAN, dict] | None = None,
    init_params: dict | None = None,
) -> Task:
    """The transformer's side of the training loop.

    Args:
      config: of the run.
      tokenizer: VQGAN and parameters that turn sampled codes into pictures, or None for none.
      init_params: of `load_init`.
    """
    c = config.model
    kernel = attention.choose(config.attention, c.dtype)
    model = Llama(c, attention=kernel, remat=config.remat)
    optimizer = adamw(config.optimizer, config.steps)
    example = {"codes": jax.ShapeDtypeStruct((c.code_length,), jnp.int32)}
    if c.condition == "class":
        example["label"] = jax.ShapeDtypeStruct((), jnp.int32)
    else:
        text = (c.condition_length, c.caption_dim)
        example["features"] = jax.ShapeDtypeStruct(text, jnp.bfloat16)
        example["mask"] = jax.ShapeDtypeStruct(text[:1], bool)
    one = {name: jax.ShapeDtypeStruct((1, *x.shape), x.dtype) for name, x in example.items()}

    def init() -> TrainState:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), one)
        variables = model.init(jax.random.key(config.seed), zeros["codes"], *_condition(zeros))
        return init_state(variables["params"], optimizer, config.optimizer)

    def loss_and_grads(params: dict, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
        def loss_of(params):
            rngs = {"dropout": key}
            codes, condition = batch["codes"], _condition(batch)
            logits = model.apply({"params": params}, codes, *condition, train=True, rngs=rngs)
            return jnp.mean(losses.cross_entropy(logits, codes))

        return jax.value_and_grad(loss_of)(params)

    def train_step(state: TrainState, batch: dict) -> tuple[TrainState, TrainMetrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        if config.accumulation_steps == 1:
            loss, grads = loss_and_grads(state.params, batch, key)
        else:
            part = functools.partial(loss_and_grads, state.params)
            loss, grads = accumulate(part, batch, key, config.accumulation_steps)
        train_metrics = TrainMetrics.single_from_model_output(
            loss=loss, grad_norm=optax.tree.norm(grads)
        )
        return apply_gradients(state, grads, optimizer, config.optimizer), train_metrics

    def eval_step(params: dict, batch: dict) -> EvalMetrics:
        logits = model.apply({"params": params}, batch["codes"], *_condition(batch))
        right = jnp.mean(jnp.argmax(logits, axis=-1) == batch["codes"], axis=1)
        return EvalMetrics.single_from_model_output(
            loss=losses.cross_entropy(logits, batch["codes"]),
            accuracy=right,
            mask=batch["weight"],
        )

    plain = Llama(c)
    variables = jax.eval_shape(plain.init, jax.random.key(0), one["codes"], *_condition(one))
    forward = flops.count(plain.apply, variables, one["codes"], *_condition(one))
    return Task(
        init,
        train_step,
        eval_step,
        functools.partial(_preview, config, model, *tokenizer) if tokenizer else None,
        example,
        codes_per_example=c.code_length,
        flops_per_example=3 * forward,  # for each product the backward pass has two
        condition="stored",
        load=functools.partial(with_params, params=init_params) if init_params else None,
    )


def _condition(batch: dict) -> tuple:
    """What follows the codes in a call of `Llama`."""
    return (batch["label"],) if "label" in batch else (batch["features"], batch["mask"])


def _preview(
    config: GeneratorTraining, model: Llama, vqgan: VQGAN, vqgan_params: dict, params, batch: dict
) -> np.ndarray:
    """Samples of the first classes, or of the first captions of the batch; a row for each."""
    if model.config.condition == "class":
        labels = np.arange(min(model.config.num_classes, _PREVIEW_ROWS), dtype=np.int32)
        condition, mask = labels, None
    else:
        condition, mask = (sharding.fetch(rows)[:_PREVIEW_ROWS] for rows in _condition(batch))
    _, images = generate_images(
        model,
        params,
        ModelTokenizer(vqgan, vqgan_params),
        np.repeat(condition, _PREVIEW_COLUMNS, axis=0),
        SamplingSettings(config.seed, config.sample.guidance_scale, top_k=config.sample.top_k),
        condition_mask=None if mask is None else np.repeat(mask, _PREVIEW_COLUMNS, axis=0),
    )
    return images.reshape(-1, _PREVIEW_COLUMNS, *images.shape[1:])


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


def holds_codes(source: Source) -> bool:
    """Whether the source's records are packed codes, rather than images."""
    return hasattr(source, "manifest") and source.manifest.tokenizer is not None


def check_classes(config: GeneratorTraining, source: Source) -> None:
    """Raises InputError when the data have more classes than the model."""
    classes, most = len(source.class_names), config.model.num_classes
    if config.model.condition == "class" and classes > most:
        raise InputError(
            f"{config.data.train} has {classes} classes but config.model.num_classes={most}; "
            "raise it"
        )


def check_codes(config: GeneratorTraining, source: Source, tokenizer) -> None:
    """Raises InputError when packed codes do not fit the model or the tokenizer."""
    model, name = config.model, config.data.train
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
    check_classes(config, source)
    if model.condition == "text":
        _check_features(config, source)
    if config.data.eval:
        _check_held_out(config, source.manifest)
    if tokenizer and weights_hash(tokenizer[1]) != made_by.sha256:
        raise InputError(
            f"{name} was made by another tokenizer ({made_by.name}) than "
            f"config.tokenizer={config.tokenizer}; extract the codes again or name that tokenizer"
        )


def _check_held_out(config: GeneratorTraining, trained_on: Manifest) -> None:
    """Held-out codes and features must be of the size, tokenizer and encoder trained on."""
    held_out = Manifest.read(config.data.eval)
    for part in ("tokenizer", "text_encoder"):
        wanted, found = getattr(trained_on, part), getattr(held_out, part)
        # A name is a path, which may change.
        if _unnamed(wanted) != _unnamed(found):
            raise InputError(
                f"config.data.eval={config.data.eval} was made by another {part} "
                f"({found and found.name}) than config.data.train={config.data.train} "
                f"({wanted and wanted.name}); make both by the same"
            )
    if held_out.code_shape[1] != trained_on.code_shape[1]:
        raise InputError(
            f"config.data.eval={config.data.eval} holds {held_out.code_shape[1]} codes per image "
            f"but config.data.train={config.data.train} {trained_on.code_shape[1]}; make both of "
            "images of the same size"
        )


def _unnamed(made_by: TokenizerId | TextEncoderId | None) -> TokenizerId | TextEncoderId | None:
    return made_by and dataclasses.replace(made_by, name="")


def _check_features(config: GeneratorTraining, source: Source) -> None:
    model, name, encoder = config.model, config.data.train, source.manifest.text_encoder
    if encoder is None or not config.data.caption_weights:
        raise InputError(
            f"{name} must hold text features and config.data.caption_weights must name captions; "
            "make features with `python -m llamagen_jax.data.prepare text`"
        )
    if (encoder.length, encoder.width) != (model.condition_length, model.caption_dim):
        raise InputError(
            f"{name} holds features [{encoder.length}, {encoder.width}] of {encoder.name} but the "
            f"model reads [{model.condition_length}, {model.caption_dim}]; change "
            "config.model.condition_length and caption_dim or the text encoder"
        )
    # The encoder need not be here, and its folder may be elsewhere than it was: names must do.
    if config.text_encoder and Path(config.text_encoder).name != Path(encoder.name).name:
        raise InputError(
            f"{name} holds features of {encoder.name} but config.text_encoder="
            f"{config.text_encoder}; make the features again or name that encoder"
        )
