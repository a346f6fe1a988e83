"""Inception Score: how sure the network is of each sample, and how many classes it sees in all.

Axes: N samples, C classes.
"""

import numpy as np
from absl import logging
from scipy.special import entr, rel_entr

from llamagen_jax.errors import InputError
from llamagen_jax.evaluate.pairwise import blocks


def inception_score(probabilities: np.ndarray, split_size: int = 5000) -> float:
    """Mean Inception Score of consecutive chunks, as ADM's evaluator computes it.

    It depends on the order: chunks that lack classes score low. Samples that come sorted by class
    are warned of. With `split_size` N there is one chunk and the order is of no matter; that score
    is a little higher than that of shuffled chunks.

    Args:
      probabilities: real [N, C], each row sums to 1.
      split_size: samples in a chunk; the last may have fewer.

    Raises:
      InputError: there are no probabilities, or other values than probabilities.
    """
    probabilities = np.asarray(probabilities)
    _check_probabilities(probabilities)
    starts = np.arange(0, len(probabilities), split_size)
    chunks = np.split(probabilities, starts[1:])
    scores = [_log_score(chunk) for chunk in chunks]
    if len(chunks) > 1:
        _warn_of_order(probabilities, float(np.mean(scores)), split_size)
    return float(np.mean(np.exp(scores)))


def shuffled_inception_score(
    probabilities: np.ndarray, *, splits: int = 10, seed: int = 2020
) -> float:
    """Mean Inception Score of shuffled chunks, as torch-fidelity computes it.

    Args:
      probabilities: real [N, C], each row sums to 1.
      splits: number of chunks.

    Raises:
      InputError: there are fewer probabilities than splits, or other values than probabilities.
    """
    _check_probabilities(probabilities)
    count = len(probabilities)
    if count < splits:
        raise InputError(f"{count} images cannot be split into {splits}; give more images")
    # The generator that torch-fidelity draws from.
    order = np.random.RandomState(seed).permutation(count)
    bounds = [count * split // splits for split in range(1, splits)]
    chunks = np.split(order, bounds)
    return float(np.mean([np.exp(_log_score(probabilities[chunk])) for chunk in chunks]))


def inception_score_influence(probabilities: np.ndarray) -> np.ndarray:
    """How each sample pulls the score of one chunk, float64 [N]: the mean is 0.

    Args:
      probabilities: real [N, C], each row sums to 1.
    """
    marginal = probabilities.mean(axis=0, dtype=np.float64)
    divergences = np.concatenate(
        [
            rel_entr(probabilities[rows], marginal, dtype=np.float64).sum(axis=1)
            for rows in blocks(len(probabilities))
        ]
    )
    return np.exp(divergences.mean()) * (divergences - divergences.mean())


def _check_probabilities(probabilities: np.ndarray) -> None:
    if probabilities.ndim != 2 or 0 in probabilities.shape:
        raise InputError(f"class probabilities are [N, C], not {probabilities.shape}")
    for rows in blocks(len(probabilities)):
        part = probabilities[rows]
        if not ((part >= 0).all() and np.allclose(part.sum(axis=1), 1, atol=1e-3)):
            raise InputError(
                "class probabilities are not negative and sum to 1 in every row, and these do not; "
                "check the images and the network"
            )


def _log_score(probabilities: np.ndarray) -> float:
    """Logarithm of the score of one chunk: its marginal's entropy less its samples' mean one."""
    marginal = probabilities.mean(axis=0, dtype=np.float64)
    own = sum(
        entr(probabilities[rows], dtype=np.float64).sum() for rows in blocks(len(probabilities))
    )
    return float(entr(marginal).sum() - own / len(probabilities))


def _warn_of_order(probabilities: np.ndarray, log_score: float, split_size: int) -> None:
    """Warns where chunks score lower than chance makes them.

    The marginal of `split_size` random samples has less entropy than that of all, to first order by
    half the sum of its relative variances. What is beyond twice that comes from the order.
    """
    marginal = probabilities.mean(axis=0, dtype=np.float64)
    variance = probabilities.var(axis=0, dtype=np.float64)
    seen = marginal > 0
    chance = (variance[seen] / marginal[seen]).sum() / (2 * split_size)
    whole = _log_score(probabilities)
    if log_score < whole - 2 * chance - 0.01:
        logging.warning(
            "the samples seem to be sorted by class: chunks of %d have an Inception Score of %.2f, "
            "all together %.2f; shuffle them",
            split_size,
            np.exp(log_score),
            np.exp(whole),
        )
