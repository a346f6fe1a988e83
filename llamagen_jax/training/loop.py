"""The training loop of both tasks: data, steps, evaluation, pictures, checkpoints, resumption."""

import contextlib
import dataclasses
import functools
import json
import math
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from tqdm import tqdm

from llamagen_jax import flops, sharding
from llamagen_jax.checkpoint import Checkpointer
from llamagen_jax.data.pipeline import eval_batches, train_batches
from llamagen_jax.data.sources import Source, open_source
from llamagen_jax.errors import InputError
from llamagen_jax.files import staged
from llamagen_jax.models.vqgan import VQGAN
from llamagen_jax.training import generator, online, tokenizer
from llamagen_jax.training.config import GeneratorTraining, TokenizerTraining
from llamagen_jax.training.metrics_log import MetricsLog
from llamagen_jax.training.optimizer import TrainState, learning_rate
from llamagen_jax.training.task import Task
from llamagen_jax.weights.export import read_config

# Keys that may differ when a work folder's run goes on; any other would make it another run.
_MAY_CHANGE = ("steps", "sample.", "mesh.", "sharding_rules", "data.eval")
_ENCODERS = ("tokenizer", "text_encoder")


def train(
    config: TokenizerTraining | GeneratorTraining,
    workdir: Path,
    vqgan: tuple[VQGAN, Any] | None = None,
) -> TrainState:
    """Trains to `config.steps`, from the newest checkpoint in `workdir` where there is one.

    A run that was killed and started again ends with the same bits as one that was not: a
    checkpoint holds the whole state, and every batch and random key comes from (seed, step).

    Args:
      config: the run.
      workdir: gets config.json, checkpoints/, metrics.jsonl, events/ and samples/.
      vqgan: model and parameters of the tokenizer of a generator's codes; None draws no samples
        and trains on packed codes only.

    Returns:
      The final state.

    Raises:
      InputError: the configuration does not fit the devices, the data or what is in `workdir`, or
        the loss stops being finite (the last checkpoint from before that is kept).
    """
    mesh = make_mesh(config)
    source = open_source(config.data.source, config.data.train)
    if config.data.eval:
        open_source(config.data.source, config.data.eval)  # raises now, not after hours
    if isinstance(config, TokenizerTraining):
        task = tokenizer.make_task(config, tokenizer.load_weights(config))
    else:
        task = _generator_task(config, source, vqgan, mesh)
    # Packed data tell which encoders they are of; images are encoded by those that are named.
    may_change = _MAY_CHANGE if task.encode else (*_MAY_CHANGE, *_ENCODERS)
    _open_workdir(workdir, config, source, may_change)
    peak = flops.peak(config.model.dtype)

    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        checkpoints = stack.enter_context(contextlib.closing(Checkpointer(workdir)))
        state = _start(task, config, mesh, checkpoints)
        batches = train_batches(
            config.data, seed=config.seed, start=int(state.step), **_share(config, task)
        )
        stack.enter_context(contextlib.closing(batches))
        log = stack.enter_context(contextlib.closing(MetricsLog(workdir, int(state.step))))

        def put(batch: dict) -> dict:
            placed = sharding.put_batch(batch, mesh)
            return task.encode(placed) if task.encode else placed

        train_step = jax.jit(task.train_step, donate_argnums=0)
        eval_step = jax.jit(task.eval_step)
        bar = stack.enter_context(_progress_bar(config, int(state.step)))
        check = functools.partial(_check_finite, checkpoints=checkpoints)
        speed = _Speed(config, task, peak, int(state.step))
        last = merged = None
        skipped = 0

        for step in range(int(state.step) + 1, config.steps + 1):
            batch = next(batches)
            skipped += int(batch.pop("skipped").sum())
            state, now = train_step(state, put(batch))
            # Not jitted: jit's cache may take collections of another class but equal structure for
            # these.
            merged = now if merged is None else merged.merge(now)
            if last is not None:
                # One step late, so that the device always has the next step to run.
                bar.set_postfix_str(f"loss {check(last, step - 1):.4g}", refresh=False)
            last = now
            bar.update()

            if _due(config, step, config.log_every):
                check(now, step)
                values = (
                    merged.compute()
                    | speed(step)
                    | {
                        "learning_rate": learning_rate(config.optimizer, config.steps)(step - 1),
                        "skipped_records": sharding.fetch(np.array([skipped])).sum(),
                    }
                )
                log.scalars(step, "train", values)
                if task.warning and (warning := task.warning(step, values)):
                    logging.warning(warning)
                merged, skipped = None, 0
            if config.data.eval and _due(config, step, config.eval_every):
                held_out = eval_batches(config.data, **_share(config, task))
                metrics = (eval_step(state.eval_params, put(b)) for b in held_out)
                total = functools.reduce(lambda a, b: a.merge(b), metrics)
                log.scalars(step, "eval", total.compute())
            if task.preview and _due(config, step, config.sample_every):
                if config.data.eval:
                    batch = next(eval_batches(config.data, **_share(config, task)))
                log.pictures(step, task.preview(state.eval_params, put(batch)))
            if _due(config, step, config.checkpoint_every):
                check(now, step)
                checkpoints.save(state)
        return state


