"""Control images: nothing at step 0, the right place later, and the same in every layout."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from llamagen_jax.errors import InputError
from llamagen_jax.models.llama import Llama
from llamagen_jax.sampling.generate import generate

CONFIG = tiny.CONTROL_CONFIG
TEXT = jax.random.normal(jax.random.key(3), (2, 5, 16))
LABELS = jnp.array([3, 7])
CODES = jax.random.randint(jax.random.key(1), (2, 16), 0, 32)


def control_images(config, count=2):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, *config.control_size, 3), np.uint8)


def test_new_control_changes_no_logit():
    config = dataclasses.replace(CONFIG, grid_size=(2, 8))
    params = jax.jit(Llama(config).init)(jax.random.key(0), CODES, LABELS)["params"]
    params["output"] = jax.random.normal(jax.random.key(0), params["output"].shape)
    base = Llama(dataclasses.replace(config, control_layers=0))
    without = {name: tree for name, tree in params.items() if not name.startswith("control")}
    expected = jax.jit(base.apply)({"params": without}, CODES, LABELS)
    apply = jax.jit(Llama(config).apply)
    for control in (None, control_images(config)):
        logits = apply({"params": params}, CODES, LABELS, control=control)
        np.testing.assert_array_equal(logits, expected)


def test_every_layout_reads_the_control_alike():
    model, params = tiny.llama(CONFIG)
    control = control_images(CONFIG)

    def logits(model, params):
        return jax.jit(model.apply)({"params": params}, CODES, LABELS, control=control)

    expected = logits(model, params)
    assert not np.allclose(expected, model.apply({"params": params}, CODES, LABELS), atol=1e-2)
    for other in ((model.clone(remat="full"), params), model.for_decoding(params)):
        np.testing.assert_allclose(logits(*other), expected, atol=1e-4)
    rough = logits(*model.for_decoding(params, "int8"))
    assert np.corrcoef(np.ravel(rough), np.ravel(expected))[0, 1] > 0.99


@pytest.mark.parametrize(
    ("config", "scan_layers"), [(CONFIG, True), (tiny.TEXT_CONTROL_CONFIG, False)]
)
def test_cached_decoding_equals_teacher_forcing(config, scan_layers):
    model, params = tiny.llama(config)
    control = control_images(config)
    condition = TEXT if config.condition == "text" else LABELS
    expected = jax.jit(model.apply)({"params": params}, CODES, condition, control=control)
    if not scan_layers:
        model, params = model.for_decoding(params)
    apply = functools.partial(model.apply, {"params": params})
    T = config.condition_length
    added = apply(control, method="embed_control")
    x = apply(condition, method="embed_condition")
    extend = jax.jit(functools.partial(apply, method="extend"))
    logits, cache = extend(x, jnp.arange(T)[None], None, model.init_cache(2), added)
    np.testing.assert_allclose(logits, expected[:, 0], atol=1e-4)
    # Rows at places of their own.
    x = apply(CODES[:, :-1], method="embed_codes")
    transform = jax.jit(functools.partial(apply, method="transform"))
    _, cache = transform(x, jnp.arange(T, T + 15)[None], None, cache, control=added)
    places = jnp.array([[3, 9], [12, 5]])
    rows = jnp.take_along_axis(x, places[..., None] - 1, axis=1)
    rows, _ = transform(rows, T + places - 1, None, cache, control=added)
    logits = apply(rows, method="logits")
    wanted = jnp.take_along_axis(expected, places[..., None], axis=1)
    np.testing.assert_allclose(logits, wanted, atol=1e-4)


def test_a_patch_is_added_where_its_code_is_predicted():
    """Without attention among patches, each changes what is added for its own code alone."""
    config = dataclasses.replace(tiny.TEXT_CONTROL_CONFIG, grid_size=(2, 8))
    model, params = tiny.llama(config)
    for name in ("layer_0", "layer_1"):
        params["control_encoder"][name]["out"]["kernel"] *= 0
    control = control_images(config, 1)
    changed = control.copy()
    changed[:, 4:8, 8:12] ^= 255  # the second row of codes, the third column
    embed = functools.partial(model.apply, {"params": params}, method="embed_control")
    moved = np.abs(embed(changed) - embed(control)).sum((0, 1, 3))
    # Code 10 is predicted at position T - 1 + 10.
    assert np.flatnonzero(moved > 1e-6).tolist() == [config.condition_length - 1 + 10]
    np.testing.assert_allclose(embed(control, 0.5), embed(control) / 2, atol=1e-6)


def test_training_drops_controls_whether_or_not_the_class_is():
    still = {"token_dropout": 0.0, "residual_dropout": 0.0, "ffn_dropout": 0.0}
    config = dataclasses.replace(CONFIG, condition_dropout=0.5, control_dropout=0.25, **still)
    model, params = tiny.llama(config)
    count = 600
    codes, labels = jnp.tile(CODES[:1], (count, 1)), jnp.full(count, 4)
    control = np.repeat(control_images(config, 1), count, axis=0)
    apply = jax.jit(functools.partial(model.apply, {"params": params}), static_argnames="train")
    rngs = {"dropout": jax.random.key(0)}
    trained = apply(codes, labels, control=control, train=True, rngs=rngs)[:, 0]
    shares = {}
    for label in (4, config.num_classes):
        for given in (control[:1], None):
            logits = apply(codes[:1], jnp.array([label]), control=given)[0, 0]
            shares[label, given is None] = np.isclose(trained, logits, atol=1e-4).all(-1).mean()
    np.testing.assert_allclose(list(shares.values()), [0.375, 0.125, 0.375, 0.125], atol=0.06)


@pytest.mark.parametrize("grid", [(2, 4), (6, 3)])
def test_a_model_of_several_grids_takes_control_on_each(grid):
    """Trained for the first; the second takes positions of another."""
    several = dataclasses.replace(CONFIG, grids=((4, 4), (2, 4), (4, 2)))
    model, params = tiny.llama(several)
    model, params = model.for_grid(grid, extrapolate=True), tiny.with_sizes(params)
    draw = functools.partial(generate, model, params, LABELS, seed=1, guidance_scale=2.0)
    control = control_images(model.config)
    assert control.shape == (2, 4 * grid[0], 4 * grid[1], 3)
    plain = draw(control=control, decoder="plain")
    np.testing.assert_array_equal(plain, draw(control=control, decoder="jacobi"))
    assert not np.array_equal(plain, draw(control=255 - control))
    with pytest.raises(InputError, match=r"do not fit the generator"):
        draw(control=control_images(several))


def test_bad_control_is_refused_in_one_line():
    model, params = tiny.llama()
    control = control_images(CONFIG)
    with pytest.raises(InputError, match="trained without control images"):
        model.apply({"params": params}, CODES, LABELS, control=control)
    model, params = tiny.llama(CONFIG)
    with pytest.raises(InputError, match=r"\[2, 8, 16, 3\] do not fit.*\[B, 16, 16, 3\]"):
        model.apply({"params": params}, CODES, LABELS, control=control[:, :8])


@pytest.mark.parametrize(
    "change", [{"control_layers": -1}, {"control_dim": 32}, {"control_patch": 0}]
)
def test_impossible_configs_name_the_field(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(CONFIG, **change)
