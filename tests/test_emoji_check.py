"""What `make demo-emoji` reads off images: the right answer of originals, a wrong one of others."""

import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from demos import emoji_check
from llamagen_jax.data.emoji_source import splits
from llamagen_jax.weights import lpips

SIZE = 32
PERSONS = [
    emoji
    for split in splits().values()
    for emoji in split
    if emoji.tone and emoji.name.split(" ")[:2] in (["woman", "farmer"], ["man", "pilot"])
]


@pytest.fixture(scope="module")
def pictures():
    return emoji_check.originals(PERSONS, SIZE)


def test_skin_tones_are_read_off_the_skin(pictures):
    assert pictures.shape == (12, SIZE, SIZE, 3)
    assert emoji_check.skin_tones(pictures, pictures, PERSONS) == 1
    order = {emoji.text: number for number, emoji in enumerate(PERSONS)}
    # Every person's next tone in place of its own.
    by_person = sorted(PERSONS, key=lambda e: (e.role, e.gender, e.tone))
    shifted = [*by_person[1:6], by_person[0], *by_person[7:], by_person[6]]
    others = pictures[[order[emoji.text] for emoji in shifted]]
    own = pictures[[order[emoji.text] for emoji in by_person]]
    assert emoji_check.skin_tones(own, others, by_person) == 0


def test_the_nearest_original_is_found(pictures):
    noise = np.random.default_rng(0).integers(-20, 21, pictures.shape)
    noisy = np.uint8(np.clip(pictures + noise, 0, 255))
    rng = np.random.default_rng(1)
    flat = {
        path: np.float32(rng.standard_normal(shape) / np.sqrt(np.prod(shape[:-1])))
        if path.endswith("kernel")
        else np.full(shape, path.startswith("head"), np.float32)
        for path, shape in lpips.shapes().items()
    }
    params = unflatten_dict(flat, sep="/")
    for nearest in (
        emoji_check.nearest_by_pixels(noisy, pictures),
        emoji_check.nearest_by_lpips(noisy, pictures, params),
    ):
        np.testing.assert_array_equal(nearest, range(12))


def test_what_is_right_of_the_nearest():
    woman, other_tone, man = (
        next(e for e in PERSONS if e.gender == gender and e.tone == tone)
        for gender, tone in (("woman", "dark"), ("woman", "light"), ("man", "dark"))
    )
    everything = [woman, other_tone, man]
    right = emoji_check.right(np.array([0, 1, 2, 2]), everything, [woman, woman, woman, man])
    assert right == (0.5, 0.75, 0.75)
