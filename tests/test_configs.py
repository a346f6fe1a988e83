import dataclasses
import json
import math

import jax
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from llamagen_jax.errors import InputError
from llamagen_jax.training import config_files
from llamagen_jax.training.config import from_mapping
from llamagen_jax.training.optimizer import learning_rate
from llamagen_jax.training.tasks import make_task

# Every config file with its variants; a file that is missing here fails the next test.
CONFIGS = (
    "c2i.py:B-256",
    "c2i.py:3B-384",
    "control.py:t2i",
    "control.py:scenes",
    "c2i.py:B-aspects",
    "digits.py:tokenizer",
    "digits.py:generator",
    "digits.py:surroundings",
    "photos.py",
    "t2i.py:stage1",
    "t2i.py:stage2",
    "t2i.py:aspects",
    "t2i.py:scenes-stage1",
    "t2i.py:scenes-stage2",
    "t2i.py:scenes-aspects",
    "t2i.py:emoji",
    "vqgan.py:VQ-16",
    "vqgan.py:VQ-8",
    "vqgan.py:finetune",
    "vqgan.py:scenes",
    "vqgan.py:scenes-alone",
    "vqgan.py:scenes-finetune",
    "vqgan.py:emoji",
)


# Once their sizes are tiny, they take the step of another one above.
LIKE_ANOTHER = (
    "c2i.py:3B-384",
    "control.py:t2i",
    "t2i.py:stage2",
    "t2i.py:aspects",
    "t2i.py:scenes-stage2",
    "t2i.py:scenes-aspects",
    "vqgan.py:VQ-8",
    "vqgan.py:finetune",
    "vqgan.py:scenes-alone",
    "vqgan.py:scenes-finetune",
)


def test_every_config_file_is_tested():
    assert {config.split(":")[0] for config in CONFIGS} == set(config_files.names())


@pytest.mark.parametrize("config", CONFIGS)
def test_real_sizes_are_possible(config):
    from_mapping(config_files.load(config).to_dict())


@pytest.mark.parametrize(
    "config",
    [pytest.param(c, marks=pytest.mark.slow) if c in LIKE_ANOTHER else c for c in CONFIGS],
)
def test_every_config_takes_a_step_at_a_tiny_size(config):
    values = config_files.load(config).to_dict()
    is_tokenizer = values["task"] == "tokenizer"
    vqgan_sizes = tiny.VQGAN_SIZES | {"channel_multipliers": (1,)}
    values["model"].update(vqgan_sizes if is_tokenizer else tiny.LLAMA_SIZES)
    values["data"]["image_size"] = 16
    if is_tokenizer:
        if values["discriminator"]:
            values["discriminator"].update(base_channels=8, num_layers=1)
        values["loss"]["perceptual_weight"] = 0.0  # VGG16 has no tiny size
    elif values["model"]["condition"] == "text":
        values["model"].update(condition_length=5, caption_dim=16)
        if values["model"]["control_layers"]:
            values["model"].update(tiny.CONTROL_SIZES)
    if values["model"].get("grids"):
        values["model"]["grids"] = ((4, 4), (2, 6))
    task = make_task(from_mapping(values))
    batch = {name: np.zeros((2, *leaf.shape), leaf.dtype) for name, leaf in task.example.items()}
    state, metrics = jax.jit(task.train_step)(jax.jit(task.init)(), batch)
    assert state.step == 1
    assert np.isfinite(metrics.loss.compute())


def test_unknown_variant_names_the_nearest():
    with pytest.raises(InputError, match=r"digits\.py has no variant .* did you mean 'tokenizer'"):
        config_files.load("digits.py:tokeniser")


def test_runs_without_a_discriminator_have_none():
    for config in CONFIGS:
        values = config_files.load(config).to_dict()
        if values["task"] == "tokenizer":
            assert bool(values["discriminator"]) == bool(values["loss"]["adversarial_weight"])


def test_configs_share_no_values():
    """A change of one does not show in another that is made later."""
    before = config_files.load("digits.py:tokenizer").to_dict()
    changed = config_files.load("digits.py:tokenizer")
    changed.optimizer.b2 = 0.5
    changed.discriminator = ConfigDict({"kind": "patchgan"})
    assert config_files.load("digits.py:tokenizer").to_dict() == before


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
        ({"seed": -1}, "config: seed=-1 must be a whole number from 0"),
        ({"eval_every": -1}, "config: eval_every=-1 must not be negative"),
        ({"optimizer__learning_rate": math.nan}, "config.optimizer: learning_rate=nan must be"),
        ({"optimizer__weight_decay": -0.1}, "weight_decay=-0.1 must not be negative"),
        ({"model__rope_base": math.inf}, "config.model: rope_base=inf must be finite"),
        ({"model__multiple_of": 0}, "multiple_of=0 must be positive"),
        ({"sample__guidance_scale": math.nan}, "config.sample: guidance_scale=nan must be finite"),
        ({"data__caption_weights": (("a", math.inf),)}, "config.data: caption_weights=.* finite"),
        ({"data__train": ("a", "gs://a/b")}, "config.data.train: gs://a/b is an address"),
        ({"tokenizer": "$NOWHERE/a"}, "config.tokenizer: .* variable .NOWHERE, which is not set"),
        ({"model__control_layers": 2}, r"control_layers=2 and data.control=\(\): give both"),
        ({"data__control": ("canny",)}, "control_layers=0 and data.control=.*: give both"),
        ({"trained": "^control_"}, "leaves drawn weights as they are: give init_from"),
        ({"optimizer": 3}, "config.optimizer=3 must be of type OptimizerConfig"),
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
        ({"loss__perceptual_every": 0}, "perceptual_every=0 must be positive"),
        ({"loss__perceptual_every": 3}, "loss.perceptual_every=3 must divide batch_size="),
        ({"discriminator": None}, "adversarial_weight=0.5 needs a discriminator: give config"),
        ({"discriminator": 3}, "discriminator=3 must be of type DiscriminatorConfig or NoneType"),
    ],
)
def test_bad_values_of_a_tokenizer_are_named(change, message):
    with pytest.raises(InputError, match=message):
        from_mapping(tiny.tokenizer_config(loss__adversarial_weight=0.5, **change))


@pytest.mark.parametrize(
    ("block", "key"), [("optimizer", "clip_norm"), ("data", "skip_small"), ("model", "drop_path")]
)
def test_missing_key_is_named(tmp_path, block, key):
    values = tiny.generator_config(tmp_path)
    del values[block][key]
    with pytest.raises(InputError, match=rf"config\.{block}\.{key} is missing"):
        from_mapping(values)


@pytest.mark.parametrize("config", ["digits.py:tokenizer", "vqgan.py:VQ-16", "c2i.py:B-256"])
def test_config_survives_json(config):
    values = config_files.load(config).to_dict()
    read = from_mapping(json.loads(json.dumps(values)))
    assert dataclasses.replace(read, sharding_rules=()) == dataclasses.replace(
        from_mapping(values), sharding_rules=()
    )


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
