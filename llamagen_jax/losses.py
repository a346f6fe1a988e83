"""Losses and scores: arrays in, scalars or one value per example out, always float32."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

# Losses take arrays of either kind.
AnyArray = jax.Array | np.ndarray

ADVERSARIAL = ("hinge", "vanilla", "non-saturating")


def cross_entropy(
    logits: Float[AnyArray, "B L V"], codes: Integer[AnyArray, "B L"]
) -> Float[Array, " B"]:
    """Mean negative log-likelihood per example: logits [B, L, V], codes int [B, L] -> [B], nats."""
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.mean(jnp.take_along_axis(log_probs, codes[..., None], axis=-1), axis=(1, 2))


def reconstruction(
    kind: str, images: Float[AnyArray, "B H W C"], reconstructions: Float[AnyArray, "B H W C"]
) -> Float[Array, " B"]:
    """Mean "l1" or "l2" (squared) distance per image: [B, H, W, C] twice -> [B]."""
    difference = images.astype(jnp.float32) - reconstructions.astype(jnp.float32)
    distance = {"l1": jnp.abs, "l2": jnp.square}[kind]
    return jnp.mean(distance(difference), axis=(1, 2, 3))


def discriminator(
    kind: str, real: Float[AnyArray, "..."], fake: Float[AnyArray, "..."]
) -> Float[Array, ""]:
    """Loss of a discriminator, a scalar, from its logits (any shape) of real and of fake images.

    Args:
      kind: "hinge"; "vanilla" or "non-saturating", which are both the cross-entropy (the original's
        non-saturating losses have target and logit swapped; here they are in the right order).
    """
    real, fake = real.astype(jnp.float32), fake.astype(jnp.float32)
    penalty = jax.nn.relu if kind == "hinge" else jax.nn.softplus
    margin = 1.0 if kind == "hinge" else 0.0
    return 0.5 * (jnp.mean(penalty(margin - real)) + jnp.mean(penalty(margin + fake)))


def adversarial(kind: str, fake: Float[AnyArray, "..."]) -> Float[Array, ""]:
    """The generator's part against `discriminator`, a scalar, from logits of its images.

    Minus their mean for "hinge" and "vanilla", as in the original and in VQGAN; the cross-entropy
    for "non-saturating".
    """
    fake = fake.astype(jnp.float32)
    return jnp.mean(jax.nn.softplus(-fake)) if kind == "non-saturating" else -jnp.mean(fake)


def adaptive_weight(
    other_grads: Float[AnyArray, "*kernel"], adversarial_grads: Float[AnyArray, "*kernel"]
) -> Float[Array, ""]:
    """Weight in [0, 1e4] that makes the adversarial gradients as large as those of other losses.

    Args:
      other_grads, adversarial_grads: gradients at the decoder's last kernel (VQGAN, arXiv
        2012.09841, equation 7).
    """
    ratio = jnp.linalg.norm(other_grads.ravel()) / (
        jnp.linalg.norm(adversarial_grads.ravel()) + 1e-4
    )
    return jnp.clip(ratio, 0, 1e4)


def psnr(
    images: Float[AnyArray, "B H W C"], reconstructions: Float[AnyArray, "B H W C"]
) -> Float[Array, " B"]:
    """Peak signal-to-noise ratio in dB per image of [B, H, W, C] in [-1, 1] (clipped) -> [B]."""
    error = reconstruction("l2", images, jnp.clip(reconstructions, -1, 1))
    return 10 * jnp.log10(4 / jnp.maximum(error, 1e-10))
