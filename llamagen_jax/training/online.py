"""Training a generator on images and captions: frozen models encode every batch on the devices.

The alternative to making codes and features first (`data.prepare codes` and `prepare text`): no
files in between and other crops in every epoch, for the price of encoding everything every time.
"""

import functools
from collections.abc import Callable

import jax
from jax.sharding import Mesh

from llamagen_jax.control_maps import check_detector
from llamagen_jax.data.pipeline import Condition
from llamagen_jax.errors import InputError, naming
from llamagen_jax.image_tokenizer import ModelTokenizer
from llamagen_jax.images import from_uint8
from llamagen_jax.text.encoder import TextEncoder, caption_features
from llamagen_jax.text.tokenizer import tokenize_caption
from llamagen_jax.training.config import GeneratorTraining


def open_encoders(
    config: GeneratorTraining, tokenizer: ModelTokenizer | None, mesh: Mesh
) -> tuple[Condition, Callable[[dict], dict]]:
    """What feeds a generator's task on codes with images, and with captions where it reads text.

    The functions that encode are those of `data.prepare`, so the same images and captions give the
    same codes, and the same features up to bfloat16's rounding at another batch size.

    Args:
      config: of the run; `config.text_encoder` is opened for a text-conditional model.
      tokenizer: of `config.tokenizer`.
      mesh: the text encoder's parameters are split over it, the tokenizer's are copied.

    Returns:
      `condition` and `encode` of an `OpenTask`.

    Raises:
      InputError: an encoder is not named, cannot be opened or does not fit the model or the data.
    """
    if tokenizer is None:
        raise InputError(
            f"config.data.train={config.data.train} holds images: name the config.tokenizer that "
            "turns them into codes, or make codes with `python -m llamagen_jax.data.prepare codes`"
        )
    _check_tokenizer(config, tokenizer)
    for kind in config.data.control:
        check_detector(kind)
    condition: Condition = "stored"
    t5, t5_params = None, {}
    if config.model.condition == "text":
        text_encoder = _load_text_encoder(config, mesh)
        condition = functools.partial(tokenize_caption, text_encoder.tokenizer, text_encoder.length)
        t5, t5_params = text_encoder.model, text_encoder.params
    tokenizer = jax.device_put(tokenizer, jax.NamedSharding(mesh, jax.P()))
    frozen = tokenizer, t5_params

    @jax.jit
    def encode(frozen: tuple[ModelTokenizer, dict], batch: dict) -> dict:
        tokenizer, t5_params = frozen
        images, rest = batch["image"], {k: v for k, v in batch.items() if k != "image"}
        codes = tokenizer.encode(from_uint8(images))
        if t5 is not None:
            tokens = rest.pop("tokens")
            rest["features"] = caption_features(t5, t5_params, tokens, rest["mask"])
        return rest | {"codes": codes.reshape(len(images), -1)}

    return condition, functools.partial(encode, frozen)


def _check_tokenizer(config: GeneratorTraining, tokenizer: ModelTokenizer) -> None:
    if config.model.grids:
        raise InputError(
            f"config.data.train={config.data.train} holds images, which become codes of one grid "
            "alone: for config.model.grids make codes with `python -m llamagen_jax.data.prepare "
            "codes --sizes`"
        )
    size, (rows, columns) = config.data.image_size, config.model.grid
    if size != rows * tokenizer.downsampling or rows != columns:
        raise InputError(
            f"config.data.image_size={size} does not give the grid_size={config.model.grid_size} "
            f"of config.model: the tokenizer makes a code of {tokenizer.downsampling} pixels"
        )
    assert tokenizer.codebook_size is not None  # of `open_tokenizer`
    if tokenizer.codebook_size > config.model.vocab_size:
        raise InputError(
            f"the tokenizer has {tokenizer.codebook_size} codes but config.model.vocab_size="
            f"{config.model.vocab_size}; raise it"
        )
    patch = config.model.control_patch
    if config.data.control and patch != tokenizer.downsampling:
        raise InputError(
            f"config.model.control_patch={patch} must be the {tokenizer.downsampling} pixels of a "
            "code of the tokenizer"
        )


def _load_text_encoder(config: GeneratorTraining, mesh: Mesh) -> TextEncoder:
    if not config.text_encoder or not config.data.caption_weights:
        raise InputError(
            "training on images and captions needs config.text_encoder, the folder of a T5, and "
            "config.data.caption_weights, the names of the captions"
        )
    with naming("config.text_encoder"):
        loaded = TextEncoder.load(
            config.text_encoder,
            mesh=mesh,
            length=config.model.condition_length,
            batch_size=config.batch_size,
        )
    width = loaded.model.config.dim
    if width != config.model.caption_dim:
        raise InputError(
            f"config.text_encoder={config.text_encoder} has features of width {width} but "
            f"config.model.caption_dim={config.model.caption_dim}; change one of them"
        )
    return loaded
