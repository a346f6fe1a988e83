"""Generators with control images, as in ControlAR (arXiv 2410.02705), from generators without.

Variants: "t2i", GPT-XL at 256 px from the weights of `t2i.py:stage1`, and "scenes", the same for
rendered scenes of three sizes from those of `t2i.py:scenes-aspects`, which it leaves as they are.
Codes are made by `llamagen_jax.data.prepare codes --control`, then features by `prepare text`. The
settings of "t2i" are not the paper's, and nobody has tried them. With
`--config.data.control='("surroundings",)'` both learn to fill holes in images.
"""

from typing import Any

from ml_collections import ConfigDict

from llamagen_jax.configs import common, t2i


def get_config(variant: str = "") -> ConfigDict:
    return common.choose(__file__, variant, {"t2i": _t2i, "scenes": _scenes})()


def _t2i() -> ConfigDict:
    config: Any = t2i.get_config("stage1")
    config.update(init_from="runs/t2i_stage1", steps=50_000)
    config.data.update(
        train="data/laion_256_control_train",
        eval="data/laion_256_control_val",
        control=("canny", "soft-edges"),
    )
    config.model.update(control_layers=12, control_dim=384, control_patch=16)
    config.optimizer.update(learning_rate=5e-5, warmup_steps=1_000)
    return config


def _scenes() -> ConfigDict:
    config: Any = t2i.get_config("scenes-aspects")
    # Without control it draws as before, since the generator's own weights are not trained.
    config.update(init_from="demo_control/base", trained="^control_", steps=400, expected_loss=())
    config.data.control = ("canny",)
    config.model.update(control_layers=2, control_dim=128, control_patch=8)
    config.optimizer.learning_rate = 1e-3
    return config
