"""Training with control images: what it begins with, what it moves, and what it shows."""

import dataclasses
import json
import math
import shutil

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

from llamagen_jax import sharding, zoo
from llamagen_jax.data.records import TokenizerId, write_dataset
from llamagen_jax.errors import InputError
from llamagen_jax.images import encode
from llamagen_jax.models.llama import Llama
from llamagen_jax.training.config import from_mapping
from llamagen_jax.training.tasks import make_task
from llamagen_jax.weights import export
from llamagen_jax.weights.integrity import weights_hash

SIZES = tiny.CONTROL_SIZES | {"control_patch": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Exports, and codes with noise as their control maps."""
    folder = tmp_path_factory.mktemp("training")
    tiny.exports(folder)
    rng = np.random.default_rng(0)

    def record(i):
        png = encode(rng.integers(0, 256, (32, 32), np.uint8), "png")
        codes = rng.integers(0, 32, (1, 16), np.uint16)
        return {"codes": codes, "label": i % 10, "control": {"canny": [png]}}

    made_by = TokenizerId("tiny", weights_hash(tiny.vqgan()[1]), 32)
    manifest = write_dataset(
        folder / "codes",
        map(record, range(16)),
        image_size=32,
        tokenizer=made_by,
        code_shape=(1, 16),
    )
    dataclasses.replace(manifest, control=("canny",)).write(folder / "codes")
    return folder


def config_of(folder, **changes):
    sizes = {f"model__{name}": size for name, size in SIZES.items()}
    own = {"data__control": ("canny",), "init_from": str(folder / "generator")}
    return tiny.generator_config(folder / "codes", **(sizes | own | changes))


def assert_same(first, second):
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


def test_only_control_is_trained_and_resumes_to_the_bit(folder, tmp_path):
    values = config_of(folder, trained="^control_", sample_every=4)
    values["tokenizer"] = str(folder / "tokenizer")
    config = from_mapping(values)
    whole = tiny.train(config, tmp_path / "whole")
    _, base = zoo.load(str(folder / "generator"))
    assert_same({name: whole.params[name] for name in base}, base)
    new = [name for name in whole.params if name not in base]
    assert new == ["control_encoder", "control_fusion"]
    assert np.all(np.abs(whole.params["control_fusion"]).sum((1, 2)) > 0)

    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "4")
    assert_same(tiny.train(config, tmp_path / "cut").params, whole.params)

    # Eight controls, each before four samples.
    picture = Image.open(tmp_path / "whole" / "samples" / "step_0000004.png")
    assert picture.size == (5 * 34 + 2, 8 * 34 + 2)
    losses = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").open()]
    assert np.isfinite([line["train/loss"] for line in losses if "train/loss" in line]).all()

    model, params = zoo.load(str(tmp_path / "whole"))
    export.write(tmp_path / "export", model, params)
    exported, again = zoo.load(str(tmp_path / "export"))
    assert exported.config == model.config == config.model
    assert_same(again, params)


def test_controls_of_several_grids_join_a_generator_of_one(folder, tmp_path):
    """Sizes and control are both new; each batch and each picture has one grid."""
    grids, rng = ((4, 4), (2, 4)), np.random.default_rng(0)

    def record(i, grid):
        png = encode(rng.integers(0, 256, [8 * side for side in grid], np.uint8), "png")
        codes = rng.integers(0, 32, (1, math.prod(grid)), np.uint16)
        return {"codes": codes, "grid": list(grid), "label": i, "control": {"canny": [png]}}

    records = [record(i, grid) for grid in grids for i in range(8)]
    made_by = TokenizerId("tiny", weights_hash(tiny.vqgan()[1]), 32)
    codes = tmp_path / "codes"
    manifest = write_dataset(codes, records, tokenizer=made_by, code_shape=(1, None))
    dataclasses.replace(manifest, control=("canny",)).write(codes)
    changes = {"data__train": str(codes), "data__eval": str(codes), "model__grids": grids}
    values = config_of(folder, trained="^control_", sample_every=4, eval_every=4, **changes)
    values["tokenizer"] = str(folder / "tokenizer")
    trained = tiny.train(from_mapping(values), tmp_path / "run").params
    _, base = zoo.load(str(folder / "generator"))
    assert not np.any(trained["condition_embedding"].pop("sizes"))
    assert_same({name: trained[name] for name in base}, base)
    assert np.all(np.abs(trained["control_fusion"]).sum((1, 2)) > 0)
    # The first held-out batch is of the lesser grid.
    picture = Image.open(tmp_path / "run" / "samples" / "step_0000004.png")
    assert picture.size == (5 * 34 + 2, 8 * 18 + 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__control": ("canny", "depth")}, "holds no control maps of depth, only: canny"),
        ({"model__control_patch": 4}, "maps of 32 px but the model reads 16x16"),
        ({"trained": "^contrl"}, "trained='.contrl' is found in the path of no parameter"),
        ({"model__dim": 64}, "config.model does not fit config.init_from"),
    ],
)
def test_what_does_not_fit_is_told_before_the_first_step(folder, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        tiny.train(from_mapping(config_of(folder, **changes)), tmp_path / "run")


def test_control_is_not_lost_on_the_way_to_a_model_without(folder, tmp_path):
    """Strict loading: a model with control is not taken for one without."""
    config = dataclasses.replace(tiny.LLAMA_CONFIG, **SIZES)
    export.write(tmp_path / "controlled", *tiny.llama(config))
    values = tiny.generator_config(folder / "codes", init_from=str(tmp_path / "controlled"))
    with pytest.raises(InputError, match="unexpected: control_encoder"):
        tiny.train(from_mapping(values), tmp_path / "run")


def test_parameters_can_be_split_over_a_mesh(folder):
    config = from_mapping(config_of(folder, trained="^control_"))
    (mesh,) = tiny.meshes((2, 2, 2))
    state = sharding.abstract_init(make_task(config).init, config.sharding_rules, mesh)
    assert state.params["control_fusion"].sharding.is_fully_replicated
    assert not state.params["layers"]["gate"]["kernel"].sharding.is_fully_replicated
    model = Llama(config.model)
    apart = jax.eval_shape(lambda params: model.for_decoding(params)[1], state.params)
    sharding.tree_shardings(apart, sharding.DECODING_RULES, mesh)
