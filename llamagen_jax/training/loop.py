"""The training loop of every task: steps, evaluation, pictures, checkpoints, resumption."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from llamagen_jax import flops, sharding
from llamagen_jax.checkpoint import Checkpointer
from llamagen_jax.data.pipeline import eval_batches, train_batches
from llamagen_jax.files import told_full_disk
from llamagen_jax.interruption import Interrupted
from llamagen_jax.training import work_folder
from llamagen_jax.training.config import TrainConfig
from llamagen_jax.training.optimizer import TrainState
from llamagen_jax.training.progress import Progress
from llamagen_jax.training.stop_request import StopRequest
from llamagen_jax.training.task import OpenTask


def train(task: OpenTask, workdir: Path, *, change_plan: bool = False) -> TrainState:
    """Trains to `task.config.steps`, from the newest checkpoint in `workdir` where there is one.

    A run that was killed and started again ends with the same bits as one that was not: a
    checkpoint holds the whole state, and every batch and random key comes from (seed, step).

    Args:
      task: of `tasks.open_task`.
      workdir: gets config.json, checkpoints/, metrics.jsonl, events/ and samples/.
      change_plan: go on also where results jump, see `work_folder.check_plan`.

    Returns:
      The final state.

    Raises:
      InputError: the task does not fit the devices or what is in `workdir`, another run is at work
        there, its disk is full, no batch can be read, or the loss stops being finite (the last
        checkpoint from before that is kept).
      Interrupted: a signal came, and the checkpoint of the step after which it did is saved.
    """
    # tensorboardX imports PyTorch where that is installed; no mistake should have to wait for that.
    from llamagen_jax.training.metrics_log import MetricsLog

    config = task.config
    peak = flops.peak(task.compute_dtype)
    with contextlib.ExitStack() as stack:
        stack.enter_context(told_full_disk(workdir))
        stack.enter_context(work_folder.locked(workdir))
        stack.enter_context(jax.set_mesh(task.mesh))
        checkpoints = stack.enter_context(contextlib.closing(Checkpointer(workdir)))
        work_folder.check_plan(workdir, task, checkpoints.latest_step, change_plan)
        state = _first_state(task, checkpoints)
        start = int(state.step)
        steps = range(start + 1, config.steps + 1)
        checkpoints.check_space(state, sum(_due(config, s, config.checkpoint_every) for s in steps))
        record_offset = work_folder.record_plan(workdir, task, start)
        batches = train_batches(
            task.source,
            config.data,
            seed=config.seed,
            start=start,
            record_offset=record_offset,
            **_share(task),
        )
        stack.enter_context(contextlib.closing(batches))
        log = stack.enter_context(contextlib.closing(MetricsLog(workdir, start)))
        train_step = jax.jit(task.train_step, donate_argnums=0)
        eval_step = jax.jit(task.eval_step)
        # JAX keeps this trace for the calls.
        step_flops = task.step_flops(train_step.trace(state, task.batch_shapes(task.mesh)))
        progress = Progress(task, checkpoints, start, step_flops, peak)
        stack.enter_context(contextlib.closing(progress))
        stop_request = stack.enter_context(StopRequest(task.mesh))

        for step in steps:
            batch = next(batches)
            skipped = int(batch.pop("skipped").sum())
            batch = task.put(batch)
            state, metrics = train_step(state, batch)
            progress.add(step, metrics, skipped)
            stop = stop_request.after_step()
            if stop or _due(config, step, config.log_every):
                log.scalars(step, "train", progress.since_last_log())
            if task.held_out is not None and _due(config, step, config.eval_every):
                log.scalars(step, "eval", _evaluate(task, eval_step, state))
            if task.preview and _due(config, step, config.sample_every):
                shown = batch if task.held_out is None else next(_held_out_batches(task))
                log.pictures(step, task.preview(state.eval_params, shown))
            if task.measure and _due(config, step, config.evaluate.every):
                held_out = functools.partial(_held_out_batches, task)
                log.scalars(step, "eval", task.measure(state.eval_params, held_out))
            if stop or _due(config, step, config.checkpoint_every):
                progress.check_finite()
                checkpoints.save(state)
            if stop:
                raise Interrupted(stop, f"{workdir} keeps step {step}")
        return state


def _first_state(task: OpenTask, checkpoints: Checkpointer) -> TrainState:
    """The newest checkpoint's state, or the one before the first step, in its place on the mesh."""
    rules = task.config.sharding_rules
    if checkpoints.latest_step is not None:
        return checkpoints.restore(sharding.abstract_init(task.init, rules, task.mesh))
    state = sharding.sharded_init(task.init, rules, task.mesh)
    return task.load(state) if task.load else state


def _due(config: TrainConfig, step: int, every: int) -> bool:
    return step == config.steps or bool(every and step % every == 0)


def _evaluate(task: OpenTask, eval_step: Callable, state: TrainState) -> dict[str, Any]:
    """Metrics over the whole of the held-out data."""
    metrics = (eval_step(state.eval_params, batch) for batch in _held_out_batches(task))
    return functools.reduce(lambda a, b: a.merge(b), metrics).compute()


def _held_out_batches(task: OpenTask) -> Iterator[dict[str, jax.Array]]:
    """One pass over the held-out data, which there is, on the devices as steps take it."""
    assert task.held_out is not None
    return map(task.put, eval_batches(task.held_out, task.config.data, **_share(task)))


def _share(task: OpenTask) -> dict[str, Any]:
    """What batches hold beside images or codes, and this process's rows of them."""
    return {
        "condition": task.condition,
        "batch_size": task.config.batch_size,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
    }
