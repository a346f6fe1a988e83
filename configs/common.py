"""What the configurations share, so that each file shows only what is its own.

The shared values are the paper's (section 3.1), with the parameters copied to every device.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict, config_dict

from llamagen_jax import sharding
from llamagen_jax.errors import InputError, nearest
from llamagen_jax.models.llama import LlamaConfig
from llamagen_jax.models.vqgan import VQGANConfig

_T = TypeVar("_T")

_SHARED = {
    "seed": 0,
    "init_from": "",
    "data": {
        "random_crop": False,
        "random_flip": False,
        "fast_decode": False,
        "workers": 0,
        "caption_weights": (),
        "skip_small": False,
        "background": "white",
        "exif_orientation": False,
        "control": (),
    },
    "optimizer": {
        "learning_rate": 1e-4,
        "schedule": "constant",
        "warmup_steps": 0,
        "b1": 0.9,
        "b2": 0.95,
        "clip_norm": 1.0,
        "ema_decay": 0.0,
    },
    "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
    "log_every": 100,
    "eval_every": 5_000,
    "sample_every": 5_000,
    "checkpoint_every": 5_000,
    "expected_loss": (),
    "evaluate": {"every": 0, "network": ""},
}

# Grids (rows, columns) of a tokenizer of downsampling 16, all of about the codes of 256x256: images
# of 256x256, 288x224, 224x288, 320x192 and 192x320.
ASPECTS = ((16, 16), (14, 18), (18, 14), (12, 20), (20, 12))

_TOKENIZER = {
    "task": "tokenizer",
    "model": dataclasses.asdict(VQGANConfig()),
    "loss": {
        "reconstruction": "l2",
        "perceptual_weight": 0.0,
        "perceptual_every": 1,
        "vgg16": "",
        "lpips_heads": "",
        "adversarial": "hinge",
        "adversarial_weight": 0.0,
        "adversarial_start": 0,
        "adaptive_weight": False,
    },
    "restart_codes": False,
    "optimizer": {"weight_decay": 0.0},
    "sharding_rules": sharding.VQGAN_RULES,
}

_GENERATOR = {
    "task": "generator",
    "batch_size": 256,
    "accumulation_steps": 1,
    "text_encoder": "",
    "evaluate": {"samples": 5_000, "reference": ""},
    "model": dataclasses.asdict(LlamaConfig()),
    "optimizer": {"weight_decay": 0.05},
    "attention": "auto",
    "remat": "none",
    "trained": "",
    "sharding_rules": sharding.LLAMA_RULES,
}


def tokenizer(**own: Any) -> Any:
    """The ConfigDict of a VQGAN's training, without LPIPS and discriminator unless `own` has them.

    Args:
      own: what the experiment sets, nested as `training.config.TokenizerTraining`; batch_size,
        steps, and of `data` source, train, eval and image_size have no shared value.
    """
    # None, but of a type, so that a discriminator can be given on the command line.
    none = config_dict.placeholder(ConfigDict)
    return _config(_TOKENIZER, {"discriminator": none} | own)


def generator(**own: Any) -> Any:
    """The ConfigDict of a transformer's training.

    Args:
      own: as of `tokenizer`, nested as `training.config.GeneratorTraining`; steps, tokenizer,
        sample, and of `data` source, train, eval and image_size have no shared value.
    """
    return _config(_GENERATOR, own)


def choose(file: str, variant: str, variants: Mapping[str, _T]) -> _T:
    """What `variants` of a configuration's `file` has under the name `variant`.

    Raises:
      InputError: there is no such variant; the nearest is named.
    """
    if variant not in variants:
        raise InputError(
            f"{Path(file).name} has no variant '{variant}'; {nearest(variant, variants)}"
        )
    return variants[variant]


def _config(task: dict, own: dict) -> ConfigDict:
    config = ConfigDict(_SHARED)
    config.update(task)
    config.update(own)
    return config
