"""What a format of weight files is: the files in which one code base keeps one kind of model."""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llamagen_jax.weights.kinds import Config
from llamagen_jax.weights.names import NameTable


class Hints(NamedTuple):
    """What is known of a file beside its tensors.

    Attributes:
      source: the file or folder, for messages.
      grid_size: side of the code grid, where it is known.
      n_heads: attention heads, where they are known.
    """

    source: Path
    grid_size: int | None = None
    n_heads: int | None = None


@dataclasses.dataclass(frozen=True)
class Format:
    """How one code base writes the weights of one kind of model.

    Attributes:
      origin: that code base, for messages.
      config: class of the configurations of its models.
      markers: tensors that only these files have together.
      infer: from the shapes of all tensors to the configuration; a KeyError names a tensor that the
        file lacks, an InputError says what is impossible or not told.
      table: from a configuration to the names in its files.
    """

    origin: str
    config: type
    markers: tuple[str, ...]
    infer: Callable[[Mapping[str, tuple[int, ...]], Hints], Config]
    table: Callable[[Any], NameTable]

    def holds(self, tensors: Collection[str]) -> bool:
        """Whether tensors of these names are in this format."""
        return all(marker in tensors for marker in self.markers)


def count(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    """Number of modules in the list whose names start with `prefix`."""
    indices = [int(m[1]) for n in shapes if (m := re.match(rf"{re.escape(prefix)}(\d+)", n))]
    return 1 + max(indices, default=-1)
