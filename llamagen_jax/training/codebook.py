"""How much of a tokenizer's codebook is used: figures, and the alarm when it collapses.

Axes: B batch, h w code grid, K codebook entries.
"""

import flax.struct
import jax
import jax.numpy as jnp
from clu import metrics

# Codes over which usage is reported while training, as in the original. There the queue is per GPU,
# counts its initial zeros as codes and cannot take a larger batch; here it is global and exact.
WINDOW = 65536
ALARM_USAGE = 0.1
RESTARTS = 16  # entries at most that a step moves


def init_age(codebook_size: int) -> jax.Array:
    """Ages, int32 [K], of entries that were never used."""
    return jnp.full(codebook_size, WINDOW, jnp.int32)


def update_age(age: jax.Array, codes: jax.Array) -> jax.Array:
    """Ages after the codes of one more step.

    Args:
      age: int32 [K], how many codes came after each entry's last use; `WINDOW` for that many or
        more, and for never.
      codes: int [B, h, w], of the batch over all devices, at most 2**31 - `WINDOW` of them.
    """
    codes = codes.reshape(-1)
    position = jnp.arange(codes.size, dtype=jnp.int32)
    last_use = jnp.full_like(age, -1).at[codes].max(position)
    age = jnp.where(last_use >= 0, codes.size - 1 - last_use, age + codes.size)
    return jnp.minimum(age, WINDOW)


def usage(age: jax.Array) -> jax.Array:
    """Share of the codebook among the last `WINDOW` codes, or among all when they were fewer."""
    return jnp.mean(age < WINDOW)


def restart(
    entries: jax.Array, age: jax.Array, latents: jax.Array, errors: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Moves entries that no code has named for `WINDOW` codes to where images are told worst.

    A few at a time go to latents of the batch that are drawn without replacement in proportion to
    the error of their pixels. Random restarts are Jukebox's (Dhariwal et al. 2020, section 3.1); it
    draws evenly, which gives flat areas most of the codebook, and codes that differ in nothing are
    what a generator cannot predict.

    Args:
      entries: float32 [K, E].
      age: of `update_age`, after this batch.
      latents: float32 [B, h, w, E], as they are compared with entries.
      errors: float32 [B, h, w], at least 0, of the pixels that a latent stands for.

    Returns:
      The entries, and ages that are 0 for those that were moved.
    """
    latents, errors = latents.reshape(-1, latents.shape[-1]), errors.reshape(-1)
    most = min(RESTARTS, errors.size)
    number = jnp.cumsum(age >= WINDOW) - 1
    moved = (age >= WINDOW) & (number < most)
    # The largest of log-weights with Gumbel noise are such a draw.
    _, drawn = jax.lax.top_k(jnp.log(errors) + jax.random.gumbel(key, errors.shape), most)
    entries = jnp.where(moved[:, None], latents[drawn[number % most]], entries)
    return entries, jnp.where(moved, 0, age)


def collapse_warning(step: int, codes_seen: int, usage: float) -> str | None:
    """What to tell when less than a tenth of the codebook is used; None while all is well.

    Args:
      codes_seen: since the start of the run; nothing is told before they fill the window.
      usage: of `usage`, in [0, 1].
    """
    if codes_seen < WINDOW or usage >= ALARM_USAGE:
        return None
    return (
        f"the codebook collapses: the last {WINDOW} codes at step {step} use {usage:.1%} of it; "
        "try a positive model.entropy_weight (0.02 to 0.1), a longer optimizer.warmup_steps, "
        "a lower optimizer.learning_rate or a smaller model.codebook_size"
    )


@flax.struct.dataclass
class CodeCounts(metrics.Metric):
    """How often each entry occurs in all codes merged so far, over every device: float32 [K]."""

    counts: jax.Array

    @classmethod
    def from_model_output(cls, code_counts: jax.Array, **_) -> "CodeCounts":
        return cls(code_counts)

    def merge(self, other: "CodeCounts") -> "CodeCounts":
        return type(self)(self.counts + other.counts)


@flax.struct.dataclass
class Usage(CodeCounts):
    """Share of the codebook that occurs at all."""

    def compute(self) -> jax.Array:
        return jnp.mean(self.counts > 0)


@flax.struct.dataclass
class Perplexity(CodeCounts):
    """Exponential of the entropy of the codes' frequencies: 1 for a single code, K for uniform."""

    def compute(self) -> jax.Array:
        frequencies = self.counts / jnp.sum(self.counts)
        return jnp.exp(jnp.sum(jax.scipy.special.entr(frequencies)))


def count(codes: jax.Array, codebook_size: int, weight: jax.Array) -> jax.Array:
    """Occurrences, float32 [K], of codes int [B, h, w], each example's times its weight [B]."""
    return jnp.zeros(codebook_size).at[codes].add(weight[:, None, None])
