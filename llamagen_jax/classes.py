"""Class labels as people write them: numbers or names."""

from collections.abc import Sequence

from llamagen_jax.errors import InputError, nearest

_LISTED = 10


def find_class(text: str, names: Sequence[str], num_classes: int) -> int:
    """The label that `text` means.

    Args:
      text: a number below `num_classes`, or a class name or a part of exactly one, in any case.
      names: class names by label; empty when the model's classes have none.
      num_classes: of the model.

    Raises:
      InputError: out of range, unknown (the nearest name is given) or ambiguous (all are).
    """
    exact = [i for i, name in enumerate(names) if name.lower() == text.lower()]
    if len(exact) == 1:
        return exact[0]
    if text.lstrip("-").isdigit():
        if not 0 <= int(text) < num_classes:
            raise InputError(f"class {text} is out of range: classes are 0 to {num_classes - 1}")
        return int(text)
    if not names:
        raise InputError(
            f"class '{text}' is not a number, and the names of this generator's classes are not "
            f"known; give a number from 0 to {num_classes - 1}"
        )
    found = [i for i, name in enumerate(names) if text.lower() in name.lower()]
    if len(found) == 1:
        return found[0]
    if not found:
        raise InputError(f"there is no class '{text}'; {nearest(text, names)}")
    listed = ", ".join(f"{i} '{names[i]}'" for i in found[:_LISTED])
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    raise InputError(f"class '{text}' is ambiguous: {listed}{more}; give one of these")
