import importlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from configs import digits
from llamagen_jax.errors import InputError
from llamagen_jax.training.config import from_mapping
from llamagen_jax.training.loop import make_task
from llamagen_jax.training.optimizer import learning_rate

# Every configuration file with its variants; a file that is missing here fails the next test.
VARIANTS = {
    "c2i": ("B-256", "3B-384"),
    "digits": ("tokenizer", "generator"),
    "photos": (None,),
    "t2i": ("stage1", "stage2", "scenes-stage1", "scenes-stage2"),
    "vqgan": ("VQ-16", "VQ-8", "finetune", "scenes", "scenes-finetune"),
}


def test_every_config_file_is_tested():
    assert {path.stem for path in Path("configs").glob("*.py")} == set(VARIANTS)


@pytest.mark.parametrize(
    ("name", "variant"), [(name, v) for name, variants in VARIANTS.items() for v in variants]
)
def test_every_config_takes_a_step_at_a_tiny_size(name, variant):
    get_config = importlib.import_module(f"configs.{name}").get_config
    values = (get_config(variant) if variant else get_config()).to_dict()
    from_mapping(values)  # the real sizes are possible
    is_tokenizer = values["task"] == "tokenizer"
    vqgan_sizes = tiny.VQGAN_SIZES | {"channel_multipliers": (1,)}
    values["model"].update(vqgan_sizes if is_tokenizer else tiny.LLAMA_SIZES)
    values["data"]["image_size"] = 16
    if is_tokenizer:
        values["discriminator"].update(base_channels=8, num_layers=1)
        values["loss"]["perceptual_weight"] = 0.0  # VGG16 has no tiny size
    elif values["model"]["condition"] == "text":
        values["model"].update(condition_length=5, caption_dim=16)
    task = make_task(from_mapping(values))
    batch = {name: np.zeros((2, *leaf.shape), leaf.dtype) for name, leaf in task.example.items()}
    state, metrics = jax.jit(task.train_step)(task.init(), batch)
    assert state.step == 1
    assert np.isfinite(metrics.loss.compute())


def test_unknown_variant_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'tokenizer'"):
        digits.get_config("tokeniser")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model__dimm": 3}, "unknown key config.model.dimm; did you mean 'dim'"),
        ({"task": "generate"}, "did you mean 'generator'"),
        ({"model__dim": "wide"}, "config.model.dim='wide' must be of type int"),
        ({"model__dim": True}, "config.model.dim=True must be of type int"),
        ({"model__dim": 30}, "config.model: dim=30 must be n_heads"),
        ({"steps": 0}, "config: steps=0 must be positive"),
        ({"optimizer__schedule": "linear"}, "schedule='linear' must be"),
        ({"optimizer__b2": 1.0}, "b2=1.0 must be in"),
        ({"data__train": 3}, "config.data.train=3 must be of type str or tuple"),
        ({"data__source": "digit"}, "did you mean 'digits'"),
    ],
)
def test_bad_values_are_named(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        from_mapping(tiny.generator_config(tmp_path, **change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss__reconstruction": "l3"}, "reconstruction='l3' must be"),
        ({"loss__adversarial": "wasserstein"}, "'wasserstein' must be one of hinge, vanilla"),
        ({"loss__perceptual_weight": -1.0}, "perceptual_weight=-1.0 must not be negative"),
        ({"discriminator__kind": "stylegan2"}, "'stylegan2' must be one of patchgan, stylegan"),
        ({"discriminator__num_layers": 3}, "num_layers=3 needs images of at least 24 px, not 16"),
        ({"discriminator__kind": "stylegan", "data__image_size": 48}, "power of two .* not 48"),
    ],
)
def test_bad_values_of_a_tokenizer_are_named(change, message):
    with pytest.raises(InputError, match=message):
        from_mapping(tiny.tokenizer_config(loss__adversarial_weight=0.5, **change))


def test_missing_key_is_named(tmp_path):
    values = tiny.generator_config(tmp_path)
    del values["optimizer"]["clip_norm"]
    with pytest.raises(InputError, match=r"config\.optimizer\.clip_norm is missing"):
        from_mapping(values)


def test_config_survives_json(tmp_path):
    values = tiny.tokenizer_config()
    assert from_mapping(json.loads(json.dumps(values))).model == from_mapping(values).model


def test_training_data_may_be_several_folders(tmp_path):
    values = json.loads(json.dumps(tiny.generator_config(tmp_path, data__train=("a", "b"))))
    assert from_mapping(values).data.train == ("a", "b")


def test_learning_rate_schedules():
    config = from_mapping(tiny.tokenizer_config(optimizer__warmup_steps=10)).optimizer
    schedule = learning_rate(config, 110)
    np.testing.assert_allclose(
        [schedule(0), schedule(5), schedule(10), schedule(60), schedule(110)],
        np.array([0, 0.5, 1, 0.5, 0]) * config.learning_rate,
        atol=1e-9,
    )
    constant = from_mapping(tiny.tokenizer_config(optimizer__schedule="constant")).optimizer
    assert learning_rate(constant, 100)(99) == np.float32(constant.learning_rate)
