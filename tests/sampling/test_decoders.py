import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy import stats

from llamagen_jax.errors import InputError
from llamagen_jax.models.llama import Llama, LlamaConfig
from llamagen_jax.sampling import jacobi, windows
from llamagen_jax.sampling.draw import Inputs
from llamagen_jax.sampling.generate import choose_decoder, generate, sample_keys
from llamagen_jax.sampling.settings import SamplingSettings

SETTINGS = {"seed": 5, "guidance_scale": 2.0, "top_k": 20, "top_p": 0.9, "temperature": 1.2}
# Three codes of four values: 64 sequences, each of whose probabilities can be computed.
SMALL = LlamaConfig(
    dim=16,
    n_layers=1,
    n_heads=2,
    vocab_size=4,
    grid_size=(1, 3),
    num_classes=2,
    multiple_of=16,
)


@pytest.fixture(scope="module")
def model_and_params():
    return tiny.llama()


@pytest.fixture(scope="module")
def draft():
    return tiny.llama()[0], tiny.llama()[1] | {
        "output": 1.5 * tiny.llama()[1]["output"][:, ::-1] + tiny.llama()[1]["output"]
    }


@pytest.mark.parametrize(
    ("decoder", "changes"),
    [
        ("jacobi", {}),
        ("jacobi", {"guidance_scale": 1.0}),
        ("jacobi", {"guidance_interval": 4}),
        ("speculative", {}),
    ],
)
def test_samples_are_those_of_the_plain_decoder(model_and_params, draft, decoder, changes):
    settings = SETTINGS | changes
    labels = jnp.arange(8)
    expected = generate(*model_and_params, labels, **settings)
    how = {"decoder": decoder, "draft": draft if decoder == "speculative" else None}
    np.testing.assert_array_equal(generate(*model_and_params, labels, **settings, **how), expected)
    if not changes:
        alone = generate(*model_and_params, labels[3:4], sample_ids=[3], **settings, **how)
        np.testing.assert_array_equal(alone[0], expected[3])


@pytest.fixture(scope="module")
def known():
    """Of 8 samples half of the codes, scattered: the first of some, the last of others."""
    rng = np.random.default_rng(0)
    return np.where(rng.random((8, 16)) < 0.5, rng.integers(0, 32, (8, 16)), -1)


@pytest.mark.parametrize("decoder", ["jacobi", "speculative"])
def test_known_codes_in_every_decoder(model_and_params, draft, known, decoder):
    settings = SETTINGS | {"guidance_interval": 4}
    draw = functools.partial(generate, *model_and_params, jnp.arange(8), known=known, **settings)
    expected = draw()
    how = {"decoder": decoder, "draft": draft if decoder == "speculative" else None}
    np.testing.assert_array_equal(draw(**how), expected)
    np.testing.assert_array_equal(np.asarray(expected)[known >= 0], known[known >= 0])


def test_known_codes_are_right_guesses(model_and_params, known):
    """As many passes as it takes to look at them all."""
    every = np.abs(known)
    keys = sample_keys(0, jnp.arange(8))
    settings = SamplingSettings(**SETTINGS, guidance_interval=4)
    inputs = Inputs(keys, jnp.arange(8), known=jnp.asarray(every))
    progress = jacobi.decode(*model_and_params, inputs, settings)
    np.testing.assert_array_equal(progress.codes, every)
    np.testing.assert_array_equal(progress.passes, 1 + np.ceil(15 / jacobi.WINDOW))


def test_text_conditions_with_padding():
    model, params = tiny.llama(tiny.TEXT_CONFIG)
    text = jax.random.normal(jax.random.key(0), (2, 5, 16))
    mask = jnp.array([[False, True, True, True, True], [True] * 5])
    draw = functools.partial(generate, model, params, text, condition_mask=mask, **SETTINGS)
    np.testing.assert_array_equal(draw(decoder="jacobi"), draw())


