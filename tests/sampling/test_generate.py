import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from llamagen_jax import flops, sharding
from llamagen_jax.errors import InputError
from llamagen_jax.sampling.filters import filter_logits, kth_largest
from llamagen_jax.sampling.generate import generate
from llamagen_jax.sampling.settings import SamplingSettings

LABELS = jnp.arange(8)
SETTINGS = {"seed": 5, "guidance_scale": 2.0, "top_k": 20, "top_p": 0.9, "temperature": 1.2}


@pytest.fixture(scope="module")
def model_and_params():
    return tiny.llama()


def _greedy_by_hand(model, params, condition, null, scale, num_guided, mask=None, null_mask=None):
    """Greedy codes without a cache: the whole sequence again for every code."""
    apply = jax.jit(model.apply)
    codes = jnp.zeros((len(condition), 16), int)
    for i in range(16):
        logits = apply({"params": params}, codes, condition, mask)[:, i]
        if i < num_guided:
            uncond = apply({"params": params}, codes, null, null_mask)[:, i]
            logits = uncond + scale * (logits - uncond)
        codes = codes.at[:, i].set(logits.argmax(-1))
    return codes


@pytest.mark.parametrize(
    ("scale", "interval", "num_guided"),
    [(1.0, None, 0), (3.0, None, 16), (3.0, 4, 6), (3.0, 99, 16)],
)
def test_guidance(model_and_params, scale, interval, num_guided):
    model, params = model_and_params
    codes = generate(
        model,
        params,
        LABELS,
        seed=0,
        greedy=True,
        guidance_scale=scale,
        guidance_interval=interval,
    )
    null = jnp.full_like(LABELS, model.config.num_classes)
    expected = _greedy_by_hand(model, params, LABELS, null, scale, num_guided)
    np.testing.assert_array_equal(codes, expected)


def test_branch_that_is_not_needed_is_not_computed(model_and_params):
    model, params = model_and_params

    def operations(**settings):
        def sample(params):
            return generate(model, params, LABELS, seed=0, greedy=True, **settings)

        return flops.count(sample, params)

    plain = operations()
    assert operations(guidance_scale=0.5) == plain
    assert operations(guidance_scale=2.0) == 2 * plain
    # The first 4 + 2 of the 16 codes have two branches, and a shorter cache to attend to.
    share = operations(guidance_scale=2.0, guidance_interval=4) / plain
    assert (16 + 5) / 16 < share < (16 + 6) / 16


def test_sample_does_not_depend_on_its_batch(model_and_params):
    model, params = model_and_params
    together = generate(model, params, LABELS, **SETTINGS)
    assert len(np.unique(together, axis=0)) == 8
    for i in (0, 5):
        alone = generate(model, params, LABELS[i : i + 1], sample_ids=jnp.array([i]), **SETTINGS)
        np.testing.assert_array_equal(alone[0], together[i])
    half = generate(model, params, LABELS[4:], sample_ids=jnp.arange(4, 8), **SETTINGS)
    np.testing.assert_array_equal(half, together[4:])


def test_sample_does_not_depend_on_the_devices(model_and_params):
    model, params = model_and_params
    mesh = sharding.make_mesh(data=8, fsdp=1, tensor=1)
    spread = sharding.put_batch({"labels": np.arange(8)}, mesh)["labels"]
    replicated = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))
    codes = generate(model, replicated, spread, **SETTINGS)
    assert len(codes.sharding.device_set) == 8
    np.testing.assert_array_equal(codes, generate(model, params, LABELS, **SETTINGS))


def test_seeds_and_sample_ids_change_the_sample(model_and_params):
    model, params = model_and_params
    label = jnp.array([1, 1])
    codes = generate(model, params, label, seed=0)
    assert not np.array_equal(codes[0], codes[1])
    assert not np.array_equal(codes, generate(model, params, label, seed=1))
    same = generate(model, params, label, seed=0, sample_ids=jnp.array([7, 7]))
    np.testing.assert_array_equal(same[0], same[1])


def test_samples_follow_the_distribution(model_and_params):
    model, params = model_and_params
    codes = generate(model, params, jnp.full(4000, 2), seed=0, temperature=2.0)
    logits = model.apply({"params": params}, codes[:1], jnp.array([2]))[0, 0] / 2.0
    counts = np.bincount(codes[:, 0], minlength=32)
    np.testing.assert_allclose(counts / 4000, jax.nn.softmax(logits), atol=0.03)


def test_text_condition_and_its_null_features():
    model, params = tiny.llama(tiny.TEXT_CONFIG)
    text = jax.random.normal(jax.random.key(0), (2, 5, 16))
    mask = jnp.array([[False, True, True, True, True], [True] * 5])
    settings = {"seed": 0, "greedy": True, "condition_mask": mask}
    plain = generate(model, params, text, **settings)
    logits = model.apply({"params": params}, plain, text, mask)
    np.testing.assert_array_equal(logits.argmax(-1), plain)
    assert not np.array_equal(generate(model, params, text, guidance_scale=4.0, **settings), plain)


def test_null_branch_keeps_the_mask_of_the_caption():
    model, params = tiny.llama(tiny.TEXT_CONFIG)
    text = jax.random.normal(jax.random.key(0), (4, 5, 16))
    mask = jnp.arange(5) >= jnp.array([[4], [3], [1], [0]])
    settings = {"seed": 0, "greedy": True, "guidance_scale": 3.0, "guidance_interval": 8}
    codes = generate(model, params, text, condition_mask=mask, **settings)
    null = jnp.tile(params["condition_embedding"]["null_features"], (4, 1, 1))
    by_hand = (model, params, text, null, 3.0, 10, mask)
    np.testing.assert_array_equal(codes, _greedy_by_hand(*by_hand, null_mask=mask))
    assert not np.array_equal(codes, _greedy_by_hand(*by_hand, null_mask=None))


