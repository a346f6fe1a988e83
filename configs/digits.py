"""Handwritten digits, 32 px: the whole of LlamaGen in minutes on two CPU cores (`make demo`).

Variants: "tokenizer" (images to 8x8 codes out of 128), "generator" (class-conditional, on the codes
that `llamagen_jax.data.prepare codes` makes of the images), "surroundings" (the same of images, and
of what is around holes in them: `make demo-holes`).
"""

from typing import Any

from ml_collections import ConfigDict

from llamagen_jax.configs import common


def get_config(variant: str = "") -> ConfigDict:
    variants = {"tokenizer": _tokenizer, "generator": _generator, "surroundings": _surroundings}
    return common.choose(__file__, variant, variants)()


def _tokenizer() -> ConfigDict:
    return common.tokenizer(
        batch_size=16,
        steps=250,
        log_every=50,
        eval_every=125,
        sample_every=125,
        checkpoint_every=125,
        data={"source": "digits", "train": "train", "eval": "test", "image_size": 32},
        model={
            "base_channels": 32,
            "channel_multipliers": (1, 1, 2),
            "num_res_blocks": 1,
            "z_channels": 32,
            "codebook_size": 128,
            "entropy_weight": 0.02,
        },
        optimizer={"learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 20},
    )


def _generator() -> ConfigDict:
    return common.generator(
        batch_size=32,
        steps=600,
        log_every=50,
        eval_every=200,
        sample_every=300,
        checkpoint_every=125,
        tokenizer="demo/tokenizer",
        sample={"guidance_scale": 3.0, "top_k": 0},
        expected_loss=((100, 2.6, 3.4), (300, 1.5, 1.9), (600, 1.15, 1.45)),
        data={
            "source": "array_record",
            "train": "demo/codes/train",
            "eval": "demo/codes/test",
            "image_size": 32,
        },
        model={
            "dim": 96,
            "n_layers": 4,
            "n_heads": 4,
            "n_kv_heads": 4,
            "vocab_size": 128,
            "grid_size": 8,
            "num_classes": 10,
            "multiple_of": 32,
        },
        optimizer={"learning_rate": 2e-3, "schedule": "cosine", "warmup_steps": 50},
    )


def _surroundings() -> ConfigDict:
    config: Any = _generator()
    config.update(steps=1500, expected_loss=((500, 1.6, 1.85), (1500, 1.1, 1.25)))
    config.data.update(source="digits", train="train", eval="test", control=("surroundings",))
    config.model.update(control_layers=2, control_dim=128, control_patch=4, code_dropout=0.5)
    return config
