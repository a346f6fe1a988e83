from llamagen_jax.configs import common


def get_config(variant: str = ""):
    variants = {"tokenizer": tokenizer, "generator": generator}
    return common.choose(__file__, variant, variants)()


def tokenizer():
    return common.tokenizer(
        batch_size=8,
        steps=2000,
        eval_every=500,
        sample_every=500,
        checkpoint_every=500,
        data={
            "source": "image_folder",
            "train": "images/train",
            "eval": "images/val",
            "image_size": 64,
            "random_flip": True,
        },
        model={
            "base_channels": 64,
            "channel_multipliers": (1, 1, 2, 2),  # halved three times: 8x8 codes of 64 px
            "num_res_blocks": 1,
            "z_channels": 64,
            "codebook_size": 512,
            "entropy_weight": 0.01,
        },
        optimizer={"learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 50},
    )


def generator():
    return common.generator(
        batch_size=32,
        steps=2000,
        eval_every=500,
        sample_every=500,
        checkpoint_every=500,
        tokenizer="runs/tokenizer",
        sample={"guidance_scale": 3.0, "top_k": 0},
        data={
            "source": "array_record",
            "train": "codes/train",
            "eval": "codes/val",
            "image_size": 64,
        },
        model={
            "dim": 256,
            "n_layers": 6,
            "n_heads": 4,
            "vocab_size": 512,  # the tokenizer's codebook_size
            "grid_size": 8,
            "num_classes": 3,
        },
        optimizer={"learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 100},
    )
