"""Inception computes what torch-fidelity's does (tests/golden), and resizes as TensorFlow 1."""

import jax
import numpy as np
import pytest
from golden_weights import inception_state, load

from llamagen_jax.models.inception import Inception, resize
from llamagen_jax.weights import inception as inception_weights


def test_features():
    golden, _ = load("inception")
    variables = inception_weights.from_torch(inception_state())
    features = jax.jit(Inception().apply)(variables, golden["image"])
    for name, key in (("pool",) * 2, ("logits_unbiased",) * 2, ("spatial", "spatial7")):
        np.testing.assert_allclose(getattr(features, name), golden[key], rtol=0, atol=1e-4)


def test_images_are_resized_without_half_pixel_centres():
    images = np.zeros((1, 2, 4, 3), np.uint8)
    images[..., 0] = np.arange(4) * 10
    images[..., 1] = [[100], [200]]
    resized = np.asarray(resize(images, 8))
    columns = [0, 5, 10, 15, 20, 25, 30, 30]
    rows = [100, 125, 150, 175, 200, 200, 200, 200]
    np.testing.assert_array_equal(resized[0, 3, :, 0], columns)
    np.testing.assert_array_equal(resized[0, :, 3, 1], rows)
    # Every second pixel and no mean of two, where the image becomes smaller.
    np.testing.assert_array_equal(resize(images, 2)[0, 1, :, 0], [0, 20])


def test_images_that_are_no_uint8_are_refused():
    with pytest.raises(ValueError, match="images are float32; expected uint8"):
        jax.eval_shape(Inception().init, jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))
