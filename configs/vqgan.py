"""The paper's tokenizers (section 3.1 and the original's tokenizer/tokenizer_image/vq_train.py).

Variants: "VQ-16" and "VQ-8", trained on ImageNet at 256 px, and "finetune", VQ-16 from its
released weights on other images. `weights/` must hold the two files of LPIPS, see
`llamagen_jax.lpips_weights`.
"""

from ml_collections import ConfigDict

from llamagen_jax import sharding
from llamagen_jax.errors import nearest

_BATCH_SIZE = 128
_EPOCHS = 40
# Change it with the data: steps follow from the number of images.
_IMAGES = 1_281_167

_MULTIPLIERS = {"VQ-16": (1, 1, 2, 2, 4), "VQ-8": (1, 2, 2, 4), "finetune": (1, 1, 2, 2, 4)}


def get_config(variant: str = "") -> ConfigDict:
    if variant not in _MULTIPLIERS:
        raise ValueError(f"vqgan.py has no variant '{variant}'; {nearest(variant, _MULTIPLIERS)}")
    config = ConfigDict(_paper(_MULTIPLIERS[variant]))
    if variant == "finetune":
        # A fresh discriminator meets a trained tokenizer: both learning rates grow slowly.
        config.init_from = "vq_ds16_c2i"
        config.loss.adversarial_start = 0
        config.optimizer.warmup_steps = 2000
        config.steps = 50_000
    return config


def _paper(channel_multipliers: tuple[int, ...]) -> dict:
    return {
        "task": "tokenizer",
        "seed": 0,
        "batch_size": _BATCH_SIZE,
        # Whole batches of each epoch: 400 360.
        "steps": _EPOCHS * (_IMAGES // _BATCH_SIZE),
        "log_every": 100,
        "eval_every": 5000,
        "sample_every": 5000,
        "checkpoint_every": 5000,
        "data": {
            "source": "image_folder",
            "train": "imagenet/train",
            "eval": "imagenet/val",
            "image_size": 256,
            "random_crop": True,
            "random_flip": True,
            "fast_decode": False,
            "workers": 16,
        },
        "model": {
            "base_channels": 128,
            "channel_multipliers": channel_multipliers,
            "num_res_blocks": 2,
            "z_channels": 256,
            "codebook_size": 16384,
            "codebook_dim": 8,
            "l2_normalize": True,
            "commitment_weight": 0.25,
            "entropy_weight": 0.0,
            "dtype": "bfloat16",
        },
        "init_from": "",
        "loss": {
            "reconstruction": "l2",
            "perceptual_weight": 1.0,
            "vgg16": "weights/vgg16-397923af.pth",
            "lpips_heads": "weights/vgg.pth",
            "adversarial": "hinge",
            "adversarial_weight": 0.5,
            "adversarial_start": 20_000,
            "adaptive_weight": False,
        },
        "discriminator": {
            "kind": "patchgan",
            "base_channels": 64,
            "num_layers": 3,
            "dtype": "bfloat16",
        },
        "optimizer": {
            "learning_rate": 1e-4,
            "schedule": "constant",
            "warmup_steps": 0,
            "b1": 0.9,
            "b2": 0.95,
            "weight_decay": 0.0,
            "clip_norm": 1.0,
            "ema_decay": 0.0,
        },
        "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
        "sharding_rules": sharding.VQGAN_RULES,
    }
