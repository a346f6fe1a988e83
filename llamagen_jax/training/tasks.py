"""The two tasks: their functions alone, or opened with all their weights and data."""

import dataclasses
import functools

from jax.sharding import Mesh

from llamagen_jax import sharding
from llamagen_jax.data.pipeline import DataConfig
from llamagen_jax.data.sources import Source, open_source
from llamagen_jax.errors import InputError, naming
from llamagen_jax.image_tokenizer import open_tokenizer
from llamagen_jax.models.vqgan import VQGAN
from llamagen_jax.training import data_checks, evaluation, generator, online, previews, tokenizer
from llamagen_jax.training.config import GeneratorTraining, TokenizerTraining
from llamagen_jax.training.optimizer import with_params
from llamagen_jax.training.task import OpenTask, Task


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


def make_task(config: TokenizerTraining | GeneratorTraining) -> Task:
    """The functions of the task that the configuration is of; opens and allocates nothing."""
    if isinstance(config, TokenizerTraining):
        return tokenizer.make_task(config)
    return generator.make_task(config)


def open_task(config: TokenizerTraining | GeneratorTraining, mesh: Mesh) -> OpenTask:
    """The task that the configuration is of, with every file that the run reads opened.

    Args:
      config: of the run.
      mesh: of `make_mesh`.

    Raises:
      InputError: a file is missing or damaged, or does not fit the configuration or another file.
    """
    if isinstance(config, TokenizerTraining):
        return _open_tokenizer(config, mesh)
    return _open_generator(config, mesh)


def _open_tokenizer(config: TokenizerTraining, mesh: Mesh) -> OpenTask:
    source, held_out = _open_data(config.data)
    measure = None
    if config.evaluate.every and held_out is not None:
        measure = evaluation.open_reconstructions(config, held_out)
    return OpenTask(
        **vars(tokenizer.make_task(config)),
        mesh=mesh,
        source=source,
        held_out=held_out,
        condition=None,
        load=functools.partial(tokenizer.put_weights, tokenizer.load_weights(config)),
        preview=functools.partial(previews.reconstructions, VQGAN(config.model)),
        measure=measure,
    )


def _open_generator(config: GeneratorTraining, mesh: Mesh) -> OpenTask:
    with naming("config.tokenizer"):
        tokenizer = open_tokenizer(config.tokenizer) if config.tokenizer else None
    source, held_out = _open_data(config.data)
    data_checks.check_classes(config, source, held_out)
    if data_checks.holds_codes(source):
        held_out_manifest = None if held_out is None else held_out.manifest
        data_checks.check_codes(config, source, held_out_manifest, tokenizer and tokenizer.params)
        condition, encode = "stored", None
    else:
        condition, encode = online.open_encoders(config, tokenizer, mesh)
    by_class = config.model.condition == "class"
    init_params = generator.load_init(config)
    measure = None
    if config.evaluate.every and tokenizer is not None:
        measure = evaluation.open_samples(config, tokenizer, mesh)
    return OpenTask(
        **vars(generator.make_task(config)),
        mesh=mesh,
        source=source,
        held_out=held_out,
        condition=condition,
        encode=encode,
        load=functools.partial(with_params, params=init_params) if init_params else None,
        preview=functools.partial(previews.samples, config, tokenizer) if tokenizer else None,
        measure=measure,
        check=functools.partial(data_checks.check_labels, config) if by_class else None,
        # Codes and features tell which encoders they are of; images are encoded by those named.
        may_change=() if encode else ("tokenizer", "text_encoder"),
    )


def _open_data(config: DataConfig) -> tuple[Source, Source | None]:
    """The training data, and the held-out data where there is some."""
    with naming("config.data.train"):
        source = open_source(config.source, config.train)
    with naming("config.data.eval"):
        return source, open_source(config.source, config.eval) if config.eval else None
