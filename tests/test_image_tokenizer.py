"""Decoding in tiles."""

import jax.numpy as jnp
import numpy as np
import pytest

from llamagen_jax.image_tokenizer import decode_tiled

DOWNSAMPLING = 3


def decode(latents):
    """A patch [3, 3, 3] for each latent, on its own: a decoder without norm and attention."""
    patches = np.arange(27, dtype=np.float32).reshape(3, 3, 3)
    B, h, w, _ = latents.shape
    pixels = latents[..., None, None, :1] * patches
    return jnp.asarray(pixels.swapaxes(2, 3).reshape(B, h * 3, w * 3, 3))


@pytest.mark.parametrize(
    "shape, tile, calls",
    [
        ((2, 16, 16), 8, 9),
        ((3, 11, 7), 4, 8),
        ((1, 23, 5), 5, 6),
        ((2, 9, 3), 8, 2),  # a side shorter than a tile
        ((1, 4, 6), 8, 1),
        ((1, 3, 2), 1, 6),
    ],
)
def test_tiles_of_one_shape_make_the_whole(shape, tile, calls):
    latents = np.random.default_rng(0).standard_normal((*shape, 2)).astype(np.float32)
    shapes = []

    def watched(part):
        shapes.append(part.shape)
        return decode(part)

    images = decode_tiled(watched, latents, tile, DOWNSAMPLING)
    assert images.dtype == np.float32
    np.testing.assert_allclose(images, decode(latents), rtol=1e-6, atol=1e-6)
    sides = [min(side, tile) for side in shape[1:]]
    assert shapes == [(shape[0], *sides, 2)] * calls


def test_one_tile_fades_evenly_into_the_next():
    brightness = iter([0.0, 1.0])

    def decode(codes):
        return np.full((1, *(DOWNSAMPLING * side for side in codes.shape[1:]), 3), next(brightness))

    line = decode_tiled(decode, np.zeros((1, 4, 14), np.int32), 8, DOWNSAMPLING)[0, 0, :, 0]
    np.testing.assert_array_equal(line[:18], 0)
    np.testing.assert_allclose(line[18:24], (np.arange(6) + 0.5) / 6, rtol=1e-6)
    np.testing.assert_array_equal(line[24:], 1)
