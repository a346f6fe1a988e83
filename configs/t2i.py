"""Text-conditional generators on packed codes and T5 features, in the paper's two stages.

Variants: "stage1", GPT-XL at 256 px on filtered LAION-COCO, and "stage2", the same at 512 px from
the weights of stage 1, on images with long and short captions (paper section 3.3). Folders are made
by `llamagen_jax.data.prepare codes` and `prepare text`. The paper does not tell how long it trains:
the steps are one epoch of its 50 million and of its 10 million images. "scenes-stage1", at 32 px,
and "scenes-stage2", at 64 px, are the same for the rendered scenes at a tiny size
(`make demo-text`), and "emoji" one for OpenMoji's pictures (`make demo-emoji`).

"aspects" teaches the model of "stage1" five aspect ratios, and "scenes-aspects" is one for rendered
scenes of three: 64x64, 96x64 and 64x96 px. Neither is the paper's.
"""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from llamagen_jax import zoo
from llamagen_jax.configs import common

_BATCH_SIZE = 256
_LONG_AND_SHORT = (("long", 0.7), ("short", 0.3))


def get_config(variant: str = "") -> ConfigDict:
    variants = {
        "stage1": _stage1,
        "stage2": _stage2,
        "aspects": _aspects,
        "scenes-stage1": _scenes_stage1,
        "scenes-stage2": _scenes_stage2,
        "scenes-aspects": _scenes_aspects,
        "emoji": _emoji,
    }
    return common.choose(__file__, variant, variants)()


def _stage1() -> ConfigDict:
    return _stage(
        256,
        steps=50_000_000 // _BATCH_SIZE,
        folder="data/laion_256",
        caption_weights=(("caption", 1.0),),
    )


def _stage2() -> ConfigDict:
    config: Any = _stage(
        512,
        steps=10_000_000 // _BATCH_SIZE,
        folder="data/aesthetic_512",
        caption_weights=_LONG_AND_SHORT,
    )
    config.update(init_from="runs/t2i_stage1", remat="dots")
    return config


def _aspects() -> ConfigDict:
    config: Any = _stage(
        256,
        steps=10_000_000 // _BATCH_SIZE,
        folder="data/aesthetic_aspects",
        caption_weights=_LONG_AND_SHORT,
    )
    config.init_from = "runs/t2i_stage1"
    config.model.grids = common.ASPECTS
    return config


def _stage(resolution: int, *, steps: int, folder: str, caption_weights: tuple) -> ConfigDict:
    model = dataclasses.replace(
        zoo.MODELS["GPT-XL"],
        grid_size=resolution // 16,
        condition="text",
        condition_length=120,
        dtype="bfloat16",
    )
    return common.generator(
        batch_size=_BATCH_SIZE,
        steps=steps,
        tokenizer="vq_ds16_t2i",
        text_encoder="flan-t5-xl",
        sample={"guidance_scale": 7.5, "top_k": 1000},
        data={
            "source": "array_record",
            "train": f"{folder}_train",
            "eval": f"{folder}_val",
            "image_size": resolution,
            "workers": 4,
            "caption_weights": caption_weights,
        },
        model=dataclasses.asdict(model),
    )


def _scenes_stage1() -> ConfigDict:
    config: Any = _scenes_stage("stage1", 32, steps=500)
    config.expected_loss = ((100, 3.8, 5.0), (500, 1.3, 1.7))
    return config


def _scenes_stage2() -> ConfigDict:
    config: Any = _scenes_stage("stage2", 64, steps=3000)
    config.init_from = "demo_text/stage1"
    config.expected_loss = ((100, 1.2, 2.0), (500, 0.17, 0.27), (3000, 0.02, 0.045))
    return config


def _scenes_aspects() -> ConfigDict:
    config: Any = _scenes_stage("aspects", 64, steps=4000)
    config.update(tokenizer="demo_control/tokenizer", text_encoder="demo_control/t5")
    config.data.update(train="demo_control/sizes_train", eval="demo_control/sizes_val")
    config.expected_loss = ((500, 0.22, 0.45), (2000, 0.08, 0.16), (4000, 0.03, 0.07))
    # What is left out of a thing's codes has to be read off the caption.
    config.model.update(grids=((8, 8), (8, 12), (12, 8)), code_dropout=0.5)
    return config


def _scenes_stage(name: str, resolution: int, *, steps: int) -> ConfigDict:
    config: Any = _stage(
        resolution, steps=steps, folder=f"demo_text/{name}", caption_weights=_LONG_AND_SHORT
    )
    config.update(
        batch_size=16,
        tokenizer="demo_text/tokenizer",
        text_encoder="demo_text/t5",
        sample={"guidance_scale": 1.4, "top_k": 0},
        log_every=50,
        eval_every=500,
        sample_every=500,
        checkpoint_every=500,
    )
    config.data.workers = 0
    config.model.update(
        dim=128,
        n_layers=4,
        n_heads=4,
        vocab_size=512,
        grid_size=resolution // 8,
        condition_length=20,
        caption_dim=128,
        multiple_of=32,
        # Of a few rows and columns a position turns even the slowest pair visibly.
        rope_base=100.0,
        condition_rope="identity",
        token_dropout=0.0,
        residual_dropout=0.0,
        ffn_dropout=0.0,
        dtype="float32",
    )
    config.optimizer.update(
        learning_rate=2e-3,
        schedule="cosine",
        warmup_steps=50,
        # Ten times the paper's. There are but a few hundred pairs of things: left alone the model
        # remembers each of them instead of learning what they are made of.
        weight_decay=0.5,
    )
    return config


def _emoji() -> ConfigDict:
    config: Any = _scenes_stage("emoji", 40, steps=5000)
    config.update(
        tokenizer="demo_emoji/tokenizer",
        text_encoder="demo_emoji/t5",
        sample={"guidance_scale": 1.5, "top_k": 0},
        expected_loss=((500, 1.8, 2.5), (2000, 0.45, 0.7), (5000, 0.1, 0.2)),
    )
    config.data.update(
        train="demo_emoji/people_text",
        eval="demo_emoji/combinations_text",
        caption_weights=(("name", 0.4), ("tone_first", 0.3), ("gender", 0.3)),
    )
    config.model.update(
        grid_size=10,
        vocab_size=1024,
        condition_length=16,
        # Else the model knows an emoji by its first codes, and reads no names.
        code_dropout=0.5,
    )
    config.optimizer.weight_decay = 0.1
    return config
