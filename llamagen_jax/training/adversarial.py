"""The discriminator's side of a tokenizer's training step."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from llamagen_jax import losses, seeds
from llamagen_jax.models import discriminator
from llamagen_jax.training.config import TokenizerTraining
from llamagen_jax.training.optimizer import adamw


class DiscriminatorState(flax.struct.PyTreeNode):
    """What its update reads and writes.

    Attributes:
      params: float32.
      batch_stats: running statistics of batch normalisation, {} where there is none. Training
        normalises by the batch, so they matter only to who uses the discriminator afterwards.
      opt_state: of an optimiser that counts the discriminator's own steps.
    """

    params: Any
    batch_stats: Any
    opt_state: Any


class Adversary:
    """Discriminator, its losses and its optimiser.

    It starts at step `loss.adversarial_start`: until then its parameters stay as they were made and
    its weight in the tokenizer's loss is 0. Its optimiser is the tokenizer's, but its learning
    rate's warm-up and decay begin when it starts, so that a discriminator that joins late, or is
    fresh beside a trained tokenizer, is warmed up too.
    """

    def __init__(self, config: TokenizerTraining):
        assert config.discriminator
        self._config = config
        self._module = discriminator.build(config.discriminator)
        steps = max(config.steps - config.loss.adversarial_start, 1)
        self._optimizer = adamw(config.optimizer, steps)

    def init(self) -> DiscriminatorState:
        """The state before the first step."""
        size = self._config.data.image_size
        key = jax.random.fold_in(seeds.key(self._config.seed), 1)
        variables = self._module.init(key, jnp.zeros((1, size, size, 3)), train=True)
        params = variables["params"]
        return DiscriminatorState(
            params, variables.get("batch_stats", {}), self._optimizer.init(params)
        )

    def weight(self, step: jax.Array) -> jax.Array:
        """Weight of both sides' adversarial losses at the step numbered `step` from 0."""
        # The original numbers steps from 1.
        started = step + 1 >= self._config.loss.adversarial_start
        return jnp.where(started, self._config.loss.adversarial_weight, 0.0)

    def loss(self, state: DiscriminatorState, reconstruction: jax.Array) -> jax.Array:
        """The tokenizer's adversarial loss, a scalar before any weight."""
        fake, _ = self._logits(state.params, state.batch_stats, reconstruction)
        return losses.adversarial(self._config.loss.adversarial, fake)

    def update(
        self,
        state: DiscriminatorState,
        weight: jax.Array,
        images: jax.Array,
        reconstruction: jax.Array,
    ) -> tuple[DiscriminatorState, dict[str, jax.Array]]:
        """One step of the discriminator.

        Args:
          weight: of `weight`; the loss is multiplied by it as in the original, and 0 leaves the
            state alone.
          images, reconstruction: float [B, H, W, 3]; the reconstruction is the one made before the
            tokenizer's own update of this step, as in the original.

        Returns:
          The new state, and scalars to log.
        """

        def loss_of(params):
            # Separate batches, so that each is normalised by statistics of its own.
            real, stats = self._logits(params, state.batch_stats, images)
            fake, stats = self._logits(params, stats, reconstruction)
            loss = weight * losses.discriminator(self._config.loss.adversarial, real, fake)
            return loss, (stats, real, fake)

        (loss, (stats, real, fake)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, opt_state = self._optimizer.update(grads, state.opt_state, state.params)
        after = DiscriminatorState(optax.apply_updates(state.params, updates), stats, opt_state)
        state = jax.tree.map(lambda new, old: jnp.where(weight > 0, new, old), after, state)
        return state, {
            "discriminator_loss": loss,
            "discriminator_grad_norm": optax.tree.norm(grads),
            "logits_real": jnp.mean(real),
            "logits_fake": jnp.mean(fake),
        }

    def _logits(self, params, batch_stats, images):
        variables = {"params": params, "batch_stats": batch_stats}
        logits, updated = self._module.apply(variables, images, train=True, mutable=["batch_stats"])
        return logits, updated.get("batch_stats", {})
