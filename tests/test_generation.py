"""Images from a generator and any tokenizer."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import tiny

from llamagen_jax.generation import ImageGenerator, generate_images
from llamagen_jax.sampling.settings import SamplingSettings

SETTINGS = SamplingSettings(seed=1, guidance_scale=2.0)


@flax.struct.dataclass
class Flat:
    """A tokenizer of another kind: a code is a grey patch of 2x2 pixels."""

    levels: jax.Array
    downsampling: int = flax.struct.field(pytree_node=False, default=2)
    codebook_size: int = flax.struct.field(pytree_node=False, default=32)

    def encode(self, images):
        return jnp.argmin(jnp.abs(images[:, ::2, ::2, :1] - self.levels), axis=-1)

    def decode(self, codes):
        grey = jnp.repeat(jnp.repeat(self.levels[codes], 2, axis=1), 2, axis=2)
        return jnp.tile(grey[..., None], 3)


FLAT = Flat(jnp.linspace(-1, 1, 32))


def test_any_tokenizer_and_any_grid():
    config = dataclasses.replace(tiny.LLAMA_CONFIG, grid_size=(2, 8))
    model, params = tiny.llama(config)
    codes, images = generate_images(model, params, FLAT, jnp.arange(3), SETTINGS)
    assert (codes.shape, images.shape, images.dtype) == ((3, 16), (3, 4, 16, 3), np.uint8)
    grid = codes.reshape(3, 2, 8)
    expected = np.clip(127.5 * np.linspace(-1, 1, 32) + 128, 0, 255)[grid]
    np.testing.assert_allclose(images[:, ::2, ::2, 0], expected, atol=1)
    np.testing.assert_array_equal(FLAT.encode(images / 127.5 - 1), grid)


def test_an_image_depends_on_its_number_alone():
    model, params = tiny.llama()
    generator = ImageGenerator("tiny", model, params, FLAT, None, ())
    conditions = {"condition": np.array([3, 1, 4], np.int32)}
    parts = list(generator.sample(conditions, SETTINGS, count=7, batch_size=8))
    assert [len(part.images) for part in parts] == [8, 8, 5]
    codes = np.concatenate([part.codes for part in parts])
    (whole,) = generator.sample(conditions, SETTINGS, count=7, batch_size=21)
    np.testing.assert_array_equal(codes, whole.codes)
    alone = generate_images(
        model, params, FLAT, jnp.array([4]), SETTINGS, sample_ids=jnp.array([20])
    )
    np.testing.assert_array_equal(alone.codes[0], codes[20])


def test_settings_that_are_left_open_suit_the_condition():
    for config, guidance, top_k in ((tiny.LLAMA_CONFIG, 1.0, 0), (tiny.TEXT_CONFIG, 7.5, 1000)):
        model, params = tiny.llama(config)
        generator = ImageGenerator("tiny", model, params, FLAT, None, ())
        settings = generator.settings(seed=3, guidance_scale=None, top_p=0.5)
        assert settings == SamplingSettings(3, guidance, top_k=top_k, top_p=0.5)
        assert generator.settings(seed=0, guidance_scale=2.0).guidance_scale == 2.0
