"""The paper's tokenizers (section 3.1 and the original's tokenizer/tokenizer_image/vq_train.py).

Variants: "VQ-16" and "VQ-8", trained on ImageNet at 256 px, and "finetune", VQ-16 from its
released weights on other images. `weights/` must hold the two files of LPIPS, see
`llamagen_jax.lpips_weights`. "scenes" is a tiny one for the rendered scenes, without LPIPS and
discriminator: 64 px to 8x8 codes, and "scenes-finetune" goes on from it (`make demo-text`).
"""

from ml_collections import ConfigDict

from llamagen_jax import sharding
from llamagen_jax.errors import nearest

_BATCH_SIZE = 128
_EPOCHS = 40
# Change it with the data: steps follow from the number of images.
_IMAGES = 1_281_167

_MULTIPLIERS = {
    "VQ-16": (1, 1, 2, 2, 4),
    "VQ-8": (1, 2, 2, 4),
    "finetune": (1, 1, 2, 2, 4),
    "scenes": (1, 1, 2, 2),
    "scenes-finetune": (1, 1, 2, 2),
}


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
    elif variant == "scenes":
        _shrink(config)
    elif variant == "scenes-finetune":
        # Once the entropy term has brought most codes into use, latents are to keep to theirs: a
        # small generator learns codes best that tell their own patch and nothing of the others.
        _shrink(config)
        config.init_from = "demo_text/tokenizer_base"
        config.steps = 300
        config.update(eval_every=100, sample_every=100, checkpoint_every=100)
        config.model.update(entropy_weight=0.0, commitment_weight=1.0)
    return config


def _shrink(config: ConfigDict) -> None:
    config.update(batch_size=16, steps=800, log_every=50)
    config.update(eval_every=200, sample_every=200, checkpoint_every=200)
    config.data.update(
        source="tar_shards",
        train="demo_text/shards_train",
        eval="demo_text/shards_val",
        image_size=64,
        random_crop=False,
        random_flip=False,
        workers=0,
    )
    config.model.update(
        base_channels=32,
        num_res_blocks=1,
        z_channels=64,
        codebook_size=512,
        entropy_weight=0.003,
        dtype="float32",
    )
    config.loss.update(perceptual_weight=0.0, adversarial_weight=0.0)
    config.optimizer.update(learning_rate=1e-3, schedule="cosine", warmup_steps=20)


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
