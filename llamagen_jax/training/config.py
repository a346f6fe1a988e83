"""A training run's configuration: frozen dataclasses built from a config file's plain mapping."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from llamagen_jax import losses, seeds
from llamagen_jax.data.pipeline import DataConfig
from llamagen_jax.errors import InputError, check_finite, naming, nearest
from llamagen_jax.files import LocalPath, local_path
from llamagen_jax.models.attention import IMPLEMENTATIONS
from llamagen_jax.models.discriminator import DiscriminatorConfig
from llamagen_jax.models.llama import REMAT_POLICIES, LlamaConfig
from llamagen_jax.models.vqgan import VQGANConfig
from llamagen_jax.sampling.settings import SamplingSettings
from llamagen_jax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Ways to split the devices, see `sharding.make_mesh`."""

    data: int
    fsdp: int
    tensor: int


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Figures of the images that a run makes, while it trains, see `training.evaluation`.

    Attributes:
      every: steps between; they are also computed at the end. 0 leaves them out.
      network: file or folder of `evaluate.features.Network.open`.
    """

    every: int
    network: LocalPath

    def __post_init__(self):
        if self.every < 0:
            raise ValueError(f"every={self.every} must not be negative")
        if self.every and not self.network:
            raise ValueError(
                f"every={self.every} needs network: name Inception's file, or a folder of "
                "`python -m llamagen_jax.evaluate network`"
            )


@dataclasses.dataclass(frozen=True)
class SampleEvaluateConfig(EvaluateConfig):
    """Figures of samples.

    Attributes:
      samples: how many to draw.
      reference: real images, or their statistics: of `evaluate.images.open_reference`.
    """

    samples: int
    reference: LocalPath

    def __post_init__(self):
        super().__post_init__()
        if self.samples < 2:
            raise ValueError(f"samples={self.samples} must be at least 2")
        if self.every and not self.reference:
            raise ValueError(
                f"every={self.every} needs reference: name real images, or a file of statistics"
            )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """What both tasks share.

    Attributes:
      seed: of parameters, data order and dropout.
      batch_size: examples per step over all devices.
      steps: length of the run.
      sharding_rules: see `sharding.tree_shardings`.
      log_every, eval_every, sample_every, checkpoint_every: steps between; 0 only at the end.
      expected_loss: triples of a step and of the least and the greatest training loss that runs of
        this configuration have there, as averaged since the last log; a run outside is warned of.
    """

    task: str
    seed: int
    batch_size: int
    steps: int
    data: DataConfig
    optimizer: OptimizerConfig
    mesh: MeshConfig
    sharding_rules: tuple
    log_every: int
    eval_every: int
    sample_every: int
    checkpoint_every: int
    expected_loss: tuple
    evaluate: EvaluateConfig

    def __post_init__(self):
        for field in ("batch_size", "steps", "log_every"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)} must be positive")
        for field in ("eval_every", "sample_every", "checkpoint_every"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field}={getattr(self, field)} must not be negative")
        seeds.check(self.seed, "seed")
        for row in self.expected_loss:
            if len(row) != 3 or not row[1] <= row[2]:
                raise ValueError(f"expected_loss has {row!r}: it must hold (step, least, greatest)")


@dataclasses.dataclass(frozen=True)
class TokenizerLossConfig:
    """Terms of the tokenizer's loss beside those of its codebook.

    Attributes:
      reconstruction: "l1" or "l2", of weight 1.
      perceptual_weight: of LPIPS; 0 needs neither of its files.
      perceptual_every: LPIPS is taken of one in so many images of a batch, whose size it divides;
        it costs several times what a small tokenizer does.
      vgg16, lpips_heads: files of LPIPS's weights, see `weights.lpips.load`.
      adversarial: "hinge", "vanilla" or "non-saturating", see `losses.discriminator`.
      adversarial_weight: of both sides' adversarial losses; 0 trains without a discriminator.
      adversarial_start: the step, counted from 1, from which the discriminator learns and counts.
      adaptive_weight: also multiply the tokenizer's adversarial loss by `losses.adaptive_weight`.
    """

    reconstruction: str
    perceptual_weight: float
    perceptual_every: int
    vgg16: LocalPath
    lpips_heads: LocalPath
    adversarial: str
    adversarial_weight: float
    adversarial_start: int
    adaptive_weight: bool

    def __post_init__(self):
        check_finite(self)
        if self.reconstruction not in ("l1", "l2"):
            raise ValueError(f"reconstruction={self.reconstruction!r} must be 'l1' or 'l2'")
        if self.adversarial not in losses.ADVERSARIAL:
            known = ", ".join(losses.ADVERSARIAL)
            raise ValueError(f"adversarial={self.adversarial!r} must be one of {known}")
        for field in ("perceptual_weight", "adversarial_weight", "adversarial_start"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field}={getattr(self, field)} must not be negative")
        if self.perceptual_every < 1:
            raise ValueError(f"perceptual_every={self.perceptual_every} must be positive")


@dataclasses.dataclass(frozen=True)
class TokenizerTraining(TrainConfig):
    """Training a VQGAN on images.

    Attributes:
      evaluate: rFID of the held-out images.
      init_from: where the VQGAN's parameters are at the first step: anything that `zoo.load` opens;
        "" draws them. The discriminator and the optimisers start afresh in either case.
      restart_codes: whether entries of the codebook that are long unused are moved to where they
        are needed, see `codebook.restart`.
      discriminator: its sizes, or None without one; it is trained if `loss` gives it a weight.
    """

    model: VQGANConfig
    init_from: LocalPath
    restart_codes: bool
    loss: TokenizerLossConfig
    discriminator: DiscriminatorConfig | None

    def __post_init__(self):
        super().__post_init__()
        if self.evaluate.every and not self.data.eval:
            raise ValueError("evaluate.every needs data.eval, images to reconstruct")
        if self.batch_size % self.loss.perceptual_every:
            raise ValueError(
                f"loss.perceptual_every={self.loss.perceptual_every} must divide "
                f"batch_size={self.batch_size}"
            )
        if self.loss.adversarial_weight:
            if self.discriminator is None:
                weight = f"loss.adversarial_weight={self.loss.adversarial_weight}"
                raise ValueError(
                    f"{weight} needs a discriminator: give config.discriminator="
                    "{'kind': 'patchgan', 'base_channels': 64, 'num_layers': 3, 'dtype': 'float32'}"
                )
            self.discriminator.check_image_size(self.data.image_size)


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """Images sampled while training, see `sampling.settings.SamplingSettings`."""

    guidance_scale: float
    top_k: int

    def __post_init__(self):
        SamplingSettings(0, self.guidance_scale, top_k=self.top_k)


@dataclasses.dataclass(frozen=True)
class GeneratorTraining(TrainConfig):
    """Training a Llama on packed codes, with labels or text features, or on images and captions.

    Attributes:
      init_from: as of `TokenizerTraining`; the grid may be of another size than there, as in the
        paper's second stage of text to image, and a model with control may begin with one without,
        to which its own parameters are added.
      tokenizer: file, export or work folder of the VQGAN that made the codes, or that is to make
        them of images while training; "" trains on packed codes without sample images and without
        checking that the codes are its.
      text_encoder: folder of the T5 that made the text features, or that is to make them of
        captions while training; only then, and by sample.py, it is opened. "" for labels, or
        without checking that features are its.
      sample: settings of the sample images.
      evaluate: FID, sFID and Inception Score of samples with the settings `sample`, on the grid
        `model.grid_size`.
      accumulation_steps: parts of a batch whose gradients are computed one after another, for
        batches that do not fit in memory at once.
      attention: of `models.attention.choose`.
      remat: of `models.llama.Llama`.
      trained: regular expression that is searched in the paths of parameters; those without a match
        stay as they are: "^control_" leaves the model without control as it was. "" trains all.
    """

    model: LlamaConfig
    init_from: LocalPath
    tokenizer: LocalPath
    text_encoder: LocalPath
    sample: SampleConfig
    evaluate: SampleEvaluateConfig
    accumulation_steps: int
    attention: str
    remat: str
    trained: str

    def __post_init__(self):
        super().__post_init__()
        if bool(self.model.control_layers) != bool(self.data.control):
            raise ValueError(
                f"model.control_layers={self.model.control_layers} and "
                f"data.control={self.data.control}: give both for a model with control, or neither"
            )
        if self.trained and not self.init_from:
            raise ValueError(
                f"trained={self.trained!r} leaves drawn weights as they are: give init_from"
            )
        self._check_grids()
        if self.evaluate.every and not self.tokenizer:
            raise ValueError("evaluate.every needs tokenizer, which turns codes into images")
        held_out = self.model.condition == "text" or self.model.control_layers
        if self.evaluate.every and held_out and not self.data.eval:
            raise ValueError("evaluate.every needs data.eval, whose captions or controls are drawn")
        if self.accumulation_steps < 1 or self.batch_size % self.accumulation_steps:
            raise ValueError(
                f"accumulation_steps={self.accumulation_steps} must divide "
                f"batch_size={self.batch_size}"
            )
        choices = {"attention": IMPLEMENTATIONS, "remat": ("none", *REMAT_POLICIES)}
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field}={getattr(self, field)!r} must be one of {allowed}")

    def _check_grids(self):
        grids = self.model.grids
        if grids and self.model.grid not in grids:
            raise ValueError(
                f"model.grid_size={self.model.grid_size} must be one of model.grids={grids}"
            )
        rows, columns = self.model.grid
        if self.evaluate.every and rows != columns:
            raise ValueError(
                f"evaluate.every needs square images: set model.grid_size={self.model.grid_size} "
                "to a square one of model.grids"
            )
        if self.evaluate.every and len(grids) > 1 and self.model.control_layers:
            raise ValueError(
                f"evaluate.every draws one size, but held-out controls are of model.grids={grids}: "
                "set it to 0"
            )


_TASKS = {"tokenizer": TokenizerTraining, "generator": GeneratorTraining}


def from_mapping(values: Mapping[str, Any]) -> Any:
    """Builds the run's configuration: a `TokenizerTraining` or a `GeneratorTraining`.

    Raises:
      InputError: a key is unknown (the nearest is named) or missing, or a value is impossible.
    """
    task = values.get("task", "")
    if task not in _TASKS:
        raise InputError(f"config.task={task!r} is no task; {nearest(task, _TASKS)}")
    return _build(_TASKS[task], values, "config")


def _build(cls: type, values: Mapping[str, Any], path: str) -> Any:
    types_by_name = typing.get_type_hints(cls)
    for key in values:
        if key not in types_by_name:
            raise InputError(f"unknown key {path}.{key}; {nearest(key, types_by_name)}")
    fields = {}
    for field in dataclasses.fields(cls):
        if field.name not in values:
            raise InputError(f"{path}.{field.name} is missing")
        fields[field.name] = _value(
            types_by_name[field.name], values[field.name], f"{path}.{field.name}"
        )
    try:
        return cls(**fields)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def _value(expected: Any, value: Any, path: str) -> Any:
    union = typing.get_origin(expected) in (types.UnionType, typing.Union)
    kinds = typing.get_args(expected) if union else (expected,)
    if LocalPath in kinds:
        return _path(value, path, several=len(kinds) > 1)
    allowed = tuple(typing.get_origin(kind) or kind for kind in kinds)
    block: Any = next(filter(dataclasses.is_dataclass, allowed), None)
    if block and isinstance(value, Mapping):
        return _build(block, value, path)
    if float in allowed and type(value) is int:
        return float(value)
    if tuple in allowed and isinstance(value, list):
        return tuple(value)
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        names = " or ".join(kind.__name__ for kind in allowed)
        raise InputError(f"{path}={value!r} must be of type {names}")
    return value


def _path(value: Any, path: str, several: bool) -> str | tuple[str, ...]:
    """The path or name, expanded; "" stays. A list of them only where `several` may be."""
    if several and isinstance(value, list | tuple):
        return tuple(str(_path(part, path, several=False)) for part in value)
    if not isinstance(value, str):
        raise InputError(f"{path}={value!r} must be of type str{' or tuple' if several else ''}")
    with naming(path):
        return str(local_path(value)) if value else ""
