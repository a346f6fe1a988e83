"""Figures with their errors: a table for people, JSON for programs, a row for documents."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One number that says how good images are.

    Attributes:
      name: such as "FID".
      value: of the figure.
      error: its standard error by the samples at hand; NaN where none is known.
      compare: what it may be compared with.
    """

    name: str
    value: float
    error: float
    compare: str


def table(figures: Sequence[Figure]) -> str:
    """Lines of the figures, their errors and what to compare them with."""
    width = max(len(figure.name) for figure in figures)
    return "\n".join(
        f"{f.name:{width}}  {_number(f.value):>10}  {_error(f.error):<12}  {f.compare}"
        for f in figures
    )


def row(name: str, figures: Sequence[Figure]) -> str:
    """A row of a Markdown table, its columns in the figures' order."""
    return "| " + " | ".join([name, *(_number(figure.value) for figure in figures)]) + " |"


def as_json(figures: Sequence[Figure], about: Mapping[str, Any]) -> dict[str, Any]:
    """What a file holds: `about` what was compared, and every figure.

    JSON has no nan and no infinity: they are null.
    """
    listed = [
        {key: None if _unreal(value) else value for key, value in asdict(figure).items()}
        for figure in figures
    ]
    return {**about, "figures": listed}


def _unreal(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _number(value: float) -> str:
    return f"{value:.5g}"


def _error(value: float) -> str:
    return "" if math.isnan(value) else f"± {value:.2g}"
