"""Training steps of the transformer on packed codes (paper section 3.1)."""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import metrics

from llamagen_jax import losses, sampling
from llamagen_jax.data.sources import Source
from llamagen_jax.errors import InputError
from llamagen_jax.export import weights_hash
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
    model = Llama(config.model)
    optimizer = adamw(config.optimizer, config.steps)

    def init() -> TrainState:
        codes = jnp.zeros((1, config.model.code_length), jnp.int32)
        variables = model.init(jax.random.key(config.seed), codes, jnp.zeros(1, jnp.int32))
        return init_state(variables["params"], optimizer, config.optimizer)

    def train_step(state: TrainState, batch: dict) -> tuple[TrainState, TrainMetrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)

        def loss_of(params):
            logits = model.apply(
                {"params": params},
                batch["codes"],
                batch["label"],
                train=True,
                rngs={"dropout": key},
            )
            return jnp.mean(losses.cross_entropy(logits, batch["codes"]))

        loss, grads = jax.value_and_grad(loss_of)(state.params)
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
        images = decode({"params": vqgan_params}, codes.reshape(-1, side, side))
        return np.asarray(images).reshape(len(classes), _PREVIEW_PER_CLASS, *images.shape[1:])

    return Task(init, train_step, eval_step, preview if tokenizer else None)


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
