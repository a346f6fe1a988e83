"""What a task gives the training loop."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from clu import metrics

from llamagen_jax.data.pipeline import Condition
from llamagen_jax.training.optimizer import TrainState


@dataclasses.dataclass(frozen=True)
class Task:
    """Pure functions of one kind of training; the loop jits and shards them.

    Attributes:
      init: the state at step 0.
      train_step: (state, batch) -> (state, metrics); metrics has at least loss and grad_norm.
      eval_step: (params, batch with "weight") -> metrics, which the loop merges over batches.
      preview: (params, batch) -> uint8 images [rows, columns, H, W, 3]; None when there
        is nothing to show.
      example: shapes and dtypes of one row of the batches that steps take.
      codes_per_example: of the image that an example is.
      flops_per_example: of a training step without recomputation.
      condition: what stands beside images or codes in the data's batches, see
        `data.pipeline.train_batches`.
      encode: a batch of the data, on the devices -> the batch that steps take; None where they are
        the same.
      load: puts weights that come from files into a state fresh from `init`; None without any.
      warning: (step, logged values) -> a line to warn with, or None; None when nothing is watched.
    """

    init: Callable[[], TrainState]
    train_step: Callable[[TrainState, dict], tuple[TrainState, metrics.Collection]]
    eval_step: Callable[[Any, dict], metrics.Collection]
    preview: Callable[[Any, dict], np.ndarray] | None
    example: dict[str, jax.ShapeDtypeStruct]
    codes_per_example: int
    flops_per_example: float
    condition: Condition
    encode: Callable[[dict], dict] | None = None
    load: Callable[[TrainState], TrainState] | None = None
    warning: Callable[[int, Mapping[str, Any]], str | None] | None = None
