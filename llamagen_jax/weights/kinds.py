"""The kinds of models whose weights can be opened by name, one record for each."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax.numpy as jnp

from llamagen_jax.errors import InputError
from llamagen_jax.models.consistency_decoder import ConsistencyDecoder, ConsistencyDecoderConfig
from llamagen_jax.models.kl_vae import KLVAE, KLVAEConfig
from llamagen_jax.models.llama import Llama, LlamaConfig
from llamagen_jax.models.maskgit_vqgan import MaskGITVQGAN, MaskGITVQGANConfig
from llamagen_jax.models.vit_vqgan import ViTVQGAN, ViTVQGANConfig
from llamagen_jax.models.vqgan import VQGAN, VQGANConfig

Model = Llama | VQGAN | MaskGITVQGAN | ViTVQGAN | KLVAE | ConsistencyDecoder
Config = (
    LlamaConfig
    | VQGANConfig
    | MaskGITVQGANConfig
    | ViTVQGANConfig
    | KLVAEConfig
    | ConsistencyDecoderConfig
)
C = TypeVar("C")


@dataclasses.dataclass(frozen=True)
class Kind:
    """What opening a model's weights takes to know about it.

    Attributes:
      config: class of its configurations.
      module: class of its models, built from a configuration; its name is the kind's, also in
        export folders.
      role: what it does with codes.
      description: its name in messages, formatted with `config`.
      inputs: from a configuration to arrays that the module can be initialised with.
    """

    config: type
    module: type
    role: Literal["tokenizer", "generator"]
    description: str
    inputs: Callable[[Any], tuple]

    @property
    def name(self) -> str:
        return self.module.__name__


def _llama_inputs(config: LlamaConfig) -> tuple:
    if config.condition == "class":
        return jnp.zeros((1, 1), int), jnp.zeros(1, int)
    return jnp.zeros((1, 1), int), jnp.zeros((1, config.condition_length, config.caption_dim))


def _tokenizer_inputs(
    config: VQGANConfig | MaskGITVQGANConfig | ViTVQGANConfig | KLVAEConfig,
) -> tuple:
    return (jnp.zeros((1, config.downsampling, config.downsampling, 3)),)


KINDS = (
    Kind(
        config=LlamaConfig,
        module=Llama,
        role="generator",
        description="{config.condition}-conditional transformer",
        inputs=_llama_inputs,
    ),
    Kind(
        config=VQGANConfig,
        module=VQGAN,
        role="tokenizer",
        description="tokenizer",
        inputs=_tokenizer_inputs,
    ),
    Kind(
        config=MaskGITVQGANConfig,
        module=MaskGITVQGAN,
        role="tokenizer",
        description="tokenizer of MaskGIT",
        inputs=_tokenizer_inputs,
    ),
    Kind(
        config=ViTVQGANConfig,
        module=ViTVQGAN,
        role="tokenizer",
        description="tokenizer of transformers",
        inputs=_tokenizer_inputs,
    ),
    Kind(
        config=KLVAEConfig,
        module=KLVAE,
        role="tokenizer",
        description="tokenizer of continuous latents",
        inputs=_tokenizer_inputs,
    ),
    Kind(
        config=ConsistencyDecoderConfig,
        module=ConsistencyDecoder,
        role="tokenizer",
        description="tokenizer of continuous latents",
        inputs=_tokenizer_inputs,
    ),
)
_BY_CONFIG = {kind.config: kind for kind in KINDS}
_BY_NAME = {kind.name: kind for kind in KINDS}


def kind_of(config: Config) -> Kind:
    """The kind of model that `config` describes."""
    return _BY_CONFIG[type(config)]


def build(config: Config) -> Model:
    """The module that a configuration describes."""
    return kind_of(config).module(config)


def describe(config: Config) -> str:
    """The kind of model in words, for messages: "tokenizer", "class-conditional transformer"."""
    return kind_of(config).description.format(config=config)


def kind_named(name: str, source: str | Path) -> Kind:
    """The kind of the models called `name`, such as "Llama".

    Raises:
      InputError: there is none; it says that `source` holds such a model.
    """
    if name not in _BY_NAME:
        raise InputError(f"{source} holds a model {name!r}; expected {' or '.join(_BY_NAME)}")
    return _BY_NAME[name]


def make_config(config_class: type[C], fields: Mapping[str, Any], source: str | Path) -> C:
    """The configuration of these fields, which were found in `source`.

    Raises:
      InputError: there are no such fields, or a value is impossible.
    """
    try:
        return config_class(**fields)
    except (TypeError, ValueError) as error:
        raise InputError(f"{source} describes an impossible model: {error}") from error
