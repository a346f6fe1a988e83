"""The paper's tokenizers (section 3.1 and the original's tokenizer/tokenizer_image/vq_train.py).

Variants: "VQ-16" and "VQ-8", trained on ImageNet at 256 px, and "finetune", VQ-16 from its
released weights on other images. `weights/` must hold the two files of LPIPS, see
`llamagen_jax.weights.lpips`. "scenes" is a tiny one for the rendered scenes, without LPIPS and
discriminator: 64 px to 8x8 codes, and "scenes-finetune" goes on from it (`make demo-text`).
"scenes-alone" encodes the square of each code alone (`make demo-control`), as does "emoji", with
LPIPS: 40 px of OpenMoji's pictures to 10x10 codes (`make demo-emoji`).
"""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from llamagen_jax import zoo
from llamagen_jax.configs import common

_BATCH_SIZE = 128
_EPOCHS = 40
# Change it with the data: steps follow from the number of images.
_IMAGES = 1_281_167


def get_config(variant: str = "") -> ConfigDict:
    variants = {
        "VQ-16": lambda: _paper("VQ-16"),
        "VQ-8": lambda: _paper("VQ-8"),
        "finetune": _finetune,
        "scenes": _scenes,
        "scenes-finetune": _scenes_finetune,
        "scenes-alone": _scenes_alone,
        "emoji": _emoji,
    }
    return common.choose(__file__, variant, variants)()


def _paper(size: str) -> ConfigDict:
    return common.tokenizer(
        batch_size=_BATCH_SIZE,
        # Whole batches of each epoch: 400 360.
        steps=_EPOCHS * (_IMAGES // _BATCH_SIZE),
        data={
            "source": "image_folder",
            "train": "imagenet/train",
            "eval": "imagenet/val",
            "image_size": 256,
            "random_crop": True,
            "random_flip": True,
            "workers": 16,
        },
        model=dataclasses.asdict(zoo.MODELS[size]) | {"dtype": "bfloat16"},
        loss={
            "perceptual_weight": 1.0,
            "vgg16": "weights/vgg16-397923af.pth",
            "lpips_heads": "weights/vgg.pth",
            "adversarial_weight": 0.5,
            "adversarial_start": 20_000,
        },
        discriminator={
            "kind": "patchgan",
            "base_channels": 64,
            "num_layers": 3,
            "dtype": "bfloat16",
        },
    )


def _finetune() -> ConfigDict:
    config: Any = _paper("VQ-16")
    config.init_from = "vq_ds16_c2i"
    config.steps = 50_000
    # A fresh discriminator meets a trained tokenizer: both learning rates grow slowly.
    config.loss.adversarial_start = 0
    config.optimizer.warmup_steps = 2000
    return config


def _scenes() -> ConfigDict:
    return common.tokenizer(
        batch_size=16,
        steps=800,
        log_every=50,
        eval_every=200,
        sample_every=200,
        checkpoint_every=200,
        data={
            "source": "tar_shards",
            "train": "demo_text/shards_train",
            "eval": "demo_text/shards_val",
            "image_size": 64,
        },
        model={
            "base_channels": 32,
            "channel_multipliers": (1, 1, 2, 2),
            "num_res_blocks": 1,
            "z_channels": 64,
            "codebook_size": 512,
            "entropy_weight": 0.003,
        },
        optimizer={"learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 20},
    )


def _scenes_finetune() -> ConfigDict:
    # Once the entropy term has brought most codes into use, latents are to keep to theirs: a small
    # generator learns codes best that tell their own patch and nothing of the others.
    config: Any = _scenes()
    config.init_from = "demo_text/tokenizer_base"
    config.steps = 300
    config.update(eval_every=100, sample_every=100, checkpoint_every=100)
    config.model.update(entropy_weight=0.0, commitment_weight=1.0)
    return config


def _scenes_alone() -> ConfigDict:
    config: Any = _scenes()
    config.update(steps=600, restart_codes=True)
    config.data.update(train="demo_control/shards_train", eval="demo_control/shards_val")
    config.model.update(
        base_channels=16,
        channel_multipliers=(1, 2, 4, 4),
        attention="none",
        norm_groups=4,
        entropy_weight=0.0,
        # A code has its own square to tell and nothing of others: one run of fewer steps will do.
        encode_alone=True,
    )
    return config


def _emoji() -> ConfigDict:
    return common.tokenizer(
        batch_size=8,
        steps=2800,
        log_every=50,
        eval_every=700,
        sample_every=700,
        checkpoint_every=700,
        data={
            "source": "array_record",
            "train": "demo_emoji/train",
            "eval": "demo_emoji/test",
            "image_size": 40,
        },
        model={
            "base_channels": 16,
            "channel_multipliers": (1, 2, 4),
            "num_res_blocks": 1,
            "attention": "none",
            # With as many as channels, each is a group of its own, which costs the colours.
            "norm_groups": 4,
            "z_channels": 64,
            "codebook_size": 1024,
            # Else the codes of the white above an emoji tell which one it is, in their own way.
            "encode_alone": True,
        },
        # Of equal squares the codebook needs one, and of most pictures' squares half are white.
        restart_codes=True,
        loss={
            # Where outline and skin share a square, L2 draws the mean of both: a darker skin.
            "reconstruction": "l1",
            # With 0.5 the shapes are there soon and the colours late: LPIPS hardly sees them.
            "perceptual_weight": 0.05,
            "perceptual_every": 4,
            "vgg16": "demo_emoji/lpips/vgg16.safetensors",
            "lpips_heads": "demo_emoji/lpips/lpips_heads.safetensors",
        },
        optimizer={"learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 50},
    )
