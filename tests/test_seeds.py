import itertools

import jax
import numpy as np
import pytest

from llamagen_jax import seeds
from llamagen_jax.errors import InputError
from llamagen_jax.sampling.generate import sample_keys

NUMBERS = [0, 5, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 5, 2**63, 2**64 - 1]


def bits(keys) -> list[tuple[int, ...]]:
    return [tuple(row) for row in np.asarray(jax.random.key_data(keys)).reshape(-1, 2).tolist()]


def test_seeds_of_64_bits_are_distinct():
    assert len({bits(seeds.key(seed))[0] for seed in NUMBERS}) == len(NUMBERS)
    # Down to those that JAX's own conversion of seeds takes.
    for seed in NUMBERS[:5]:
        assert bits(seeds.key(seed)) == bits(jax.random.key(np.uint32(seed)))
    assert bits(seeds.key(np.uint64(2**63))) == bits(seeds.key(2**63))


@pytest.mark.parametrize("kind", [list, lambda ids: np.array(ids, np.uint64)])
def test_sample_ids_of_64_bits_are_distinct(kind):
    drawn = bits(sample_keys(3, kind(NUMBERS)))
    assert len(set(drawn)) == len(NUMBERS)
    for seed, sample_id in itertools.product((0, 2**40), (0, 7, 2**31 - 1)):
        expected = jax.random.fold_in(seeds.key(seed), sample_id)
        for ids in ([sample_id], np.array([sample_id]), jax.numpy.array([sample_id])):
            assert bits(sample_keys(seed, ids)) == bits(expected)
    assert bits(sample_keys(3, seeds.halves(kind(NUMBERS)))) == drawn


@pytest.mark.parametrize("number", [-1, 2**64, 1.0, True, "7", None])
def test_other_numbers_are_refused(number):
    with pytest.raises(InputError, match=r"^seed=.* must be a whole number from 0 to 2\^64 - 1$"):
        seeds.key(number)
    with pytest.raises(InputError, match=r"^sample id=\S+ must be"):
        seeds.halves([number])
