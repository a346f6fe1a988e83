"""PSNR and SSIM against known answers and scikit-image, and how much of a codebook is used."""

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from llamagen_jax.errors import InputError
from llamagen_jax.evaluate.reconstructions import codebook_perplexity, codebook_usage, psnr, ssim


def test_psnr_is_of_each_pair():
    images = np.full((3, 8, 8, 3), 250, np.uint8)
    values = psnr(images, images - np.array([10, 20, 0], np.uint8)[:, None, None, None])
    np.testing.assert_allclose(values, [28.131, 22.110, np.inf], atol=5e-4)
    assert values[:2].mean() == pytest.approx(25.120, abs=1e-3)


@pytest.mark.parametrize("data_range", [255, 510])
def test_equal_to_scikit_image(data_range):
    """Floats as LlamaGen's originals are, beside uint8; flat, noisy and dark images."""
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, (3, 20, 15, 3)) * np.array([0.01, 1, 0.5])[:, None, None, None]
    images[0] += 200
    others = (images + rng.normal(0, 5, images.shape)).clip(0, 255).astype(np.uint8)
    for ours, theirs, kwargs in [
        (ssim, structural_similarity, {"channel_axis": -1}),
        (psnr, peak_signal_noise_ratio, {}),
    ]:
        pairs = zip(images, others.astype(float), strict=True)
        expected = [theirs(*pair, data_range=data_range, **kwargs) for pair in pairs]
        np.testing.assert_allclose(ours(images, others, data_range), expected, rtol=1e-9)
    np.testing.assert_allclose(ssim(others, others), 1, rtol=1e-9)


@pytest.mark.parametrize("score", [psnr, ssim])
def test_what_is_no_pair(score):
    with pytest.raises(InputError, match="images and reconstructions are"):
        score(np.zeros((2, 8, 8, 3)), np.zeros((1, 8, 8, 3)))


def test_images_smaller_than_the_window():
    with pytest.raises(InputError, match="SSIM needs images of 7 pixels or more"):
        ssim(np.zeros((2, 8, 6, 3)), np.zeros((2, 8, 6, 3)))


def test_codebook_figures():
    assert codebook_usage(np.array([3, 0, 1, 0])) == 0.5
    assert codebook_perplexity(np.array([5, 0, 5, 5])) == pytest.approx(3)
    assert codebook_perplexity(np.array([0, 9])) == pytest.approx(1)
