"""Photographs, 64 px: a VQGAN with its discriminator in minutes on two CPU cores.

The photos come with scikit-image. They are far too few for good reconstructions of others; the run
shows that every part of the tokenizer's training works and that the codebook stays in use.
"""

from ml_collections import ConfigDict

from llamagen_jax import sharding


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "task": "tokenizer",
            "seed": 0,
            "batch_size": 4,
            "steps": 450,
            "log_every": 25,
            "eval_every": 150,
            "sample_every": 150,
            "checkpoint_every": 150,
            "data": {
                "source": "photos",
                "train": "train",
                "eval": "test",
                "image_size": 64,
                "random_crop": True,
                "random_flip": True,
                "fast_decode": False,
                "workers": 0,
            },
            "model": {
                # With 32, each channel is a group of its own in GroupNorm, which costs the colours.
                "base_channels": 64,
                "channel_multipliers": (1, 1, 1),
                "num_res_blocks": 1,
                "z_channels": 64,
                "codebook_size": 256,
                "codebook_dim": 8,
                "l2_normalize": True,
                "commitment_weight": 0.25,
                "entropy_weight": 0.01,
                "dtype": "float32",
            },
            "init_from": "",
            # Without LPIPS, whose weights are not at hand everywhere.
            "loss": {
                "reconstruction": "l2",
                "perceptual_weight": 0.0,
                "vgg16": "",
                "lpips_heads": "",
                "adversarial": "hinge",
                "adversarial_weight": 0.02,
                "adversarial_start": 300,
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
                "warmup_steps": 50,
                "b1": 0.9,
                "b2": 0.95,
                "weight_decay": 0.0,
                "clip_norm": 1.0,
                "ema_decay": 0.0,
            },
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
            "sharding_rules": sharding.VQGAN_RULES,
        }
    )
