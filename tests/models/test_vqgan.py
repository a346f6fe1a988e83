import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from llamagen_jax.models.vqgan import VQGAN, ResBlock, VQGANConfig

IMAGES = jax.random.uniform(jax.random.key(1), (2, 16, 16, 3), minval=-1, maxval=1)


def test_encode_decode_and_forward_agree():
    model, params = tiny.vqgan()
    variables = {"params": params}
    output = jax.jit(model.apply)(variables, IMAGES)
    codes = jax.jit(lambda v, x: model.apply(v, x, method="encode"))(variables, IMAGES)
    assert codes.shape == (2, 2, 2)
    assert codes.dtype == jnp.int32
    np.testing.assert_array_equal(codes, output.codes)
    decoded = jax.jit(lambda v, c: model.apply(v, c, method="decode"))(variables, codes)
    np.testing.assert_allclose(decoded, output.reconstruction, atol=1e-5)


def test_codes_are_nearest_neighbours():
    model, params = tiny.vqgan()
    output = jax.jit(model.apply)({"params": params}, IMAGES)

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    latents, entries = unit(output.prequant), unit(params["quantizer"]["codebook"])
    distances = np.square(latents[..., None, :] - entries).sum(-1)
    np.testing.assert_array_equal(output.codes, distances.argmin(-1))


def test_gradient_passes_the_quantizer_straight_through():
    model, params = tiny.vqgan(dataclasses.replace(tiny.VQGAN_CONFIG, l2_normalize=False))
    bound = model.bind({"params": params})
    latents = jax.random.normal(jax.random.key(2), (1, 2, 2, 4))
    weights = jax.random.normal(jax.random.key(3), (1, 2, 2, 4))
    gradient = jax.grad(lambda z: jnp.sum(bound.quantizer(z)[0] * weights))(latents)
    np.testing.assert_allclose(gradient, weights, atol=1e-6)


@pytest.mark.parametrize(
    ("term", "moves_encoder", "moves_codebook"),
    [("vq_loss", False, True), ("commitment_loss", True, False), ("entropy_loss", True, True)],
)
def test_each_loss_moves_its_side(term, moves_encoder, moves_codebook):
    model, params = tiny.vqgan(dataclasses.replace(tiny.VQGAN_CONFIG, entropy_weight=0.1))
    loss = jax.jit(lambda p: getattr(model.apply({"params": p}, IMAGES), term))
    gradient = jax.grad(loss)(params)
    assert bool(np.any(gradient["quant_conv"]["kernel"] != 0)) == moves_encoder
    assert bool(np.any(gradient["quantizer"]["codebook"] != 0)) == moves_codebook
    assert np.all(gradient["decoder"]["conv_out"]["kernel"] == 0)


def test_codes_are_looked_up_in_float32_whatever_the_compute_dtype():
    model, params = tiny.vqgan(dataclasses.replace(tiny.VQGAN_CONFIG, dtype="bfloat16"))
    output = jax.jit(model.apply)({"params": params}, IMAGES)
    assert output.prequant.dtype == jnp.float32
    assert output.reconstruction.dtype == jnp.float32

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    nearest = model.bind({"params": params}).quantizer.nearest
    latents = jax.random.normal(jax.random.key(2), (4000, 4))
    entries = unit(np.float64(params["quantizer"]["codebook"]))
    distances = np.square(unit(np.float64(latents))[:, None] - entries).sum(-1)
    np.testing.assert_array_equal(nearest(latents), distances.argmin(-1))
    # What GPUs and TPUs would take of float32 operands; CPUs take all in any case.
    products = [
        equation.params["precision"]
        for equation in jax.make_jaxpr(nearest)(latents).eqns
        if equation.primitive is jax.lax.dot_general_p
    ]
    assert products == [(jax.lax.Precision.HIGHEST,) * 2]


def test_image_sides_must_be_divisible():
    model, params = tiny.vqgan()
    with pytest.raises(ValueError, match=r"12 is not divisible by .* of 8"):
        model.apply({"params": params}, jnp.zeros((1, 12, 16, 3)))


@pytest.mark.parametrize(
    "change",
    [
        {"base_channels": 20},
        {"norm_groups": 0},
        {"channel_multipliers": ()},
        {"codebook_size": 0},
        {"dtype": "float64"},
    ],
)
def test_impossible_configs_name_the_field(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        VQGANConfig(**change)


def test_squares_that_are_encoded_alone_have_codes_of_their_own_pixels():
    config = dataclasses.replace(tiny.VQGAN_CONFIG, encode_alone=True)
    side = config.downsampling
    model, image = VQGAN(config), jax.random.uniform(jax.random.key(1), (1, 3 * side, 2 * side, 3))
    params = model.init(jax.random.key(0), image)
    encode = jax.jit(lambda x: model.apply(params, x).prequant)
    whole = encode(image)
    assert whole.shape[1:3] == (3, 2)
    square = encode(image[:, 2 * side :, side:])
    np.testing.assert_allclose(square[0, 0, 0], whole[0, 2, 1], atol=1e-5)


def test_channels_are_normalised_in_groups():
    """Each of 32 channels alone forgets its mean; in one group they keep how they differ."""
    x = jnp.broadcast_to(jnp.arange(32.0), (1, 4, 4, 32))
    for groups, spread in ((32, 0.0), (1, 1.0)):
        config = dataclasses.replace(tiny.VQGAN_CONFIG, norm_groups=groups)
        block = ResBlock(32, config)
        variables = block.init(jax.random.key(0), x)
        _, state = block.apply(variables, x, capture_intermediates=True)
        (normalised,) = state["intermediates"]["norm1"]["__call__"]
        np.testing.assert_allclose(np.std(normalised), spread, atol=1e-3)
    with pytest.raises(ValueError, match="base_channels=24 must be a positive multiple of 16"):
        VQGANConfig(base_channels=24, norm_groups=16)
