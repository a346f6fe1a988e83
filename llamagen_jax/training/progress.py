"""What training steps tell while they run: the progress bar, averages, speed, and the alarm."""

import math
import time
from typing import Any

import jax
import numpy as np
from absl import logging
from clu.metrics import Collection
from tqdm import tqdm

from llamagen_jax import sharding
from llamagen_jax.checkpoint import Checkpointer
from llamagen_jax.errors import InputError
from llamagen_jax.training.optimizer import learning_rate
from llamagen_jax.training.task import Task


class Progress:
    """Follows the steps of a run; shows a bar and stops the run when it diverges.

    Args:
      task: of the run.
      checkpoints: of the run, named when it stops.
      start: the step that the run goes on from.
      step_flops: FLOPs of a step.
      peak: FLOP/s of a device.
    """

    def __init__(
        self, task: Task, checkpoints: Checkpointer, start: int, step_flops: float, peak: float
    ):
        self._task, self._checkpoints = task, checkpoints
        self._speed = _Speed(task, start, step_flops, peak)
        self._step, self._newest = start, None
        self._average: Any = None
        self._skipped = 0
        self._bar = tqdm(
            total=task.config.steps,
            initial=start,
            desc=task.config.task,
            unit="step",
            dynamic_ncols=True,
            disable=jax.process_index() > 0,
        )

    def add(self, step: int, metrics: Collection, skipped: int) -> None:
        """Takes note of a step that was just dispatched.

        Args:
          step: its number, counted from 1.
          metrics: what it returned, which need not be computed yet.
          skipped: records left out of this process's share of its batch.

        Raises:
          InputError: as `check_finite`, for the step before.
        """
        if self._newest is not None:
            # One step late, so that the device always has the next step to run.
            self._bar.set_postfix_str(f"loss {self.check_finite():.4g}", refresh=False)
        # Not jitted: jit's cache may take collections of another class but equal structure for
        # these.
        self._average = metrics if self._average is None else self._average.merge(metrics)
        self._skipped += skipped
        self._step, self._newest = step, metrics
        self._bar.update()

    def check_finite(self) -> float:
        """The newest step's loss.

        Finite losses and gradient norms mean that the updates were finite too, so a state that was
        checked is good to keep.

        Raises:
          InputError: a loss or a gradient norm is not finite.
        """
        values = {name: float(getattr(self._newest, name).compute()) for name in self._task.finite}
        for name, value in values.items():
            if not math.isfinite(value):
                latest = self._checkpoints.latest_step
                kept = "there is no checkpoint yet" if latest is None else f"step {latest} is kept"
                raise InputError(
                    f"{name} is {value} at step {self._step}, training stopped and {kept}; "
                    "try a lower optimizer.learning_rate or a longer optimizer.warmup_steps"
                )
        return values["loss"]

    def since_last_log(self) -> dict[str, Any]:
        """Averages, speed and skipped records since this was last called; warns of bad ones.

        Raises:
          InputError: as `check_finite`.
        """
        self.check_finite()
        config = self._task.config
        values = (
            self._average.compute()
            | self._speed(self._step)
            | {
                "learning_rate": learning_rate(config.optimizer, config.steps)(self._step - 1),
                "skipped_records": sharding.fetch(np.array([self._skipped])).sum(),
            }
        )
        if self._task.warning and (warning := self._task.warning(self._step, values)):
            logging.warning(warning)
        self._compare(float(values["loss"]))
        self._average, self._skipped = None, 0
        return values

    def _compare(self, loss: float) -> None:
        """Tells where other runs of this configuration were, at the steps where that is known."""
        for step, least, greatest in self._task.config.expected_loss:
            if step == self._step:
                told = f"loss {loss:.4g} at step {step}, expected {least:g} to {greatest:g}"
                if least <= loss <= greatest:
                    self._bar.write(told)
                else:
                    logging.warning("%s: check the data, and what differs from its config", told)

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()


class _Speed:
    """Speed of training since it was last asked for."""

    def __init__(self, task: Task, step: int, step_flops: float, peak: float):
        self._step, self._time = step, time.perf_counter()
        self._codes = task.config.batch_size * task.codes_per_example / jax.device_count()
        self._flops = step_flops / jax.device_count()
        self._peak = peak

    def __call__(self, step: int) -> dict[str, float]:
        before, self._step = self._step, step
        started, self._time = self._time, time.perf_counter()
        steps_per_second = (step - before) / (self._time - started)
        return {
            "steps_per_second": steps_per_second,
            "codes_per_second_per_device": steps_per_second * self._codes,
            "model_flops_utilization": steps_per_second * self._flops / self._peak,
        }
