"""Grids of several sizes in one model: `LlamaConfig.grids` and `Llama.for_grid`."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from llamagen_jax.errors import InputError
from llamagen_jax.models.rope import rope_table
from llamagen_jax.sampling.generate import generate

GRIDS = ((4, 4), (3, 5), (5, 3))
CONFIG = dataclasses.replace(tiny.LLAMA_CONFIG, grids=GRIDS)
TEXT_CONFIG = dataclasses.replace(tiny.TEXT_CONFIG, grids=GRIDS)
CODES, LABELS = jnp.arange(15)[None].repeat(2, 0), jnp.array([1, 2])


def _logits(model, params, condition=LABELS):
    return np.asarray(model.apply({"params": params}, CODES, condition))


def test_sizes_begin_without_effect_and_then_tell_the_grids_apart():
    model, params = tiny.llama(CONFIG)
    plain, _ = tiny.llama(dataclasses.replace(tiny.LLAMA_CONFIG, grid_size=(3, 5)))
    wide, tall = (model.for_grid(grid) for grid in GRIDS[1:])
    embedding = dict(params["condition_embedding"])
    assert np.all(np.asarray(embedding.pop("sizes")) == 0)
    without = params | {"condition_embedding": embedding}
    np.testing.assert_array_equal(_logits(wide, params), _logits(plain, without))
    sized = tiny.with_sizes(params)
    assert not np.allclose(_logits(wide, sized), _logits(wide, params), atol=1e-3)
    # The first codes of both stand in the same places, so that the sizes alone tell them apart.
    assert not np.allclose(_logits(wide, sized)[:, :3], _logits(tall, sized)[:, :3], atol=1e-3)
    assert np.allclose(_logits(wide, params)[:, :3], _logits(tall, params)[:, :3], atol=1e-5)


@pytest.mark.parametrize("config", [CONFIG, TEXT_CONFIG])
def test_the_null_condition_keeps_the_size(config):
    model, params = tiny.llama(config)
    sized = {"params": tiny.with_sizes(params)}
    condition = LABELS if config is CONFIG else jnp.ones((2, 5, 16))
    drop = jnp.array([True, True])
    wide, tall = (
        model.for_grid(grid).apply(sized, condition, None, drop, method="embed_condition")
        for grid in GRIDS[1:]
    )
    assert np.all(np.asarray(wide[0]) == np.asarray(wide[1]))
    assert not np.allclose(wide, tall)


def test_a_grid_that_is_not_trained_is_refused_or_takes_the_positions_of_the_nearest():
    model, params = tiny.llama(CONFIG)
    with pytest.raises(InputError, match="a grid of 6x10 codes, but for 4x4, 3x5, 5x3"):
        model.for_grid((6, 10))
    larger = model.for_grid((6, 10), extrapolate=True)
    assert (larger.config.grid, larger.position_grid) == ((6, 10), (3, 5))
    assert model.for_grid((3, 5), extrapolate=True) == model.for_grid((3, 5))
    codes = jnp.zeros((1, 60), int)
    logits = larger.apply({"params": tiny.with_sizes(params)}, codes, LABELS[:1])
    assert logits.shape == (1, 60, 32)


def test_interpolated_positions_span_the_trained_grid():
    settings = {"base": 10000.0, "condition_length": 1, "condition_rope": "zero"}
    trained = rope_table((3, 5), 16, **settings)
    scaled = rope_table((6, 10), 16, **settings, position_grid=(3, 5))
    grid = np.asarray(scaled[1:]).reshape(6, 10, 8, 2)[::2, ::2]
    np.testing.assert_array_equal(grid.reshape(15, 8, 2), trained[1:])
    np.testing.assert_array_equal(rope_table((3, 5), 16, **settings, position_grid=(3, 5)), trained)


@pytest.mark.parametrize("grid", [(5, 3), (6, 10)])
def test_every_decoder_draws_the_same_on_every_grid(grid):
    model, params = tiny.llama(CONFIG)
    model, params = model.for_grid(grid, extrapolate=True), tiny.with_sizes(params)
    plain, jacobi = (
        generate(model, params, LABELS, seed=1, guidance_scale=2.0, top_k=9, decoder=decoder)
        for decoder in ("plain", "jacobi")
    )
    assert plain.shape == (2, grid[0] * grid[1])
    np.testing.assert_array_equal(plain, jacobi)


@pytest.mark.parametrize(
    ("grids", "message"),
    [(((4, 4), (4, 4)), "must be different"), (((4, 0),), "pairs of"), ((4, 4), "pairs of")],
)
def test_impossible_grids_are_told(grids, message):
    with pytest.raises(ValueError, match=f"grids.*{message}"):
        dataclasses.replace(tiny.LLAMA_CONFIG, grids=grids)


def test_grids_are_equal_however_they_are_spelled():
    lists = dataclasses.replace(CONFIG, grids=[list(grid) for grid in GRIDS])
    assert lists == CONFIG
    assert hash(lists) == hash(CONFIG)
