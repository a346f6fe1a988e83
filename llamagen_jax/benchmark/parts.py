"""The parts of LlamaGen that `benchmark` times."""

import dataclasses
import functools
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from llamagen_jax import flops, sharding, zoo
from llamagen_jax.benchmark import decoding, fid
from llamagen_jax.benchmark.bench import Bench, Setting, Timing, random_llama
from llamagen_jax.data.pipeline import train_batches
from llamagen_jax.data.sources import open_source
from llamagen_jax.evaluate.manifolds import manifold_hits
from llamagen_jax.models.inception import Inception
from llamagen_jax.models.vqgan import VQGAN
from llamagen_jax.training import config_files, dry_run, generator, tokenizer
from llamagen_jax.training.config import GeneratorTraining, TokenizerTraining, from_mapping
from llamagen_jax.training.task import Task
from llamagen_jax.training.tasks import make_mesh
from llamagen_jax.weights import export


def _train_generator(bench: Bench) -> Iterator[Timing]:
    s, config = bench.setting, generator_config(bench.setting, bench.setting.generator)
    task = generator.make_task(config)
    length = config.model.code_length
    batch = {
        "codes": jnp.zeros((s.batch_size, length), jnp.int32),
        "label": jnp.zeros(s.batch_size, jnp.int32),
    }
    call, work = _steps(task, batch)
    yield bench.time(
        "train step, generator",
        f"{s.generator} {s.dtype}, codes [{s.batch_size}, {length}]",
        call,
        count=s.batch_size * length,
        unit="codes",
        limit="matrix product",
        work=work,
    )


def _train_tokenizer(bench: Bench) -> Iterator[Timing]:
    s, config = bench.setting, _tokenizer_config(bench.setting)
    task = tokenizer.make_task(config)
    batch = {"image": jnp.zeros((s.image_batch_size, s.image_size, s.image_size, 3), jnp.uint8)}
    call, work = _steps(task, batch)
    yield bench.time(
        "train step, tokenizer",
        f"{s.tokenizer} {s.dtype}, images {list(batch['image'].shape)}",
        call,
        count=s.image_batch_size,
        unit="images",
        limit="matrix product",
        work=work,
    )


def _steps(task: Task, batch: dict) -> tuple[Callable[[], Any], float]:
    """A function that takes one training step, and the FLOPs of one."""
    step, state = jax.jit(task.train_step, donate_argnums=0), jax.jit(task.init)()

    def call():
        nonlocal state
        state, metrics = step(state, batch)
        return metrics

    return call, task.step_flops(step.trace(state, batch))


def _images(bench: Bench) -> Iterator[Timing]:
    s = bench.setting
    config = s.config(s.tokenizer)
    model, side = VQGAN(config), s.image_size // config.downsampling
    images = jnp.zeros((s.image_batch_size, s.image_size, s.image_size, 3))
    codes = jnp.zeros((s.image_batch_size, side, side), jnp.int32)
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])
    for method, inputs in (("encode", images), ("decode", codes)):
        function = jax.jit(functools.partial(model.apply, method=method))
        yield bench.time(
            f"{method} images",
            f"{s.tokenizer} {s.dtype}, {list(inputs.shape)}",
            functools.partial(function, variables, inputs),
            count=s.image_batch_size,
            unit="images",
            limit="matrix product",
            work=flops.count(function, variables, inputs),
        )


def _compile(bench: Bench) -> Iterator[Timing]:
    s = bench.setting
    for name in ("GPT-B", "GPT-XL"):
        seconds = []
        for _ in range(s.repeats):
            config = generator_config(s, name)
            started = time.perf_counter()
            # A new task each time, since JAX remembers what it traced.
            task, mesh = generator.make_task(config), make_mesh(config)
            state = sharding.abstract_init(task.init, config.sharding_rules, mesh)
            dry_run.trace_step(task, state, mesh).lower().compile()
            seconds.append(time.perf_counter() - started)
        median = statistics.median(seconds)
        yield Timing("compile the train step", f"{name} {s.dtype}", median, 1 / median, "programs")


