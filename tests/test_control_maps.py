import numpy as np
import pytest
from PIL import Image, ImageDraw

from llamagen_jax import control_maps
from llamagen_jax.errors import InputError


@pytest.fixture(scope="module")
def square():
    """A yellow square from 8 to 23 on white: a low step of brightness."""
    image = Image.new("RGB", (32, 32), "white")
    ImageDraw.Draw(image).rectangle((8, 8, 23, 23), fill=(240, 200, 40))
    return np.asarray(image)


def test_canny_edges_are_thin_and_in_place(square):
    edges = control_maps.detect("canny", square)
    assert (edges.shape, edges.dtype) == ((32, 32), np.uint8)
    assert set(np.unique(edges)) == {0, 255}
    # A step between two pixels is both of them.
    assert set(np.flatnonzero(edges[16])) <= {7, 8, 23, 24}
    assert edges[16, 7:9].any() and edges[16, 23:25].any()
    assert not control_maps.detect("canny", np.full_like(square, 90)).any()


def test_soft_edges_tell_how_high_a_step_is(square):
    step = np.zeros((16, 16, 3), np.uint8)
    step[:, 8:] = 255
    # The slope of a smoothed step is greatest between two pixels.
    assert 200 < control_maps.detect("soft-edges", step).max() <= 255
    assert 20 < control_maps.detect("soft-edges", square).max() < 80


def test_unknown_detectors_are_named():
    with pytest.raises(InputError, match="no detector of 'cany'; did you mean 'canny'"):
        control_maps.detect("cany", np.zeros((4, 4, 3), np.uint8))


def test_what_is_kept_is_told_from_what_is_hidden():
    picture = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, -1)
    hidden = np.zeros((16, 16), bool)
    hidden[4:12, 8:] = True
    found = control_maps.detect("surroundings", picture)
    np.testing.assert_array_equal(found, picture)
    shown = control_maps.hide(found, hidden)
    assert shown.dtype == np.uint8
    assert not shown[hidden].any()
    kept = shown[~hidden].astype(int)
    assert (kept.min(), kept.max()) == (64, 255)
    # Brighter stays brighter, or as bright by rounding.
    assert (np.diff(kept[:, 0]) >= 0).all()


def test_holes_are_of_many_shapes():
    rng = np.random.default_rng(0)
    holes = np.stack([control_maps.random_hole((24, 32), rng) for _ in range(400)])
    shares = holes.mean(axis=(1, 2))
    assert 0 < shares.min() < 0.05 and 0.95 < shares.max() < 1
    # Each pixel is hidden in some and kept in others.
    assert (np.abs(holes.mean(axis=0) - 0.5) < 0.4).all()
    bordered = [hole[0].all() and hole[-1].all() and not hole.all() for hole in holes]
    assert 0.05 < np.mean(bordered) < 0.25
    again = control_maps.random_hole((24, 32), np.random.default_rng(0))
    np.testing.assert_array_equal(again, holes[0])
