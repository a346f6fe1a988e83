"""Seeds and sample ids as random keys: 64 bits each, where JAX's arrays hold 32."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llamagen_jax.errors import InputError

_MOST = 2**64 - 1


def check(number: Any, what: str) -> None:
    """Raises InputError for anything but a whole number from 0 to 2^64 - 1, calling it `what`."""
    whole = isinstance(number, int | np.integer) and not isinstance(number, bool)
    if not whole or not 0 <= number <= _MOST:
        raise InputError(f"{what}={number} must be a whole number from 0 to 2^64 - 1")


def key(seed: int) -> jax.Array:
    """The random key of a seed, another for each.

    Up to 2^32 - 1 it is that of `jax.random.key`, which drops the upper half of greater ones.

    Raises:
      InputError: of `check`.
    """
    check(seed, "seed")
    low, high = _halves([seed])[0]
    random_key = jax.random.key(low)
    return jax.random.fold_in(random_key, high) if high else random_key


def halves(sample_ids: Sequence[int] | np.ndarray | jax.Array) -> Any:
    """Sample ids [B] as uint32 [B, 2], low half and high half, which devices can hold.

    Args:
      sample_ids: from 0 to 2^64 - 1; jax arrays are taken as they are, modulo 2^32. What this
        returned once is given back.

    Raises:
      InputError: of `check`.
    """
    if isinstance(sample_ids, jax.Array | np.ndarray) and sample_ids.ndim == 2:
        return sample_ids
    if isinstance(sample_ids, jax.Array):
        low = sample_ids.astype(jnp.uint32)
        return jnp.stack([low, jnp.zeros_like(low)], axis=1)
    for sample_id in sample_ids:
        check(sample_id, "sample id")
    return _halves(sample_ids)


def fold_in(random_key: jax.Array, half: jax.Array) -> jax.Array:
    """`jax.random.fold_in` of a number of 64 bits, by its `halves` [2]; can be vmapped."""
    low = jax.random.fold_in(random_key, half[0])
    return jnp.where(half[1] == 0, low, jax.random.fold_in(low, half[1]))


def _halves(numbers: Sequence[int] | np.ndarray) -> np.ndarray:
    # One by one: numpy makes float64 of a list with numbers on both sides of 2^63.
    return np.array([divmod(int(number), 2**32)[::-1] for number in numbers], np.uint32)
