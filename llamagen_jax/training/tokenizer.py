"""Training steps of the VQGAN on images (paper section 2.1)."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import metrics

from llamagen_jax import flops, losses, sharding
from llamagen_jax.images import from_uint8
from llamagen_jax.models.vqgan import VQGAN
from llamagen_jax.training.config import TokenizerTraining
from llamagen_jax.training.optimizer import TrainState, adamw, apply_gradients, init_state
from llamagen_jax.training.task import Task

_PREVIEW_IMAGES = 16


@flax.struct.dataclass
class CodebookUsage(metrics.Metric):
    """Share of the codebook that occurs in all codes merged so far, over every device.

    Attributes:
      used: bool [K].
    """

    used: jax.Array

    @classmethod
    def from_model_output(cls, used: jax.Array, **_) -> "CodebookUsage":
        return cls(used)

    def merge(self, other: "CodebookUsage") -> "CodebookUsage":
        return CodebookUsage(self.used | other.used)

    def compute(self) -> jax.Array:
        return jnp.mean(self.used)


@flax.struct.dataclass
class TrainMetrics(metrics.Collection):
    """Means over the steps since the last log, and the codebook usage in them."""

    loss: metrics.Average.from_output("loss")
    reconstruction_loss: metrics.Average.from_output("reconstruction_loss")
    vq_loss: metrics.Average.from_output("vq_loss")
    commitment_loss: metrics.Average.from_output("commitment_loss")
    entropy_loss: metrics.Average.from_output("entropy_loss")
    grad_norm: metrics.Average.from_output("grad_norm")
    codebook_usage: CodebookUsage


@flax.struct.dataclass
class EvalMetrics(metrics.Collection):
    """Over the held-out set: reconstruction loss and PSNR in dB (means), codebook usage."""

    loss: metrics.Average.from_output("loss")
    psnr: metrics.Average.from_output("psnr")
    codebook_usage: CodebookUsage


def make_task(config: TokenizerTraining) -> Task:
    """The VQGAN's side of the training loop."""
    model = VQGAN(config.model)
    optimizer = adamw(config.optimizer, config.steps)

    def used(codes, weight):
        counts = jnp.zeros(config.model.codebook_size).at[codes].add(weight[:, None, None])
        return counts > 0

    def init() -> TrainState:
        images = jnp.zeros((1, config.data.image_size, config.data.image_size, 3))
        variables = model.init(jax.random.key(config.seed), images)
        return init_state(variables["params"], optimizer, config.optimizer)

    def train_step(state: TrainState, batch: dict) -> tuple[TrainState, TrainMetrics]:
        images = from_uint8(batch["image"])

        def loss_of(params):
            output = model.apply({"params": params}, images)
            distance = losses.reconstruction(
                config.loss.reconstruction, images, output.reconstruction
            )
            terms = {
                "reconstruction_loss": jnp.mean(distance),
                "vq_loss": output.vq_loss,
                "commitment_loss": output.commitment_loss,
                "entropy_loss": output.entropy_loss,
            }
            return sum(terms.values()), (terms, output.codes)

        (loss, (terms, codes)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        train_metrics = TrainMetrics.single_from_model_output(
            loss=loss,
            grad_norm=optax.tree.norm(grads),
            used=used(codes, jnp.ones(codes.shape[0])),
            **terms,
        )
        return apply_gradients(state, grads, optimizer, config.optimizer), train_metrics

    def eval_step(params: dict, batch: dict) -> EvalMetrics:
        images = from_uint8(batch["image"])
        output = model.apply({"params": params}, images)
        return EvalMetrics.single_from_model_output(
            loss=losses.reconstruction(config.loss.reconstruction, images, output.reconstruction),
            psnr=losses.psnr(images, output.reconstruction),
            used=used(output.codes, batch["weight"]),
            mask=batch["weight"],
        )

    def preview(params: dict, batch: dict) -> np.ndarray:
        images = from_uint8(sharding.fetch(batch["image"])[:_PREVIEW_IMAGES])
        output = jax.jit(model.apply)({"params": params}, images)
        return np.stack([images, sharding.fetch(output.reconstruction)])

    size = config.data.image_size
    example = {"image": jax.ShapeDtypeStruct((size, size, 3), jnp.uint8)}
    batch = {"image": jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8)}
    return Task(
        init,
        train_step,
        eval_step,
        preview,
        example,
        codes_per_example=(size // config.model.downsampling) ** 2,
        flops_per_example=flops.count(train_step, jax.eval_shape(init), batch),
    )
