"""Precision and recall against recorded and known answers, in blocks and in float16."""

import numpy as np
import pytest
from golden_weights import FOLDER

from llamagen_jax.errors import InputError
from llamagen_jax.evaluate import pairwise, precision_recall
from llamagen_jax.evaluate.manifolds import manifold_hits


@pytest.mark.parametrize("block", [4096, 150])
def test_golden_precision_and_recall(monkeypatch, block):
    monkeypatch.setattr(pairwise, "_BLOCK", block)
    golden = np.load(FOLDER / "gen_metrics.npz")
    expected = (golden["precision"], golden["recall"])
    assert precision_recall(golden["pr_ref"], golden["pr_gen"]) == expected
    assert precision_recall(golden["pr_gen"], golden["pr_ref"]) == expected[::-1]


@pytest.mark.parametrize("offset", [0, 10_000])
def test_near_copies_of_one_image_are_precise_and_recall_it_alone(offset):
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(200, 8)) + offset
    samples = reference[17] + 1e-2 * rng.normal(size=(200, 8))
    assert precision_recall(reference, samples) == (1.0, 0.005)
    precise, recalled = manifold_hits(reference, samples)
    assert precise.all() and recalled.nonzero()[0].tolist() == [17]


def test_the_ball_reaches_the_kth_nearest_other_image():
    reference = np.array([[0.0], [1], [2], [4], [100]])
    samples = np.array([[104.0], [-4], [199], [200], [-5]])
    precise, _ = manifold_hits(reference, samples, k=3)
    assert precise.tolist() == [True, True, True, False, False]


def test_float16_rounds_and_falls_back_where_it_overflows():
    """Balls of radius 1 around the integers, and samples that are a little farther away."""
    reference = np.arange(8.0)[:, None]
    samples = np.full((4, 1), 8.003)
    assert precision_recall(reference, samples, k=1) == (0, 0)
    assert precision_recall(reference, samples, k=1, dtype="float16") == (1, 0)
    # Squares of 300 and more have no float16.
    samples = np.array([[307.5], [307.5], [308.5], [308.5]])
    assert precision_recall(reference + 300, samples, k=1, dtype="float16") == (0.5, 0)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros((3, 2)), "look at 3 neighbours of each image and there are 3 images"),
        (np.zeros((9, 3)), "made by the same network"),
        (np.full((9, 2), np.inf), "features of the samples hold NaN or infinity"),
    ],
)
def test_features_without_precision(samples, message):
    with pytest.raises(InputError, match=message):
        precision_recall(np.zeros((9, 2)), samples)
