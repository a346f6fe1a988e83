"""Drawing with control images, by every decoder."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from llamagen_jax.errors import InputError
from llamagen_jax.sampling.generate import generate
from llamagen_jax.sampling.settings import SamplingSettings

SETTINGS = {"seed": 5, "guidance_scale": 2.0, "top_k": 20}
LABELS = jnp.array([1, 2, 3])
CONFIG = dataclasses.replace(tiny.CONTROL_CONFIG, n_layers=2)
CONTROL = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def draw():
    model, params = tiny.llama(CONFIG)
    return functools.partial(generate, *model.for_decoding(params), LABELS, **SETTINGS)


@pytest.fixture(scope="module")
def drawn(draw):
    return draw(control=CONTROL)


@pytest.mark.parametrize("keep", [False, True])
def test_codes_are_those_of_whole_passes(keep):
    """Each is the most probable one of guided logits, where the null condition has the control only
    if it keeps it."""
    model, params = tiny.llama(CONFIG)
    settings = SamplingSettings(seed=0, guidance_scale=2.0, greedy=True, keep_control=keep)
    codes = generate(model, params, LABELS, settings=settings, control=CONTROL)
    null = jnp.full(3, CONFIG.num_classes)
    uncond = model.apply({"params": params}, codes, null, control=CONTROL if keep else None)
    cond = model.apply({"params": params}, codes, LABELS, control=CONTROL)
    np.testing.assert_array_equal(jnp.argmax(uncond + 2 * (cond - uncond), -1), codes)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("how", ["jacobi", "speculative", "draft with control"])
def test_every_decoder_draws_the_same(draw, how, keep):
    draft = None
    if how != "jacobi":
        draft = tiny.llama(CONFIG if "control" in how else tiny.LLAMA_CONFIG, seed=1)
    decoder = "jacobi" if draft is None else "speculative"
    again = draw(control=CONTROL, decoder=decoder, draft=draft, keep_control=keep)
    np.testing.assert_array_equal(again, draw(control=CONTROL, keep_control=keep))


def test_the_scale_goes_down_to_no_control(draw, drawn):
    without = draw()
    assert not np.array_equal(without, drawn)
    np.testing.assert_array_equal(draw(control=CONTROL, control_scale=0.0), without)
    assert not np.array_equal(draw(control=CONTROL, control_scale=0.5), drawn)
    np.testing.assert_array_equal(draw(control_scale=0.5), without)


def test_bad_control_is_refused_in_one_line(draw):
    with pytest.raises(InputError, match="2 control images for 3 conditions"):
        draw(control=CONTROL[:2])
    with pytest.raises(InputError, match=r"uint8 \[B, 16, 16, 3\]"):
        draw(control=CONTROL / 255)
    with pytest.raises(InputError, match="control_scale=-1"):
        draw(control=CONTROL, control_scale=-1.0)
    with pytest.raises(InputError, match="trained without control images"):
        generate(*tiny.llama(), LABELS, seed=0, control=CONTROL)