@pytest.fixture(scope="module")
def small():
    """A model whose probabilities differ much from code to code and from label to label."""
    model = Llama(SMALL)
    params = model.init(jax.random.key(0), jnp.zeros((1, 3), int), jnp.zeros(1, int))["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    random = [
        leaf + 0.5 * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)
    ]
    params = jax.tree.unflatten(tree, random)
    # So that guidance leaves many sequences with a chance.
    return model, params | {"output": 0.4 * params["output"]}


def _p_value(model, params, settings, codes):
    """Of a chi-square test of samples [N, 3] of class 1 against the enumerated distribution."""
    sequences = np.stack(np.unravel_index(np.arange(64), (4, 4, 4)), 1)
    logits = [
        np.asarray(model.apply({"params": params}, sequences, jnp.full(64, label)), np.float64)
        for label in (1, 2)
    ]
    logits = logits[1] + settings.guidance_scale * (logits[0] - logits[1])
    if settings.top_k:
        logits[logits < np.sort(logits)[..., -settings.top_k, None]] = -np.inf
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    if settings.top_p < 1:
        order = np.argsort(-probs)
        ranked = np.take_along_axis(probs, order, -1)
        ranked[ranked.cumsum(-1) - ranked > settings.top_p] = 0
        np.put_along_axis(probs, order, ranked, -1)
        probs /= probs.sum(-1, keepdims=True)
    expected = np.prod(np.take_along_axis(probs, sequences[..., None], -1), (1, 2))
    counts = np.bincount(np.asarray(codes) @ np.array([16, 4, 1]), minlength=64)
    # Sequences too rare for the test are counted as one.
    common = expected * len(codes) > 10
    counts = np.append(counts[common], counts[~common].sum())
    expected = np.append(expected[common], max(expected[~common].sum(), 1e-9)) * len(codes)
    statistic = np.sum((counts - expected) ** 2 / np.maximum(expected, 1))
    return stats.chi2.sf(statistic, len(counts) - 1)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"guidance_scale": 1.0}, marks=pytest.mark.slow),
        pytest.param({"top_k": 3}, marks=pytest.mark.slow),
        {"top_p": 0.9},
    ],
)
def test_sequences_follow_the_distribution_and_wrong_acceptance_does_not(
    small, changes, monkeypatch
):
    settings = SamplingSettings(**({"seed": 0, "guidance_scale": 3.0} | changes))
    labels, keys = jnp.ones(200_000, int), sample_keys(0, jnp.arange(200_000))
    arguments = (*small, Inputs(keys, labels), settings)
    assert _p_value(*small, settings, jacobi.decode(*arguments).codes) > 1e-3

    def keep_everything(progress, places, drawn):
        rows = jnp.arange(len(places))[:, None]
        codes = progress.codes.at[rows, places].set(drawn)
        return windows.Progress(codes, places[:, -1] + 1, progress.passes + 1)

    monkeypatch.setattr(windows, "keep", keep_everything)
    jacobi._decode.clear_cache()
    assert _p_value(*small, settings, jacobi.decode(*arguments).codes) < 1e-6
    jacobi._decode.clear_cache()


def test_draft_that_is_missing_or_does_not_fit_is_named(model_and_params, draft, small):
    def draw(**how):
        return generate(*model_and_params, [1], seed=0, **how)

    with pytest.raises(InputError, match="speculative decoder needs a draft"):
        draw(decoder="speculative")
    with pytest.raises(InputError, match="'jacobi' uses no draft"):
        draw(decoder="jacobi", draft=draft)
    with pytest.raises(InputError, match="draft's vocab_size is 4 but the generator's 32"):
        draw(decoder="speculative", draft=small)


def test_auto_guesses_where_it_pays():
    settings = SamplingSettings(seed=0, decoder="auto")
    assert choose_decoder(settings, 1, 2**28, has_draft=False) == "jacobi"
    assert choose_decoder(settings, 1, 2**28, has_draft=True) == "speculative"
    assert choose_decoder(settings, 2, 2**28, has_draft=False) == "plain"
    assert choose_decoder(settings, 1, 2**20, has_draft=True) == "plain"
