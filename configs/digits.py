"""Handwritten digits, 32 px: the whole of LlamaGen in minutes on two CPU cores (`make demo`).

Variants: "tokenizer" (images to 8x8 codes out of 128), "generator" (class-conditional, on the codes
that `llamagen_jax.data.prepare codes` makes of the images).
"""

from ml_collections import ConfigDict

from llamagen_jax import sharding
from llamagen_jax.errors import nearest


def get_config(variant: str = "") -> ConfigDict:
    variants = {"tokenizer": _tokenizer, "generator": _generator}
    if variant not in variants:
        raise ValueError(f"digits.py has no variant '{variant}'; {nearest(variant, variants)}")
    return ConfigDict(_shared() | variants[variant]())


def _shared() -> dict:
    return {
        "task": "",
        "seed": 0,
        "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
        "log_every": 50,
        "checkpoint_every": 125,
    }


def _tokenizer() -> dict:
    return {
        "task": "tokenizer",
        "batch_size": 16,
        "steps": 250,
        "eval_every": 125,
        "sample_every": 125,
        "data": {
            "source": "digits",
            "train": "train",
            "eval": "test",
            "image_size": 32,
            "random_crop": False,
            "random_flip": False,
            "fast_decode": False,
            "workers": 0,
        },
        "model": {
            "base_channels": 32,
            "channel_multipliers": (1, 1, 2),
            "num_res_blocks": 1,
            "z_channels": 32,
            "codebook_size": 128,
            "codebook_dim": 8,
            "l2_normalize": True,
            "commitment_weight": 0.25,
            "entropy_weight": 0.02,
            "dtype": "float32",
        },
        "init_from": "",
        "loss": {
            "reconstruction": "l2",
            "perceptual_weight": 0.0,
            "vgg16": "",
            "lpips_heads": "",
            "adversarial": "hinge",
            "adversarial_weight": 0.0,
            "adversarial_start": 0,
            "adaptive_weight": False,
        },
        "discriminator": {
            "kind": "patchgan",
            "base_channels": 32,
            "num_layers": 2,
            "dtype": "float32",
        },
        "optimizer": {
            "learning_rate": 1e-3,
            "schedule": "cosine",
            "warmup_steps": 20,
            "b1": 0.9,
            "b2": 0.95,
            "weight_decay": 0.0,
            "clip_norm": 1.0,
            "ema_decay": 0.0,
        },
        "sharding_rules": sharding.VQGAN_RULES,
    }


def _generator() -> dict:
    return {
        "task": "generator",
        "batch_size": 32,
        "steps": 600,
        "eval_every": 200,
        "sample_every": 300,
        "init_from": "",
        "tokenizer": "demo/tokenizer",
        "text_encoder": "",
        "sample": {"guidance_scale": 3.0, "top_k": 0},
        "accumulation_steps": 1,
        "attention": "auto",
        "remat": "none",
        "data": {
            "source": "array_record",
            "train": "demo/codes/train",
            "eval": "demo/codes/test",
            "image_size": 32,
            "random_crop": False,
            "random_flip": False,
            "fast_decode": False,
            "workers": 0,
        },
        "model": {
            "dim": 96,
            "n_layers": 4,
            "n_heads": 4,
            "n_kv_heads": 4,
            "vocab_size": 128,
            "grid_size": 8,
            "condition": "class",
            "num_classes": 10,
            "condition_length": 1,
            "caption_dim": 2048,
            "multiple_of": 32,
            "rope_base": 10000.0,
            "norm_eps": 1e-5,
            "condition_rope": "zero",
            "condition_dropout": 0.1,
            "token_dropout": 0.1,
            "residual_dropout": 0.1,
            "ffn_dropout": 0.1,
            "drop_path": 0.0,
            "dtype": "float32",
        },
        "optimizer": {
            "learning_rate": 2e-3,
            "schedule": "cosine",
            "warmup_steps": 50,
            "b1": 0.9,
            "b2": 0.95,
            "weight_decay": 0.05,
            "clip_norm": 1.0,
            "ema_decay": 0.0,
        },
        "sharding_rules": sharding.LLAMA_RULES,
    }