class _Speed:
    """Speed of training since it was last asked for."""

    def __init__(self, config, task: Task, peak: float, step: int):
        self._step, self._time = step, time.perf_counter()
        self._codes = config.batch_size * task.codes_per_example / jax.device_count()
        self._flops = config.batch_size * task.flops_per_example / jax.device_count()
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


def _due(config, step: int, every: int) -> bool:
    return step == config.steps or bool(every and step % every == 0)


def _check_finite(metrics: Any, step: int, checkpoints: Checkpointer) -> float:
    """The step's loss.

    Finite losses and gradient norms mean that the updates were finite too, so a state that was
    checked is good to keep.
    """
    checked = ("loss", "grad_norm", "discriminator_loss", "discriminator_grad_norm")
    present = [name for name in checked if hasattr(metrics, name)]
    values = {name: float(getattr(metrics, name).compute()) for name in present}
    for name, value in values.items():
        if not math.isfinite(value):
            latest = checkpoints.latest_step
            kept = "there is no checkpoint yet" if latest is None else f"step {latest} is kept"
            raise InputError(
                f"{name} is {value} at step {step}, training stopped and {kept}; "
                "try a lower optimizer.learning_rate or a longer optimizer.warmup_steps"
            )
    return values["loss"]


def make_task(config: TokenizerTraining | GeneratorTraining) -> Task:
    """The task that the configuration is of, without weights from files and without samples."""
    module = tokenizer if isinstance(config, TokenizerTraining) else generator
    return module.make_task(config)


def make_mesh(config: TokenizerTraining | GeneratorTraining) -> Mesh:
    """The mesh of `config.mesh`.

    Raises:
      InputError: it does not fit the devices, or the batch does not divide over it.
    """
    mesh = sharding.make_mesh(**dataclasses.asdict(config.mesh))
    ways, parts = mesh.shape["data"] * mesh.shape["fsdp"], ""
    if isinstance(config, GeneratorTraining) and config.accumulation_steps > 1:
        ways *= config.accumulation_steps
        parts = f" and accumulation_steps={config.accumulation_steps}"
    if config.batch_size % ways:
        raise InputError(
            f"config.batch_size={config.batch_size} is not divisible by the {ways} ways that "
            f"mesh data={mesh.shape['data']} x fsdp={mesh.shape['fsdp']}{parts} split it; "
            f"the nearest that is: {max(round(config.batch_size / ways), 1) * ways}"
        )
    return mesh


def _share(config, task: Task) -> dict[str, Any]:
    return {
        "condition": task.condition,
        "batch_size": config.batch_size,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
    }


def _generator_task(config: GeneratorTraining, source: Source, vqgan, mesh: Mesh) -> Task:
    packed = generator.holds_codes(source)
    if packed:
        generator.check_codes(config, source, vqgan)
    else:
        generator.check_classes(config, source)
    task = generator.make_task(config, vqgan, generator.load_init(config))
    return task if packed else online.from_images(task, config, vqgan, mesh)


def _open_workdir(workdir: Path, config, source: Source, may_change: tuple[str, ...]) -> None:
    """Makes the folder, or checks that the run in it is the one to go on with."""
    # Over another number of records the order would be another.
    data = {"class_names": source.class_names, "records": len(source)}
    values = json.loads(json.dumps(dataclasses.asdict(config) | data))
    path = workdir / "config.json"
    if path.exists():
        before, after = _flatten(read_config(workdir)), _flatten(values)
        for key in before.keys() | after.keys():
            free = key.startswith(may_change) or key.endswith("_every")
            if before.get(key) != after.get(key) and not free:
                raise InputError(
                    f"{workdir} holds a run with {key}={before.get(key)!r}, not "
                    f"{after.get(key)!r}; go on with that value or choose another --workdir"
                )
    if jax.process_index() == 0:
        with staged(path, overwrite=True) as partial:
            partial.write_text(json.dumps(values, indent=2) + "\n")


def _flatten(values: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _start(task: Task, config, mesh: Mesh, checkpoints: Checkpointer) -> TrainState:
    """The newest checkpoint's state, or the one before the first step, in its place on the mesh."""
    if checkpoints.latest_step is None:
        state = sharding.sharded_init(task.init, config.sharding_rules, mesh)
        return task.load(state) if task.load else state
    abstract = sharding.abstract_init(task.init, config.sharding_rules, mesh)
    return checkpoints.restore(abstract)


def _progress_bar(config, step: int) -> tqdm:
    return tqdm(
        total=config.steps,
        initial=step,
        desc=config.task,
        unit="step",
        dynamic_ncols=True,
        disable=jax.process_index() > 0,
    )
