"""Training steps of the VQGAN on images (paper section 2.1), with its discriminator."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from clu import metrics

from llamagen_jax import flops, losses, seeds, sharding, zoo
from llamagen_jax.errors import InputError, naming
from llamagen_jax.images import from_uint8
from llamagen_jax.models.codebook import l2_normalize
from llamagen_jax.models.layers import squares
from llamagen_jax.models.lpips import LPIPS
from llamagen_jax.models.vqgan import VQGAN
from llamagen_jax.training import codebook
from llamagen_jax.training.adversarial import Adversary, DiscriminatorState
from llamagen_jax.training.config import TokenizerTraining
from llamagen_jax.training.optimizer import (
    TrainState,
    adamw,
    apply_gradients,
    init_state,
    with_params,
)
from llamagen_jax.training.task import Task
from llamagen_jax.weights import lpips as lpips_weights
from llamagen_jax.weights.shapes import check_params

_SCALARS = (
    "loss",
    "grad_norm",
    "reconstruction_loss",
    "vq_loss",
    "commitment_loss",
    "entropy_loss",
)
_ADVERSARIAL_SCALARS = (
    "adversarial_loss",
    "discriminator_loss",
    "discriminator_grad_norm",
    "logits_real",
    "logits_fake",
)

EvalMetrics = metrics.Collection.create(
    loss=metrics.Average.from_output("loss"),
    psnr=metrics.Average.from_output("psnr"),
    codebook_usage=codebook.Usage,
    perplexity=codebook.Perplexity,
)


class TokenizerState(TrainState):
    """A training state whose params, ema and opt_state are the VQGAN's.

    Attributes:
      code_age: int32 [K], see `codebook.update_age`.
      discriminator: None without one.
      lpips: frozen parameters of `LPIPS`, or None. They are here to be placed as the rest is, and
        so that a run goes on without the files they came from.
    """

    code_age: jax.Array
    discriminator: DiscriminatorState | None
    lpips: Any


@dataclasses.dataclass(frozen=True)
class Weights:
    """What a run reads from files before its first step: parameters on the host, None for none."""

    vqgan: dict | None = None
    lpips: dict | None = None


def load_weights(config: TokenizerTraining) -> Weights:
    """Opens the files that `config` names.

    Raises:
      InputError: a file is missing or damaged, or `config.init_from` is another model.
    """
    vqgan = lpips = None
    if config.init_from:
        with naming("config.init_from"):
            model, vqgan = zoo.load(config.init_from)
        what = f"config.model does not fit config.init_from={config.init_from}"
        check_params(vqgan, config.model, what)
        if model.config.l2_normalize != config.model.l2_normalize:
            raise InputError(f"{what}: l2_normalize is {model.config.l2_normalize} there")
    if config.loss.perceptual_weight:
        lpips = lpips_weights.load(config.loss.vgg16, config.loss.lpips_heads)
    return Weights(vqgan, lpips)


def put_weights(weights: Weights, state: TokenizerState) -> TokenizerState:
    """The state with the parameters from files in place of the drawn ones."""
    if weights.vqgan is not None:
        state = with_params(state, weights.vqgan)
    if weights.lpips is not None:
        state = state.replace(lpips=sharding.put_like(weights.lpips, state.lpips))
    return state


def make_task(config: TokenizerTraining) -> Task:
    """The VQGAN's side of the training loop; LPIPS is 0 everywhere without `put_weights`."""
    training, size = _Training(config), config.data.image_size
    finite = ("loss", "grad_norm")
    if config.loss.adversarial_weight:
        finite += ("discriminator_loss", "discriminator_grad_norm")
    return Task(
        config=config,
        compute_dtype=config.model.dtype,
        init=training.init,
        train_step=training.train_step,
        eval_step=training.eval_step,
        example={"image": jax.ShapeDtypeStruct((size, size, 3), jnp.uint8)},
        codes_per_example=(size // config.model.downsampling) ** 2,
        step_flops=flops.count_traced,
        finite=finite,
        warning=training.warning,
    )


class _Training:
    """The functions of the task, around the models that the configuration describes."""

    def __init__(self, config: TokenizerTraining):
        self._config = config
        self._model: Any = VQGAN(config.model)
        self._optimizer = adamw(config.optimizer, config.steps)
        self._adversary = Adversary(config) if config.loss.adversarial_weight else None
        self._lpips: Any = LPIPS() if config.loss.perceptual_weight else None
        names = [*_SCALARS, *(_ADVERSARIAL_SCALARS if self._adversary else ())]
        names += ["adaptive_weight"] if self._adversary and config.loss.adaptive_weight else []
        names += ["perceptual_loss"] if self._lpips else []
        self._train_metrics = metrics.Collection.create(
            **{name: metrics.Average.from_output(name) for name in names},
            codebook_usage=metrics.LastValue.from_output("codebook_usage"),
            perplexity=codebook.Perplexity,
        )

    def init(self) -> TokenizerState:
        config, key = self._config, seeds.key(self._config.seed)
        images = jnp.zeros((1, config.data.image_size, config.data.image_size, 3))
        params = self._model.init(key, images)["params"]
        return TokenizerState(
            **vars(init_state(params, self._optimizer, config.optimizer)),
            code_age=codebook.init_age(config.model.codebook_size),
            discriminator=self._adversary.init() if self._adversary else None,
            lpips=self._no_lpips(images) if self._lpips else None,
        )

    def _no_lpips(self, images) -> dict:
        """Zeros in the place of weights that are never drawn, only loaded."""
        variables = jax.eval_shape(self._lpips.init, jax.random.key(0), images, images)
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), variables["params"])

    def train_step(self, state: TokenizerState, batch: dict) -> tuple[TokenizerState, Any]:
        config, images = self._config, from_uint8(batch["image"])

        def forward(params):
            output = self._model.apply({"params": params}, images)
            terms = {
                "vq_loss": output.vq_loss,
                "commitment_loss": output.commitment_loss,
                "entropy_loss": output.entropy_loss,
            }
            aux = terms, output.codes, output.prequant
            return (output.reconstruction, sum(terms.values())), aux

        # Every other loss is one of the reconstruction: their gradients meet there, and a single
        # backward pass goes on from it.
        (reconstruction, _), backward, aux = jax.vjp(forward, state.params, has_aux=True)
        terms, codes, prequant = aux
        image_terms, image_grads = self._image_losses(state, images, reconstruction)
        terms |= image_terms
        discriminator, scalars = state.discriminator, {}
        if self._adversary and discriminator is not None:

            def last_kernel_grads(image_grads):
                # The compiler keeps only what the last kernel needs of this backward pass.
                return backward((image_grads, jnp.zeros(())))[0]["decoder"]["conv_out"]["kernel"]

            weight = self._adversary.weight(state.step)
            loss, adversarial_grads = jax.value_and_grad(self._adversary.loss, argnums=1)(
                discriminator, reconstruction
            )
            discriminator, scalars = self._adversary.update(
                discriminator, weight, images, reconstruction
            )
            if config.loss.adaptive_weight:
                scalars["adaptive_weight"] = losses.adaptive_weight(
                    last_kernel_grads(image_grads), last_kernel_grads(adversarial_grads)
                )
                weight *= scalars["adaptive_weight"]
            terms["adversarial_loss"] = weight * loss
            image_grads += weight * adversarial_grads

        (grads,) = backward((image_grads, jnp.ones(())))
        code_age = codebook.update_age(state.code_age, codes)
        step_metrics = self._train_metrics.single_from_model_output(
            loss=sum(terms.values()),
            grad_norm=optax.tree.norm(grads),
            codebook_usage=codebook.usage(code_age),
            code_counts=self._count(codes, jnp.ones(codes.shape[0])),
            **terms,
            **scalars,
        )
        state = apply_gradients(state, grads, self._optimizer, config.optimizer)
        if config.restart_codes:
            params, code_age = self._restart(
                state, code_age, prequant, (reconstruction - images) ** 2
            )
            state = state.replace(params=params)
        return state.replace(code_age=code_age, discriminator=discriminator), step_metrics

    def _restart(self, state: TokenizerState, age, prequant, errors) -> tuple[dict, jax.Array]:
        errors = jnp.mean(squares(errors, self._config.model.downsampling), axis=-1)
        latents = l2_normalize(prequant) if self._config.model.l2_normalize else prequant
        key = jax.random.fold_in(seeds.key(self._config.seed), state.step)
        quantizer = state.params["quantizer"]
        entries, age = codebook.restart(quantizer["codebook"], age, latents, errors, key)
        return state.params | {"quantizer": quantizer | {"codebook": entries}}, age

    def eval_step(self, params: dict, batch: dict) -> metrics.Collection:
        images = from_uint8(batch["image"])
        output = self._model.apply({"params": params}, images)
        kind = self._config.loss.reconstruction
        return EvalMetrics.single_from_model_output(
            loss=losses.reconstruction(kind, images, output.reconstruction),
            psnr=losses.psnr(images, output.reconstruction),
            code_counts=self._count(output.codes, batch["weight"]),
            mask=batch["weight"],
        )

    def warning(self, step: int, values: Mapping[str, Any]) -> str | None:
        side = self._config.data.image_size // self._config.model.downsampling
        codes_seen = step * self._config.batch_size * side**2
        return codebook.collapse_warning(step, codes_seen, float(values["codebook_usage"]))

    def _image_losses(self, state: TokenizerState, images, reconstruction) -> tuple[dict, Any]:
        """Terms that compare images with reconstructions; gradient of their sum at the latter."""
        config = self._config.loss

        def loss_of(reconstruction):
            distance = losses.reconstruction(config.reconstruction, images, reconstruction)
            terms = {"reconstruction_loss": jnp.mean(distance)}
            if self._lpips:
                pair = [_every(config.perceptual_every, x) for x in (images, reconstruction)]
                distance: Any = self._lpips.apply({"params": state.lpips}, *pair)
                terms["perceptual_loss"] = config.perceptual_weight * jnp.mean(distance)
            return sum(terms.values()), terms

        grads, terms = jax.grad(loss_of, has_aux=True)(reconstruction)
        return terms, grads

    def _count(self, codes, weight) -> jax.Array:
        return codebook.count(codes, self._config.model.codebook_size, weight)


def _every(n: int, images: jax.Array) -> jax.Array:
    """Every n-th image; the reshape keeps them on the devices that they are on."""
    return images.reshape(-1, n, *images.shape[1:])[:, 0]
