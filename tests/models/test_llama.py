import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from llamagen_jax.models.llama import Llama, unstack_layers
from llamagen_jax.models.rope import rope_table

TEXT = jax.random.normal(jax.random.key(3), (2, 5, 16))
MASK = jnp.array([[False, False, True, True, True], [True] * 5])
CASES = {
    "class": (tiny.LLAMA_CONFIG, jnp.array([3, 7]), None),
    "text": (tiny.TEXT_CONFIG, TEXT, MASK),
}


def _codes(batch=2):
    return jax.random.randint(jax.random.key(1), (batch, 16), 0, 32)


@pytest.mark.parametrize("case", CASES)
def test_logits_depend_on_earlier_codes_only(case):
    config, condition, mask = CASES[case]
    model, params = tiny.llama(config)
    embeddings = params["codes_embedding"]["embedding"]
    codes = jnp.tile(jnp.arange(16), (2, 1))  # every position reads a row of its own

    @jax.jit
    def logits(table):
        changed = params | {"codes_embedding": {"embedding": table}}
        return model.apply({"params": changed}, codes, condition, mask)[:, :, 0].sum(0)

    gradient = jax.jacobian(logits)(embeddings)  # [L, V, D]
    influence = np.abs(gradient).sum(-1)[:, :16]  # logits at i on the code at j
    assert np.all(influence[np.triu_indices(16)] == 0)
    assert np.all(influence[np.tril_indices(16, -1)] > 0)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("scan_layers", [True, False])
