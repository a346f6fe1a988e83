import numpy as np
import pytest

from llamagen_jax.control_maps import detect
from llamagen_jax.scenes.edges import edge_overlaps
from llamagen_jax.scenes.world import random_scene, render

SCENES = [random_scene(np.random.default_rng(seed)) for seed in range(12)]


@pytest.fixture(scope="module")
def controls():
    edges = [detect("canny", render(scene, 64)) for scene in SCENES]
    return np.stack(edges)[..., None].repeat(3, -1)


def test_drawings_overlap_with_their_own_edges_alone(controls):
    images = np.stack([render(scene, 64) for scene in SCENES])
    np.testing.assert_array_equal(edge_overlaps(images, controls), 1)
    noisy = np.random.default_rng(0).normal(images, 4).clip(0, 255).astype(np.uint8)
    assert edge_overlaps(noisy, controls).mean() > 0.95
    assert edge_overlaps(np.roll(images, 1, 2), controls).mean() > 0.95  # a pixel is tolerated
    assert edge_overlaps(np.roll(images, 4, 2), controls).mean() < 0.5
    assert edge_overlaps(images[::-1], controls).mean() < 0.5


def test_drawings_without_edges():
    white = np.full((1, 64, 64, 3), 255, np.uint8)
    assert edge_overlaps(white, np.zeros_like(white)) == [1]
    assert edge_overlaps(white, white) == [0]
