"""Photographs, 64 px: a VQGAN with its discriminator in minutes on two CPU cores.

The photos come with scikit-image. They are far too few for good reconstructions of others; the run
shows that every part of the tokenizer's training works and that the codebook stays in use. It goes
without LPIPS, whose weights are not at hand everywhere.
"""

from ml_collections import ConfigDict

from llamagen_jax.configs import common


def get_config() -> ConfigDict:
    return common.tokenizer(
        batch_size=4,
        steps=450,
        log_every=25,
        eval_every=150,
        sample_every=150,
        checkpoint_every=150,
        data={
            "source": "photos",
            "train": "train",
            "eval": "test",
            "image_size": 64,
            "random_crop": True,
            "random_flip": True,
        },
        model={
            # With 32, each channel is a group of its own in GroupNorm, which costs the colours.
            "base_channels": 64,
            "channel_multipliers": (1, 1, 1),
            "num_res_blocks": 1,
            "z_channels": 64,
            "codebook_size": 256,
            "entropy_weight": 0.01,
        },
        loss={"adversarial_weight": 0.02, "adversarial_start": 300},
        discriminator={
            "kind": "patchgan",
            "base_channels": 32,
            "num_layers": 2,
            "dtype": "float32",
        },
        optimizer={"learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 50},
    )