def test_kth_largest_is_that_of_a_sort():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((4, 60)).astype(np.float32) * 10.0 ** rng.integers(-40, 38, (4, 60))
    rows[1] = rng.integers(-2, 3, 60)  # many ties, some of them at zero
    rows[2, ::3] = -np.inf
    rows[3, :9] = [0.0, -0.0, np.inf, -np.inf, 1e-45, -1e-45, 3e38, -3e38, 0.0]
    rows = rows.astype(np.float32)
    kth = jax.jit(kth_largest, static_argnums=1)
    for k in (1, 2, 3, 9, 20, 21, 40, 59, 60):
        np.testing.assert_array_equal(kth(rows, k)[:, 0], -np.sort(-rows, axis=1)[:, k - 1])


def test_parameters_that_are_laid_out_give_the_same_codes(model_and_params):
    model, params = model_and_params
    settings = SamplingSettings(**SETTINGS)
    laid_out = model.for_decoding(jax.tree.map(np.asarray, params))
    assert laid_out[0].for_decoding(laid_out[1])[1] is laid_out[1]
    codes = generate(*laid_out, LABELS, settings=settings)
    np.testing.assert_array_equal(codes, generate(model, params, LABELS, settings=settings))


def test_known_codes_stay_and_the_others_are_drawn_after_them(model_and_params):
    """Greedily, against the whole sequence again for every code."""
    model, params = model_and_params
    draw = functools.partial(generate, model, params, LABELS)
    plain = np.asarray(draw(**SETTINGS))
    np.testing.assert_array_equal(draw(known=np.full((8, 16), -1), **SETTINGS), plain)
    np.testing.assert_array_equal(draw(known=plain, **(SETTINGS | {"seed": 6})), plain)
    known = np.full((8, 16), -1)
    known[:, [0, 5, 6, 15]] = np.random.default_rng(0).integers(0, 32, (8, 4))
    codes = np.asarray(draw(known=known, seed=0, greedy=True))
    logits = model.apply({"params": params}, codes, LABELS)
    np.testing.assert_array_equal(codes, np.where(known >= 0, known, logits.argmax(-1)))
    # Before the first that is known, nothing changes, and its key is that of its place.
    later = np.where(np.arange(16) < 6, -1, (plain + 1) % 32)
    np.testing.assert_array_equal(draw(known=later, **SETTINGS)[:, :6], plain[:, :6])


def test_known_codes_that_are_none(model_and_params):
    with pytest.raises(
        InputError, match=r"known has shape \(8, 9\); give codes of shape \(8, 16\)"
    ):
        generate(*model_and_params, LABELS, seed=0, known=np.zeros((8, 9), int))
    for code in (-2, 32):
        with pytest.raises(InputError, match="known must hold codes from 0 to 31, and -1"):
            generate(*model_and_params, LABELS, seed=0, known=np.full((8, 16), code))


def test_filters_keep_ties_and_the_first_code_over_top_p():
    probs = jnp.log(jnp.array([0.4, 0.2, 0.2, 0.15, 0.05]))
    kept = jnp.isfinite
    np.testing.assert_array_equal(kept(filter_logits(probs, top_k=2)), [1, 1, 1, 0, 0])
    np.testing.assert_array_equal(kept(filter_logits(probs, top_p=0.3)), [1, 0, 0, 0, 0])
    np.testing.assert_array_equal(kept(filter_logits(probs, top_p=0.7)), [1, 1, 1, 0, 0])
    np.testing.assert_array_equal(kept(filter_logits(probs)), [1, 1, 1, 1, 1])


def test_settings_are_one_object_or_single_fields(model_and_params):
    settings = SamplingSettings(**SETTINGS)
    expected = generate(*model_and_params, LABELS, **SETTINGS)
    np.testing.assert_array_equal(generate(*model_and_params, LABELS, settings=settings), expected)
    other = generate(*model_and_params, LABELS, settings=settings, seed=6)
    np.testing.assert_array_equal(
        other, generate(*model_and_params, LABELS, **(SETTINGS | {"seed": 6}))
    )
    assert not np.array_equal(other, expected)
    with pytest.raises(TypeError, match="top_q"):
        generate(*model_and_params, LABELS, settings=settings, top_q=0.5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": 0.0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"guidance_interval": -1},
        {"decoder": "jacoby"},
    ],
)
def test_impossible_settings_are_named(model_and_params, wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        generate(*model_and_params, LABELS, seed=0, **wrong)


def test_the_decoding_loop_copies_neither_cache_nor_weights():
    """As compiled; copies before the loop, of what is laid out there, are made once."""
    model, params = tiny.llama()
    model, params = model.for_decoding(params)

    def sample(params):
        return generate(model, params, LABELS, seed=0, guidance_scale=2.0, top_k=5)

    computations = jax.jit(sample).lower(params).compile().as_text().split("\n\n")
    inside = "\n".join(c for c in computations if not c.startswith("ENTRY"))
    cache = f"f32{list(model.init_cache(16)[0].k.shape)}".replace(" ", "")
    shapes = [cache, *(f"f32{list(x.shape)}" for x in jax.tree.leaves(params) if x.ndim > 1)]
    moved = {m[1] for m in re.finditer(r"= (\w+\[[\d,]*\])\S* (?:copy|transpose)\(", inside)}
    assert moved  # of small things
    assert not moved & {shape.replace(" ", "") for shape in shapes}
