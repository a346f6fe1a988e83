"""Inception Score against recorded and known answers, its order and its error."""

import numpy as np
import pytest
from golden_weights import FOLDER

from llamagen_jax.errors import InputError
from llamagen_jax.evaluate import inception_score, pairwise
from llamagen_jax.evaluate.scores import inception_score_influence, shuffled_inception_score
from llamagen_jax.evaluate.statistics import standard_error

SORTED = np.eye(10).repeat(10, axis=0)


@pytest.mark.parametrize("block", [4096, 300])
def test_golden_inception_score(monkeypatch, block, caplog):
    monkeypatch.setattr(pairwise, "_BLOCK", block)
    golden = np.load(FOLDER / "gen_metrics.npz")
    score = inception_score(golden["probs"], 500)
    assert score == pytest.approx(golden["inception_score_split500"], rel=1e-12)
    assert not caplog.records


def test_samples_sorted_by_class_are_warned_of(caplog):
    assert inception_score(SORTED, 10) == pytest.approx(1)
    assert "seem to be sorted by class: chunks of 10 have an Inception Score of 1.00" in caplog.text
    caplog.clear()
    assert inception_score(SORTED, len(SORTED)) == pytest.approx(10)
    assert 5 < inception_score(np.random.default_rng(0).permutation(SORTED), 10) < 7
    assert not caplog.records


def test_shuffled_chunks_are_those_of_torch_fidelity():
    """Against what isc_features_to_metric of torch-fidelity 0.4.0 gives for their logarithms."""
    expected = 2.2417327912010476
    rng = np.random.RandomState(0)
    probabilities = rng.dirichlet(np.full(6, 0.3), size=53)
    assert shuffled_inception_score(probabilities, splits=4) == pytest.approx(expected, rel=1e-12)


def test_influences_give_the_error_of_the_jackknife():
    probabilities = np.random.default_rng(0).dirichlet(np.full(6, 0.3), size=100)
    left_out = [inception_score(np.delete(probabilities, i, 0)) for i in range(100)]
    error = standard_error(inception_score_influence(probabilities))
    assert error == pytest.approx(np.sqrt(99 * np.var(left_out)), rel=0.1)


@pytest.mark.parametrize(
    "bad", [np.eye(3) * 2, np.full((2, 2), np.nan), np.array([[1.5, -0.5]]), np.zeros((0, 3))]
)
def test_what_is_no_probability(bad):
    with pytest.raises(InputError, match="class probabilities are"):
        inception_score(bad)


def test_fewer_samples_than_splits():
    with pytest.raises(InputError, match="3 images cannot be split into 10"):
        shuffled_inception_score(np.eye(3))
