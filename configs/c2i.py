"""Class-conditional generators on ImageNet codes, as the paper trains them (section 3.1, table 3).

Variants: SIZE-RESOLUTION, such as "B-256" or "3B-384"; sizes are B, L, XL, XXL, XXXL, 1B, 3B and
7B. The codes are two sets of ten crops of every image, at ranges 1.1 and 1.05, made by
`llamagen_jax.data.prepare codes` and drawn from equally. Every size trains for 300 epochs; the
paper's ablations take 50 (--config.steps=250200).

SIZE-aspects, which is not the paper's, teaches the model of SIZE-256 five aspect ratios in a tenth
of its epochs.
"""

import dataclasses
import functools
from typing import Any

from ml_collections import ConfigDict

from llamagen_jax import zoo
from llamagen_jax.configs import common

_SIZES = ("B", "L", "XL", "XXL", "XXXL", "1B", "3B", "7B")
_RESOLUTIONS = (256, 384)
_IMAGENET_IMAGES = 1_281_167
_BATCH_SIZE = 256
_EPOCHS = 300
_ASPECTS_EPOCHS = 30


def get_config(variant: str = "") -> ConfigDict:
    variants = {}
    for size in _SIZES:
        for side in _RESOLUTIONS:
            square = functools.partial(_generator, size, side, str(side), _EPOCHS)
            variants[f"{size}-{side}"] = square
        variants[f"{size}-aspects"] = functools.partial(_aspects, size)
    return common.choose(__file__, variant, variants)()


def _aspects(size: str) -> ConfigDict:
    config: Any = _generator(size, 256, "aspects", _ASPECTS_EPOCHS)
    config.init_from = f"runs/c2i_{size}_256"
    config.model.grids = common.ASPECTS
    return config


def _generator(size: str, resolution: int, folder: str, epochs: int) -> ConfigDict:
    # From 1.4B parameters on, the state of one copy fills a device of 40 GB.
    copies = size in ("B", "L", "XL", "1B")
    data = f"data/imagenet_{folder}"
    model = dataclasses.replace(
        zoo.MODELS[f"GPT-{size}"], grid_size=resolution // 16, dtype="bfloat16"
    )
    return common.generator(
        batch_size=_BATCH_SIZE,
        steps=epochs * (_IMAGENET_IMAGES // _BATCH_SIZE),
        tokenizer="vq_ds16_c2i",
        sample={"guidance_scale": 4.0, "top_k": 2000},
        data={
            "source": "array_record",
            "train": (f"{data}_train_1.10", f"{data}_train_1.05"),
            "eval": f"{data}_val",
            "image_size": resolution,
            "workers": 4,
        },
        model=dataclasses.asdict(model),
        remat="none" if copies else "dots",
        mesh={"data": -1 if copies else 1, "fsdp": 1 if copies else -1},
    )
