"""Codebook usage, perplexity and the alarm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from llamagen_jax.images import from_uint8
from llamagen_jax.models.vqgan import VQGAN
from llamagen_jax.training import codebook, tokenizer
from llamagen_jax.training.codebook import WINDOW
from llamagen_jax.training.config import from_mapping


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


def test_unused_entries_go_where_images_are_told_worst():
    """A few at a time, and to other places than those that are told well; used ones stay."""
    entries, latents = jnp.zeros((100, 2)), jnp.arange(200.0).reshape(1, 10, 10, 2)
    age = jnp.full(100, WINDOW).at[:10].set(5)
    errors = jnp.ones((1, 10, 10)).at[:, :5].set(0)
    moved, new_age = jax.jit(codebook.restart)(entries, age, latents, errors, jax.random.key(0))
    changed = np.any(moved != 0, axis=-1)
    np.testing.assert_array_equal(changed, (np.arange(100) >= 10) & (np.arange(100) < 26))
    np.testing.assert_array_equal(new_age, np.where(changed, 0, age))
    taken = np.asarray(moved[changed])
    assert len(np.unique(taken, axis=0)) == codebook.RESTARTS
    assert np.isin(taken[:, 0], np.asarray(latents)[0, 5:, :, 0]).all()


def test_a_small_batch_restarts_no_more_codes_than_it_has():
    latents, age = jnp.ones((1, 2, 2, 3)), jnp.full(100, WINDOW)
    _, age = codebook.restart(
        jnp.zeros((100, 3)), age, latents, jnp.ones((1, 2, 2)), jax.random.key(0)
    )
    assert np.sum(age == 0) == 4


def test_training_restarts_unused_codes_where_it_is_told_to():
    """By more than the optimiser's step, and to places that latents of the batch have."""
    images = jax.random.bits(jax.random.key(1), (8, 16, 16, 3), jnp.uint8)
    plain = {"discriminator": None, "loss__adversarial_weight": 0.0}
    for restart_codes in (True, False):
        config = from_mapping(tiny.tokenizer_config(restart_codes=restart_codes, **plain))
        task = tokenizer.make_task(config)
        before = jax.jit(task.init)()
        after, _ = jax.jit(task.train_step)(before, {"image": images})
        entries = [state.params["quantizer"]["codebook"] for state in (before, after)]
        moved = np.abs(entries[1] - entries[0]).max(-1) > 10 * config.optimizer.learning_rate
        unused = codebook.update_age(before.code_age, codes_of(before, images, config)) == WINDOW
        expected = unused & (np.cumsum(unused) <= codebook.RESTARTS) & restart_codes
        np.testing.assert_array_equal(moved, expected)


def codes_of(state, images, config):
    """The codes that a step sees."""
    model = VQGAN(config.model)
    return model.apply({"params": state.params}, from_uint8(images), method="encode")
