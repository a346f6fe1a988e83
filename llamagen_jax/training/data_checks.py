"""Whether a generator's data fit its model and encoders: told before the first step."""

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from llamagen_jax.data.records import Manifest, TextEncoderId, TokenizerId
from llamagen_jax.data.sources import Source
from llamagen_jax.errors import InputError
from llamagen_jax.models.llama import LlamaConfig
from llamagen_jax.training.config import GeneratorTraining
from llamagen_jax.weights import export
from llamagen_jax.weights.integrity import weights_hash


def holds_codes(source: Source) -> bool:
    """Whether the source's records are codes, rather than images."""
    return source.manifest is not None and source.manifest.tokenizer is not None


def check_classes(config: GeneratorTraining, source: Source, held_out: Source | None) -> None:
    """Checks that a label means the same class in the data, the held-out data and `init_from`.

    Data without names of classes are only told by their labels, see `check_labels`.

    Raises:
      InputError: the names of the classes differ, or there are more than the model has.
    """
    if config.model.condition != "class":
        return
    names, most = source.class_names, config.model.num_classes
    train = f"config.data.train={config.data.train}"
    if len(names) > most:
        raise InputError(
            f"{train} has {len(names)} classes but config.model.num_classes={most}; raise it"
        )
    if held_out is not None:
        what = f"config.data.eval={config.data.eval}"
        _check_names(what, held_out.class_names, train, names)
    if config.init_from:
        before = tuple(export.recorded(config.init_from).get("class_names", ()))
        _check_names(f"config.init_from={config.init_from}", before, train, names)


def _check_names(what: str, found: tuple[str, ...], train: str, wanted: tuple[str, ...]) -> None:
    if not found or not wanted or found == wanted:
        return
    pairs = itertools.zip_longest(found, wanted, fillvalue="none")
    label, (a, b) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
    raise InputError(
        f"label {label} is the class {a!r} in {what} but {b!r} in {train}; give both the same "
        "classes"
    )


def check_labels(config: GeneratorTraining, batch: Mapping[str, np.ndarray]) -> None:
    """Raises InputError when a label of a batch is none of the model's classes."""
    wrong = [label for label in batch["label"] if not 0 <= label < config.model.num_classes]
    if wrong:
        raise InputError(
            f"the data have the label {wrong[0]} but config.model.num_classes="
            f"{config.model.num_classes}; raise it, or check config.data.train and config.data.eval"
        )


def check_codes(
    config: GeneratorTraining, source: Source, held_out: Manifest | None, vqgan_params: dict | None
) -> None:
    """Checks codes against the model, the held-out codes and the tokenizer.

    Args:
      config: of the run.
      source: the training data, for which `holds_codes` is true.
      held_out: of the data to evaluate on, None for none.
      vqgan_params: of `config.tokenizer`, None where none is named.

    Raises:
      InputError: they do not fit; the message tells which, and what to change.
    """
    model, name, manifest = config.model, config.data.train, source.manifest
    assert manifest and manifest.tokenizer and manifest.code_shape
    made_by, length = manifest.tokenizer, manifest.code_shape[1]
    if manifest.grids:
        _check_grids(f"config.data.train={name}", manifest, model)
    elif length != model.code_length:
        raise InputError(
            f"{name} holds {length} codes per image but the model with grid_size="
            f"{model.grid_size} makes {model.code_length}; change config.model.grid_size"
        )
    if made_by.codebook_size > model.vocab_size:
        raise InputError(
            f"{name} holds codes below {made_by.codebook_size} but config.model.vocab_size="
            f"{model.vocab_size}; raise it"
        )
    if model.condition == "text":
        _check_features(config, manifest.text_encoder)
    _check_control(config, name, manifest)
    if held_out:
        _check_held_out(config, manifest, held_out)
        _check_control(config, config.data.eval, held_out)
    if vqgan_params is not None and weights_hash(vqgan_params) != made_by.sha256:
        raise InputError(
            f"{name} was made by another tokenizer ({made_by.name}) than "
            f"config.tokenizer={config.tokenizer}; extract the codes again or name that tokenizer"
        )


def _check_grids(what: str, manifest: Manifest, model: LlamaConfig) -> None:
    if unknown := [grid for grid in manifest.grids if grid not in model.grids]:
        raise InputError(
            f"{what} holds codes of the grids {unknown} but config.model.grids={model.grids}; add "
            "them there, or make codes of other --sizes"
        )


def _check_held_out(config: GeneratorTraining, trained_on: Manifest, held_out: Manifest) -> None:
    """Held-out codes and features must be of the size, tokenizer and encoder trained on."""
    for part in ("tokenizer", "text_encoder"):
        wanted, found = getattr(trained_on, part), getattr(held_out, part)
        # A name is a path, which may change.
        if _unnamed(wanted) != _unnamed(found):
            raise InputError(
                f"config.data.eval={config.data.eval} was made by another {part} "
                f"({found and found.name}) than config.data.train={config.data.train} "
                f"({wanted and wanted.name}); make both by the same"
            )
    if held_out.grids:
        _check_grids(f"config.data.eval={config.data.eval}", held_out, config.model)
        return
    assert held_out.code_shape
    wanted, found = config.model.code_length, held_out.code_shape[1]
    if found != wanted:
        raise InputError(
            f"config.data.eval={config.data.eval} holds {found} codes per image but "
            f"config.data.train={config.data.train} {wanted}; make both of images of the same size"
        )


def _check_control(config: GeneratorTraining, name: str | tuple, manifest: Manifest) -> None:
    for kind in config.data.control:
        if kind not in manifest.control:
            raise InputError(
                f"{name} holds no control maps of {kind}, only: "
                f"{', '.join(manifest.control) or 'none'}; change config.data.control, or make "
                "codes with `python -m llamagen_jax.data.prepare codes --control`"
            )
    height, width = config.model.control_size
    if config.data.control and manifest.image_size not in (None, height):
        raise InputError(
            f"{name} holds control maps of {manifest.image_size} px but the model reads "
            f"{height}x{width}: set config.model.control_patch to the tokenizer's downsampling"
        )


def _unnamed(made_by: TokenizerId | TextEncoderId | None) -> TokenizerId | TextEncoderId | None:
    return made_by and dataclasses.replace(made_by, name="")


def _check_features(config: GeneratorTraining, encoder: TextEncoderId | None) -> None:
    model, name = config.model, config.data.train
    if encoder is None or not config.data.caption_weights:
        raise InputError(
            f"{name} must hold text features and config.data.caption_weights must name captions; "
            "make features with `python -m llamagen_jax.data.prepare text`"
        )
    if (encoder.length, encoder.width) != (model.condition_length, model.caption_dim):
        raise InputError(
            f"{name} holds features [{encoder.length}, {encoder.width}] of {encoder.name} but the "
            f"model reads [{model.condition_length}, {model.caption_dim}]; change "
            "config.model.condition_length and caption_dim or the text encoder"
        )
    # The encoder need not be here, and its folder may be elsewhere than it was: names must do.
    if config.text_encoder and Path(config.text_encoder).name != Path(encoder.name).name:
        raise InputError(
            f"{name} holds features of {encoder.name} but config.text_encoder="
            f"{config.text_encoder}; make the features again or name that encoder"
        )
