"""What a task gives the training loop."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from clu import metrics
from jax.sharding import Mesh

from llamagen_jax import sharding
from llamagen_jax.data.pipeline import Condition
from llamagen_jax.data.sources import Source
from llamagen_jax.training.config import TrainConfig
from llamagen_jax.training.evaluation import Measure
from llamagen_jax.training.optimizer import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """Pure functions of one kind of training, which the loop jits and shards; nothing is opened.

    Attributes:
      config: of the run.
      compute_dtype: of the model.
      init: the state at step 0, with weights drawn.
      train_step: (state, batch) -> (state, metrics); metrics has at least those of `finite`.
      eval_step: (params, batch with "weight") -> metrics, which the loop merges over batches.
      example: shapes and dtypes of one row of the batches that steps take.
      codes_per_example: of the image that an example is, on average.
      step_flops: FLOPs that a training step needs, without recomputation; from its trace, for where
        they are counted there.
      finite: metrics of a training step that are finite as long as its updates are.
      warning: (step, logged values) -> a line to warn with, or None; None when nothing is watched.
    """

    config: TrainConfig
    compute_dtype: str
    init: Callable[[], TrainState]
    train_step: Callable[[Any, dict], tuple[Any, metrics.Collection]]
    eval_step: Callable[[Any, dict], metrics.Collection]
    example: dict[str, jax.ShapeDtypeStruct]
    codes_per_example: float
    step_flops: Callable[[jax.stages.Traced], float]
    finite: tuple[str, ...] = ("loss", "grad_norm")
    warning: Callable[[int, Mapping[str, Any]], str | None] | None = None

    def batch_shapes(self, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, dtypes and shardings of the batches of `config.batch_size` that steps take."""
        size, rows = self.config.batch_size, sharding.batch_sharding(mesh)
        return {
            name: jax.ShapeDtypeStruct((size, *leaf.shape), leaf.dtype, sharding=rows)
            for name, leaf in self.example.items()
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenTask(Task):
    """A task with all that it reads from files, opened: the loop opens nothing itself.

    Attributes:
      mesh: the devices that the run is on.
      source: the training data.
      held_out: the data to evaluate on, None for none.
      condition: what stands beside images or codes in the data's batches, see
        `data.pipeline.train_batches`.
      check: raises InputError for a batch of the data, on the host, that the model cannot learn
        from; None where there is nothing to check.
      encode: a batch of the data, on the devices -> the batch that steps take; None where they are
        the same.
      load: puts weights that come from files into a state fresh from `init`; None without any.
      preview: (params, batch) -> uint8 images [rows, columns, H, W, 3]; None when there
        is nothing to show.
      measure: figures of the images that the model makes; None where the configuration asks for
        none.
      may_change: keys of the configuration that may differ when the run goes on, beside those
        that may in every task.
    """

    mesh: Mesh
    source: Source
    held_out: Source | None
    condition: Condition
    check: Callable[[dict], None] | None = None
    encode: Callable[[dict], dict] | None = None
    load: Callable[[Any], Any] | None = None
    preview: Callable[[Any, dict], np.ndarray] | None = None
    measure: Measure | None = None
    may_change: tuple[str, ...] = ()

    def put(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """This process's share of a batch of the data, on the devices as steps take it."""
        if self.check:
            self.check(batch)
        placed = sharding.put_batch(batch, self.mesh)
        return self.encode(placed) if self.encode else placed
