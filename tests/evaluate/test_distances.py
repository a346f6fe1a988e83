"""Distances against recorded values, closed forms, other implementations, and their errors."""

import numpy as np
import pytest
import scipy.linalg
from golden_weights import FOLDER

from llamagen_jax.errors import InputError
from llamagen_jax.evaluate import frechet_distance, pairwise
from llamagen_jax.evaluate.distances import (
    cmmd,
    cmmd_influence,
    frechet_influence,
    kid,
    kid_influence,
)
from llamagen_jax.evaluate.statistics import Moments, standard_error


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """So that a few dozen features are several blocks, the last one shorter."""
    monkeypatch.setattr(pairwise, "_BLOCK", 48)


@pytest.fixture
def sets():
    """Reference [90, 5] and samples [60, 5] of other shape and skewed."""
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5)) * 0.5 + 0.3
    return rng.normal(size=(90, 5)), samples + 0.2 * samples**2


def fid(reference, samples):
    first, second = Moments.of(reference), Moments.of(samples)
    return frechet_distance(first.mu, first.sigma, second.mu, second.sigma)


def test_golden_frechet_distances():
    golden = np.load(FOLDER / "gen_metrics.npz")
    assert fid(golden["ref"], golden["gen"]) == pytest.approx(golden["fid"], abs=1e-6)
    expected = golden["fid_lowrank_vs_gen"]
    for pair in [("lowrank", "gen"), ("gen", "lowrank")]:
        assert fid(*(golden[name] for name in pair)) == pytest.approx(expected, abs=2e-6)


def test_frechet_distance_is_that_of_the_matrix_square_root(sets):
    first, second = map(Moments.of, sets)
    root = scipy.linalg.sqrtm(first.sigma @ second.sigma).real
    expected = np.square(first.mu - second.mu).sum()
    expected += np.trace(first.sigma + second.sigma - 2 * root)
    assert fid(*sets) == pytest.approx(expected, rel=1e-10)


def test_frechet_distance_in_closed_form(sets):
    """A set moved by d is d² away, also where its 12 features lack rank; a scaled one likewise."""
    for features in (sets[0], np.random.default_rng(1).normal(size=(7, 12))):
        assert fid(features, features) == pytest.approx(0, abs=1e-12)
        assert fid(features, features + 3) == pytest.approx(9 * features.shape[1], rel=1e-12)
        centered = features - features.mean(0)
        trace = np.trace(Moments.of(features).sigma)
        assert fid(centered, 3 * centered) == pytest.approx(4 * trace, rel=1e-12)
    equal = np.ones((4, 3))
    assert fid(equal, equal + 1) == pytest.approx(3)


def test_frechet_distance_keeps_its_digits_where_covariances_lack_rank():
    """Covariances with common axes, whose distance is that of their standard deviations."""
    axes, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(60, 60)))
    wide, flat = np.logspace(1, -4, 60), np.logspace(0, -5, 60)
    flat[5:50] = 0
    first, second = (axes * wide**2) @ axes.T, (axes * flat**2) @ axes.T
    zeros, expected = np.zeros(60), np.square(wide - flat).sum()
    assert frechet_distance(zeros, first, zeros, second) == pytest.approx(expected, abs=1e-9)
    assert frechet_distance(zeros, second, zeros, first) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({0: np.zeros(4)}, "as many features"),
        ({3: np.eye(4)}, "as many features"),
        ({2: np.array([0, np.nan])}, "NaN or infinity"),
        ({1: np.full((2, 2), np.inf)}, "NaN or infinity"),
    ],
)
def test_gaussians_that_cannot_be_compared(changed, message):
    gaussians = dict(enumerate([np.zeros(2), np.eye(2)] * 2)) | changed
    with pytest.raises(InputError, match=message):
        frechet_distance(*gaussians.values())


def test_kid_is_the_mean_over_subsets(sets):
    """One subset that holds a whole set is independent of the draw, and has a closed form."""
    reference, samples = sets[0][:60], sets[1]

    def kernel(a, b):
        return (a @ b.T / 5 + 1) ** 3

    off_diagonal = ~np.eye(60, dtype=bool)
    expected = kernel(reference, reference)[off_diagonal].mean()
    expected += kernel(samples, samples)[off_diagonal].mean()
    expected -= 2 * kernel(samples, reference).mean()
    assert kid(reference, samples, subsets=1, subset_size=60) == pytest.approx(expected)
    many = kid(reference, samples, subsets=400, subset_size=30)
    assert many == pytest.approx(expected, rel=0.05)
    with pytest.raises(InputError, match="subsets of 61 do not fit into 60 images"):
        kid(reference, samples, subset_size=61)


def test_kid_draws_the_subsets_of_torch_fidelity():
    """Against what kid_features_to_metric of torch-fidelity 0.4.0 gives for the same features."""
    expected = 0.2527207807966761
    rng = np.random.RandomState(0)
    samples, reference = rng.normal(size=(40, 8)), 1.5 * rng.normal(size=(50, 8))
    assert kid(reference, samples, subsets=3, subset_size=10) == pytest.approx(expected, abs=1e-12)


def unit(features):
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def test_cmmd_keeps_its_digits(sets):
    def kernel_mean(a, b):
        return np.exp(-np.square(a[:, None] - b).sum(-1) / 200).mean()

    reference, samples = unit(sets[0]), unit(sets[0] + 0.03)
    expected = kernel_mean(reference, reference) + kernel_mean(samples, samples)
    expected -= 2 * kernel_mean(reference, samples)
    assert cmmd(reference, samples) == pytest.approx(1000 * expected, abs=1e-6)


def test_influences_give_the_error_of_the_jackknife(sets):
    """Distances of all samples but one, for each, vary as the influences say."""
    reference, samples = sets
    units = tuple(map(unit, sets))

    def jackknife(distance, reference, samples):
        count = len(samples)
        left_out = [distance(reference, np.delete(samples, i, 0)) for i in range(count)]
        return np.sqrt((count - 1) * np.var(left_out))

    def whole_kid(reference, samples):
        size = len(samples)
        return kid(reference[:size], samples, subsets=1, subset_size=size)

    first, second = Moments.of(reference), Moments.of(samples)
    influence = frechet_influence(first.mu, first.sigma, second.mu, second.sigma, samples)
    assert standard_error(influence) == pytest.approx(jackknife(fid, *sets), rel=0.1)
    error = standard_error(kid_influence(reference[:59], samples))
    assert error == pytest.approx(jackknife(whole_kid, reference, samples), rel=0.1)
    error = standard_error(cmmd_influence(*units))
    assert error == pytest.approx(jackknife(cmmd, *units), rel=0.1)


@pytest.mark.parametrize("distance", [kid, cmmd])
def test_features_that_cannot_be_compared(distance):
    good = np.zeros((3, 2))
    for bad, message in [
        (np.zeros((3, 4)), "made by the same network"),
        (np.zeros((0, 2)), "made by the same network"),
        (np.full((3, 2), np.nan), "features of the samples hold NaN"),
    ]:
        with pytest.raises(InputError, match=message):
            distance(good, bad)
