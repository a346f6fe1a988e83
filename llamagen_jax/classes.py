"""Class labels as people write them: numbers or names."""

import difflib
import functools
import re
from collections.abc import Sequence
from pathlib import Path

from llamagen_jax.errors import InputError

_LISTED = 10


def imagenet_names() -> tuple[str, ...]:
    """The 1000 names of ImageNet's classes by label, such as "toilet tissue, toilet paper".

    They are the lemmas of WordNet 3.0; `imagenet_classes.txt` states the source and its licence.
    """
    return tuple(name for _, name in _imagenet_classes())


def imagenet_ids() -> tuple[str, ...]:
    """The WordNet ids of ImageNet's classes by label, such as "n02119789".

    The challenge's folders are called by them.
    """
    return tuple(wordnet_id for wordnet_id, _ in _imagenet_classes())


def full_names(recorded: Sequence[str], num_classes: int) -> tuple[str, ...]:
    """The names of a generator's classes by label; () where they are not known.

    Args:
      recorded: those that its folder tells; () for none. ImageNet's ids become its names, and a
        generator of 1000 classes without names has ImageNet's.
    """
    unnamed = not recorded and num_classes == 1000
    return imagenet_names() if unnamed or tuple(recorded) == imagenet_ids() else tuple(recorded)


@functools.cache
def _imagenet_classes() -> tuple[tuple[str, str], ...]:
    text = Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="utf-8")
    lines = (line.partition(" ") for line in text.splitlines() if not line.startswith("#"))
    return tuple((wordnet_id, name) for wordnet_id, _, name in lines)


def find_class(text: str, names: Sequence[str], num_classes: int) -> int:
    """The label that `text` means.

    Args:
      text: a class name or one of its synonyms, a number below `num_classes`, or a part of exactly
        one class name, in any case; a WordNet id where the names are ImageNet's.
      names: class names by label, synonyms separated by commas; empty when the classes have none.
      num_classes: of the model.

    Raises:
      InputError: out of range, ambiguous or unknown; the candidates are listed.
    """
    wanted = text.lower()
    synonyms = [[name.lower(), *re.split(r",\s*", name.lower())] for name in names]
    exact = [label for label, words in enumerate(synonyms) if wanted in words]
    if len(exact) == 1:
        return exact[0]
    if wanted in imagenet_ids() and tuple(names) == imagenet_names():
        return imagenet_ids().index(wanted)
    if re.fullmatch(r"-?\d+", text):
        if not 0 <= int(text) < num_classes:
            raise InputError(f"class {text} is out of range: classes are 0 to {num_classes - 1}")
        return int(text)
    if not names:
        raise InputError(
            f"class '{text}' is not a number, and the names of this generator's classes are not "
            f"known; give a number from 0 to {num_classes - 1}"
        )
    found = exact or [label for label, name in enumerate(names) if wanted in name.lower()]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"class '{text}' is ambiguous; give one of {_list(found, names)}")
    words = [word for words in synonyms for word in words]
    close = difflib.get_close_matches(wanted, words, n=3)
    similar = [label for label, words in enumerate(synonyms) if set(close) & set(words)]
    raise InputError(
        f"there is no class '{text}'; give a number or a name, such as "
        f"{_list(similar or range(len(names)), names)}"
    )


def _list(labels: Sequence[int], names: Sequence[str]) -> str:
    listed = ", ".join(f"{label} '{names[label]}'" for label in labels[:_LISTED])
    return listed + (f" and {len(labels) - _LISTED} more" if len(labels) > _LISTED else "")