def test_cached_decoding_equals_teacher_forcing(case, scan_layers):
    config, condition, mask = CASES[case]
    model, params = tiny.llama(config)
    codes = _codes()
    expected = model.apply({"params": params}, codes, condition, mask)

    if not scan_layers:
        model, params = model.for_decoding(params)
    variables = {"params": params}
    extend = jax.jit(functools.partial(model.apply, method="extend"))
    T = config.condition_length
    x = model.apply(variables, condition, mask, method="embed_condition")
    logits, cache = extend(variables, x, jnp.arange(T)[None], mask, model.init_cache(2))
    np.testing.assert_allclose(logits, expected[:, 0], atol=1e-4)
    for i in range(1, 16):
        x = model.apply(variables, codes[:, i - 1 : i], method="embed_codes")
        logits, cache = extend(variables, x, jnp.array([[T + i - 1]]), mask, cache)
        np.testing.assert_allclose(logits, expected[:, i], atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_rows_fill_the_cache_at_their_own_pace(case):
    """Each call moves one row three codes on and the other one."""
    config, condition, mask = CASES[case]
    model, params = tiny.llama(config)
    codes, variables, T = _codes(), {"params": params}, config.condition_length
    expected = model.apply(variables, codes, condition, mask)
    x = model.apply(variables, condition, mask, method="embed_condition")
    cache = model.init_cache(2)
    _, cache = model.apply(variables, x, jnp.arange(T)[None], mask, cache, method="extend")
    embedded = model.apply(variables, codes, method="embed_codes")
    transform = jax.jit(functools.partial(model.apply, method="transform"))
    for step in range(4):
        fast = 3 * step + jnp.arange(3)
        # The slow row repeats its newest code, which fills the same place with the same values.
        slow = jnp.full(3, step)
        places = jnp.stack([fast, slow])
        rows = jnp.take_along_axis(embedded, places[..., None], axis=1)
        x, cache = transform(variables, rows, T + places, mask, cache)
        logits = model.apply(variables, x, method="logits")
        np.testing.assert_allclose(logits[0], expected[0, fast + 1], atol=1e-4)
        np.testing.assert_allclose(logits[1], expected[1, slow + 1], atol=1e-4)


def test_grids_need_not_be_square():
    square = tiny.LLAMA_CONFIG
    assert dataclasses.replace(square, grid_size=(4, 4)) == square
    wide = dataclasses.replace(square, grid_size=(2, 8))
    assert (wide.grid, wide.code_length) == ((2, 8), square.code_length)
    _, params = tiny.llama(square)
    codes, labels = _codes(), jnp.array([1, 2])
    logits = [Llama(c).apply({"params": params}, codes, labels) for c in (square, wide)]
    assert logits[0].shape == logits[1].shape
    # The first four codes stand in the first row of both.
    np.testing.assert_allclose(logits[0][:, :5], logits[1][:, :5], atol=1e-5)
    assert not np.allclose(logits[0][:, 6:], logits[1][:, 6:], atol=1e-3)


def test_scanned_and_unrolled_layers_agree():
    model, params = tiny.llama()
    unrolled = Llama(model.config, scan_layers=False)
    codes, labels = _codes(), jnp.array([1, 2])
    np.testing.assert_allclose(
        unrolled.apply({"params": unstack_layers(params)}, codes, labels),
        model.apply({"params": params}, codes, labels),
        atol=1e-5,
    )


def test_padding_of_the_condition_is_not_seen():
    model, params = tiny.llama(tiny.TEXT_CONFIG)
    other = TEXT.at[0, :2].set(100.0)
    first = model.apply({"params": params}, _codes(), TEXT, MASK)
    np.testing.assert_array_equal(first, model.apply({"params": params}, _codes(), other, MASK))
    assert not np.allclose(first, model.apply({"params": params}, _codes(), TEXT))


def test_training_drops_conditions_at_the_configured_rate():
    config = dataclasses.replace(
        tiny.LLAMA_CONFIG,
        condition_dropout=0.3,
        token_dropout=0.0,
        residual_dropout=0.0,
        ffn_dropout=0.0,
    )
    model, params = tiny.llama(config)
    codes = jnp.tile(_codes(1), (1000, 1))
    labels = jnp.full(1000, 4)
    variables, rngs = {"params": params}, {"dropout": jax.random.key(0)}
    trained = model.apply(variables, codes, labels, train=True, rngs=rngs)[:, 0]
    null = model.apply(variables, codes[:1], jnp.array([config.num_classes]))[0, 0]
    dropped = np.isclose(trained, null, atol=1e-4).all(-1).mean()
    assert 0.25 < dropped < 0.35


def test_dropped_captions_become_the_null_features_and_keep_their_mask():
    config = dataclasses.replace(
        tiny.TEXT_CONFIG,
        condition_dropout=0.5,
        token_dropout=0.0,
        residual_dropout=0.0,
        ffn_dropout=0.0,
    )
    model, params = tiny.llama(config)
    text, mask = TEXT[:1].repeat(64, axis=0), MASK[:1].repeat(64, axis=0)
    codes = jnp.tile(_codes(1), (64, 1))

    @jax.jit
    def first_logits(text, mask):
        return model.apply({"params": params}, codes, text, mask)[:, 0]

    trained = jax.jit(functools.partial(model.apply, train=True))(
        {"params": params}, codes, text, mask, rngs={"dropout": jax.random.key(0)}
    )[:, 0]
    null = jnp.broadcast_to(params["condition_embedding"]["null_features"], text.shape)
    kept = np.isclose(trained, first_logits(text, mask), atol=1e-4).all(-1)
    dropped = np.isclose(trained, first_logits(null, mask), atol=1e-4).all(-1)
    np.testing.assert_array_equal(dropped, ~kept)
    assert 16 < dropped.sum() < 48
    assert not np.isclose(first_logits(null, mask), first_logits(null, None), atol=1e-4).all()


def test_code_dropout_leaves_out_whole_codes_in_training_alone():
    rates = {f"{kind}_dropout": 0.0 for kind in ("condition", "token", "residual", "ffn")}
    model, params = tiny.llama(
        dataclasses.replace(tiny.LLAMA_CONFIG, **rates, code_dropout=0.8)  # pyright: ignore[reportArgumentType]
    )
    one, other = (jnp.tile(codes, (200, 1)) for codes in (_codes(1), _codes(1) + 1))
    labels, rngs = jnp.full(200, 1), {"dropout": jax.random.key(0)}

    def second_logits(codes, **options):
        return model.apply({"params": params}, codes, labels, **options)[:, 1]

    trained = [second_logits(codes, train=True, rngs=rngs) for codes in (one, other)]
    left_out = np.all(trained[0] == trained[1], axis=-1)
    assert 0.3 < left_out.mean() < 0.5
    assert not np.any(np.all(second_logits(one) == second_logits(other), axis=-1))


def test_null_features_are_not_trained():
    model, params = tiny.llama(tiny.TEXT_CONFIG)

    def loss(params):
        rngs = {"dropout": jax.random.key(0)}
        logits = model.apply({"params": params}, _codes(), TEXT, MASK, train=True, rngs=rngs)
        return jnp.mean(logits**2)

    gradient = jax.grad(loss)(params)["condition_embedding"]
    assert np.all(gradient["null_features"] == 0)
    assert np.any(gradient["fc1"]["kernel"] != 0)


def test_drop_path_drops_whole_branches_only_in_training():
    config = dataclasses.replace(tiny.LLAMA_CONFIG, drop_path=0.9, token_dropout=0.0)
    model, params = tiny.llama(config)
    codes, labels = jnp.tile(_codes(1), (64, 1)), jnp.full(64, 1)
    variables = {"params": params}
    still = model.apply(variables, codes, labels)
    np.testing.assert_allclose(still, still[:1].repeat(64, 0), atol=1e-5)
    rngs = {"dropout": jax.random.key(0)}
    moved = np.asarray(model.apply(variables, codes, labels, train=True, rngs=rngs))
    # The first of the two layers never drops, the last drops 0.9 of attention and of FFN branches:
    # with the class dropped or not, at most eight outcomes.
    assert 3 <= len(np.unique(moved[:, -1].round(3), axis=0)) <= 8


def test_first_loss_is_that_of_a_uniform_guess():
    model = Llama(tiny.LLAMA_CONFIG)
    params = model.init(jax.random.key(0), _codes(), jnp.zeros(2, int))
    assert np.all(np.asarray(model.apply(params, _codes(), jnp.zeros(2, int))) == 0)


def test_rope_table_turns_rows_then_columns():
    settings = {"base": 10000.0, "condition_length": 1}
    table = rope_table((3, 3), 16, **settings, condition_rope="zero")
    assert table.shape == (10, 8, 2)
    assert np.all(table[0] == 0)
    angles = np.arctan2(table[1:, :, 1], table[1:, :, 0]).reshape(3, 3, 8)
    np.testing.assert_allclose(angles[2, 1, :4], 2 * 10000.0 ** (-np.arange(4) / 4), atol=1e-6)
    np.testing.assert_allclose(angles[2, 1, 4:], 1 * 10000.0 ** (-np.arange(4) / 4), atol=1e-6)
    identity = rope_table((3, 3), 16, **settings, condition_rope="identity")
    np.testing.assert_array_equal(identity[0], np.stack([np.ones(8), np.zeros(8)], -1))


@pytest.mark.parametrize(
    "change",
    [
        {"dim": 30},
        {"n_kv_heads": 3},
        {"condition": "image"},
        {"condition_length": 2},
        {"token_dropout": 1.0},
        {"code_dropout": 1.0},
        {"dtype": "float16"},
        {"grid_size": 0},
        {"grid_size": (4, 0)},
        {"grid_size": (4, 4, 4)},
    ],
)
def test_impossible_configs_name_the_field(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(tiny.LLAMA_CONFIG, **change)
