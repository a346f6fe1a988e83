"""Losses and scores: arrays in, scalars or one value per example out, always float32."""

import jax
import jax.numpy as jnp


def cross_entropy(logits: jax.Array, codes: jax.Array) -> jax.Array:
    """Mean negative log-likelihood per example: logits [B, L, V], codes int [B, L] -> [B], nats."""
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.mean(jnp.take_along_axis(log_probs, codes[..., None], axis=-1), axis=(1, 2))


def reconstruction(kind: str, images: jax.Array, reconstructions: jax.Array) -> jax.Array:
    """Mean "l1" or "l2" (squared) distance per image: [B, H, W, C] twice -> [B]."""
    difference = images.astype(jnp.float32) - reconstructions.astype(jnp.float32)
    distance = {"l1": jnp.abs, "l2": jnp.square}[kind]
    return jnp.mean(distance(difference), axis=(1, 2, 3))


def psnr(images: jax.Array, reconstructions: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio in dB per image of [B, H, W, C] in [-1, 1] (clipped) -> [B]."""
    error = reconstruction("l2", images, jnp.clip(reconstructions, -1, 1))
    return 10 * jnp.log10(4 / jnp.maximum(error, 1e-10))