def _load(bench: Bench) -> Iterator[Timing]:
    """Of a file that the system holds in memory, with the check of its digests and without any."""
    model, params = random_llama(bench.setting)
    params = jax.tree.map(lambda leaf: leaf.astype(bench.setting.dtype), params)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 1e9
    shapes = f"{bench.setting.generator} {bench.setting.dtype}, {size:.2f} GB"
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "export"
        export.write(folder, model, params)
        del params

        def load() -> dict:
            return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), zoo.load(folder)[1])

        yield bench.time("load an export", shapes, load, count=size, unit="GB")
        with (folder / "params.safetensors").open("r+b") as file:
            header = file.read(int.from_bytes(file.read(8), "little"))
            file.seek(8)
            # As if another program had written it.
            file.write(header.replace(b'"xxh3_128 ', b'"unknown_ '))
        yield bench.time("the same without digests", shapes, load, count=size, unit="GB")


def _evaluate(bench: Bench) -> Iterator[Timing]:
    images = np.zeros((bench.setting.image_batch_size * 8, 256, 256, 3), np.uint8)
    model = Inception()
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])
    run = jax.jit(model.apply)
    shapes = f"Inception, {list(images.shape)}"
    yield bench.time(
        "features of FID", shapes, lambda: run(variables, images), count=len(images), unit="images"
    )
    count, width = 10_000, 2048
    features = np.random.default_rng(0).standard_normal((2, count, width), np.float32)
    yield bench.time(
        "precision and recall",
        f"{count} x {count} of {width} features",
        lambda: np.array(manifold_hits(*features)),
        count=count,
        unit="images",
        limit="matrix product",
        # Three products: each set with itself, and with the other.
        work=3 * 2 * count**2 * width,
    )
    for job in fid.jobs(4 if bench.setting.tiny else 64):
        yield Timing(job.name, job.shapes, job.seconds, job.count / job.seconds, job.unit)


def _input(bench: Bench) -> Iterator[Timing]:
    with tempfile.TemporaryDirectory() as folder:
        size = _write_jpegs(Path(folder) / "class") // 1000
        for fast in (False, True):
            config = dataclasses.replace(
                _tokenizer_config(bench.setting).data, train=folder, fast_decode=fast, workers=0
            )
            source = open_source(config.source, config.train)
            batches = train_batches(source, config, batch_size=64, seed=0)
            yield bench.time(
                f"input pipeline, {'fast' if fast else 'parity'} decoding",
                f"JPEG 1024x768, {size} kB, to [64, 256, 256, 3], {os.cpu_count()} cores",
                lambda batches=batches: next(batches)["image"],
                count=64 / (os.cpu_count() or 1),
                unit="images per core",
            )
            batches.close()


BENCHMARKS = {
    "train step, generator": _train_generator,
    "train step, tokenizer": _train_tokenizer,
    "decode": decoding.decode,
    "parallel sampling": decoding.decoders,
    "prefill": decoding.prefill,
    "images": _images,
    "compile": _compile,
    "load": _load,
    "evaluate": _evaluate,
    "input pipeline": _input,
}


def generator_config(setting: Setting, name: str) -> GeneratorTraining:
    """The training of the paper, of the model `name` and on one device."""
    config: Any = config_files.load("c2i.py:B-256")
    config.model.update(dataclasses.asdict(setting.config(name)))
    config.batch_size = setting.batch_size
    return from_mapping(config.to_dict())


def _tokenizer_config(setting: Setting) -> TokenizerTraining:
    """The training of the paper, of the VQGAN alone: without its discriminator and LPIPS."""
    config: Any = config_files.load("vqgan.py:VQ-16")
    config.model.update(dataclasses.asdict(setting.config(setting.tokenizer)))
    config.batch_size = setting.image_batch_size
    config.loss.update(perceptual_weight=0.0, adversarial_weight=0.0)
    return from_mapping(config.to_dict())


def _write_jpegs(folder: Path, count: int = 64) -> int:
    """Writes pictures whose detail fades with its size, as in photographs; returns their bytes."""
    folder.mkdir()
    rng, total = np.random.default_rng(0), 0
    for index in range(count):
        pixels = np.zeros((768, 1024, 3), np.uint8)
        for cells, contrast in ((2, 112), (8, 64), (32, 32), (128, 24), (256, 16)):
            noise = rng.integers(0, contrast, (3 * cells, 4 * cells, 3), np.uint8)
            pixels += np.asarray(Image.fromarray(noise).resize((1024, 768)))
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
        total += (folder / f"{index}.jpg").write_bytes(buffer.getvalue())
    return total // count
