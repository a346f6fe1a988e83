"""Codebook usage, perplexity and the alarm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llamagen_jax.training import codebook
from llamagen_jax.training.codebook import WINDOW


@pytest.mark.parametrize("batch", [(3, 7, 5), (2, 64, 64), (5, 128, 128)])
def test_usage_is_that_of_the_last_codes_at_any_batch_size(batch):
    """Against a plain queue; the last batch alone is larger than the window."""
    rng = np.random.default_rng(0)
    size, age, queue = 400_000, codebook.init_age(400_000), np.zeros(0, int)
    update = jax.jit(codebook.update_age)
    for _ in range(12):
        codes = rng.integers(0, size, batch)
        age = update(age, codes)
        queue = np.concatenate([queue, codes.ravel()])[-WINDOW:]
        expected = len(np.unique(queue)) / size
        np.testing.assert_allclose(codebook.usage(age), expected, rtol=1e-6)


def test_codes_that_were_never_used_do_not_count():
    age = codebook.init_age(4)
    assert codebook.usage(age) == 0
    age = codebook.update_age(age, jnp.array([[[2, 2]]]))
    assert codebook.usage(age) == 0.25
    np.testing.assert_array_equal(age, [WINDOW, WINDOW, 0, WINDOW])


def test_perplexity_and_usage_over_merged_batches():
    first = codebook.count(jnp.array([[[0, 1]], [[3, 3]]]), 4, jnp.array([1.0, 0.0]))
    second = codebook.count(jnp.array([[[2, 2]]]), 4, jnp.ones(1))
    np.testing.assert_array_equal(first, [1, 1, 0, 0])
    merged = codebook.Perplexity(first).merge(codebook.Perplexity(second))
    np.testing.assert_allclose(merged.compute(), np.exp(1.5 * np.log(2)), rtol=1e-6)
    np.testing.assert_allclose(codebook.Perplexity(jnp.ones(7)).compute(), 7, rtol=1e-6)
    assert codebook.Usage(first).merge(codebook.Usage(second)).compute() == 0.75


def test_collapse_is_told_once_the_window_is_full():
    told = codebook.collapse_warning(7, WINDOW, 0.05)
    assert "step 7 use 5.0%" in told
    assert "model.entropy_weight" in told
    assert codebook.collapse_warning(7, WINDOW - 1, 0.05) is None
    assert codebook.collapse_warning(7, WINDOW, 0.1) is None
