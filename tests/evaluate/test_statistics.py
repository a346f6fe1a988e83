"""Moments of features however they come, statistics files, and standard errors."""

import functools
import json

import numpy as np
import pytest

from llamagen_jax.errors import InputError
from llamagen_jax.evaluate.statistics import (
    Moments,
    Statistics,
    load_statistics,
    rank_warning,
    save_statistics,
    standard_error,
)


@pytest.mark.parametrize("batch", [1, 8, 53, 64])
def test_moments_do_not_depend_on_batches_or_their_order(batch):
    """Features far from zero, where sums of squares would lose their digits."""
    features = np.random.default_rng(0).normal(1e5, 1, (53, 6)).astype(np.float32)
    batches = [features[start : start + batch] for start in range(0, 53, batch)][::-1]
    moments = functools.reduce(Moments.merge, map(Moments.of, batches))
    assert moments.count == 53
    np.testing.assert_allclose(moments.mu, features.mean(0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(moments.sigma, np.cov(features.T, dtype=np.float64), rtol=1e-7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Moments.of(np.ones((1, 3))).sigma, "one image has no covariance"),
        (lambda: Moments.of(np.array([[1.0, np.nan]])), "features hold NaN or infinity"),
        (lambda: Moments.of(np.array([[1.0, np.inf], [1, 2]])), "features hold NaN or infinity"),
    ],
)
def test_what_has_no_moments(make, message):
    with pytest.raises(InputError, match=message):
        make()


ADM = {
    "mu": np.zeros(3, np.float32),
    "sigma": np.eye(3),
    "mu_s": np.zeros(2),
    "sigma_s": np.eye(2),
}


def test_statistics_come_back_from_their_file(tmp_path):
    path = tmp_path / "reference.npz"
    made = Statistics(**ADM, count=7, network="abc", protocol="adm", images_digest="def")
    save_statistics(path, made)
    back = load_statistics(path, spatial=True, network="abc", protocol="adm")
    assert {name: np.asarray(value).tolist() for name, value in vars(back).items()} == json.loads(
        json.dumps(vars(made), default=np.ndarray.tolist)
    )
    assert back.mu.dtype == np.float64
    with pytest.raises(InputError, match="exists already"):
        save_statistics(path, made)


def test_files_of_other_evaluators_load(tmp_path):
    path = tmp_path / "VIRTUAL.npz"
    np.savez(path, arr_0=np.zeros((2, 4, 4, 3), np.uint8), **ADM)
    back = load_statistics(path, spatial=True, network="abc", protocol="adm")
    assert (back.count, back.network, back.protocol) == (None, None, None)
    assert back.sigma_s.tolist() == np.eye(2).tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mu": None, "sigma": None}, "holds no mu and sigma"),
        ({"sigma": None}, r"mu of shape \(3,\) and sigma of shape None"),
        ({"mu": None}, r"mu of shape None and sigma of shape \(3, 3\)"),
        ({"mu_s": None, "sigma_s": None}, "holds no mu_s and sigma_s, which sFID needs"),
        ({"sigma_s": None}, r"mu_s of shape \(2,\) and sigma_s of shape None"),
        ({"sigma": np.eye(2)}, r"sigma of shape \(2, 2\)"),
        ({"mu": np.array(1.0)}, r"mu of shape \(\)"),
        ({"mu": np.array([0, np.nan, 0])}, "values in mu that are not finite"),
        ({"sigma": np.full((3, 3), "a")}, "values in sigma that are not finite"),
        ({"sigma": np.full((3, 3), None)}, "is no whole npz file"),
        ({"network": "other"}, "made with network other, not with abc"),
        ({"protocol": "clean-fid"}, "made with protocol clean-fid, not with adm"),
        ({"network": np.array([1, 2])}, "network that is no str"),
        ({"count": 1.5}, "count that is no int"),
    ],
)
def test_statistics_that_do_not_serve_are_refused(tmp_path, change, message):
    path = tmp_path / "reference.npz"
    held = {name: value for name, value in (ADM | change).items() if value is not None}
    np.savez(path, **held)
    with pytest.raises(InputError, match=message) as error:
        load_statistics(path, spatial=True, network="abc", protocol="adm")
    assert str(path) in str(error.value)


def test_files_that_are_no_whole_npz_are_refused(tmp_path):
    path = tmp_path / "reference.npz"
    with pytest.raises(InputError, match="no statistics file"):
        load_statistics(path)
    np.savez(path, **ADM)
    whole = path.read_bytes()
    flipped = whole.replace(np.eye(3).tobytes(), np.ones((3, 3)).tobytes())
    for damaged in (b"", whole[: len(whole) // 2], flipped, b"mu sigma", np.eye(3).dumps()):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="is no whole npz file"):
            load_statistics(path)


def test_standard_error_of_a_mean():
    values = np.array([1.0, 2.0, 3.0, 6.0])
    expected = np.sqrt(np.square(values - 3).sum() / 3 / 4)
    assert standard_error(values) == pytest.approx(expected)
    assert standard_error(values > 2) == pytest.approx(np.sqrt(0.25 / 3))
    assert np.isnan(standard_error(values[:1]))


def test_too_few_images_for_full_rank_are_told():
    assert rank_warning(2049, 2048) is None
    assert "2048 images give 2048 features a covariance of rank 2047" in rank_warning(2048, 2048)
