"""Training a generator on codes of several grids."""

import math
import shutil

import jax
import numpy as np
import pytest
import tiny

from llamagen_jax import zoo
from llamagen_jax.data.records import TokenizerId, write_dataset
from llamagen_jax.errors import InputError
from llamagen_jax.image_tokenizer import ModelTokenizer
from llamagen_jax.models.llama import LlamaConfig
from llamagen_jax.training import generator, plan, previews
from llamagen_jax.training.config import from_mapping
from llamagen_jax.weights import export

GRIDS = ((4, 4), (2, 3), (3, 2))


def _write_codes(folder, grids=GRIDS):
    rng = np.random.default_rng(0)
    records = (
        {
            "codes": rng.integers(0, 32, (1, math.prod(grid)), np.uint16),
            "grid": list(grid),
            "label": i % 10,
        }
        for grid in grids
        for i in range(17)
    )
    tokenizer = TokenizerId("tiny", "0", 32)
    names = tuple(map(str, range(10)))
    write_dataset(folder, records, class_names=names, tokenizer=tokenizer, code_shape=(1, None))
    return folder


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    return _write_codes(tmp_path_factory.mktemp("data") / "codes")


def _config(codes, **changes):
    return from_mapping(tiny.generator_config(codes, **{"model__grids": GRIDS} | changes))


def _same(a, b):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def test_a_run_that_is_gone_on_with_is_the_same(tmp_path):
    two = _write_codes(tmp_path / "codes", GRIDS[:2])
    config = _config(two, data__eval="")
    whole = tiny.train(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed" / "checkpoints" / "4")
    resumed = tiny.train(config, tmp_path / "killed")
    assert _same(whole.params, resumed.params)
    assert np.asarray(whole.params["condition_embedding"]["sizes"]).any()
    model, params = zoo.load(tmp_path / "whole")
    assert model.config.grids == GRIDS
    assert _same(whole.params, params)


def test_training_begins_with_the_weights_of_a_square_model(tmp_path, codes, caplog):
    model, before = tiny.llama()
    export.write(tmp_path / "first", model, before)
    params = generator.load_init(_config(codes, init_from=str(tmp_path / "first")))
    assert "embeddings of the grids [(4, 4), (2, 3), (3, 2)] are new" in caplog.text
    embedding = dict(params["condition_embedding"])
    assert not embedding.pop("sizes").any()
    assert _same(params | {"condition_embedding": embedding}, before)
    with pytest.raises(InputError, match="unexpected: condition_embedding/sizes"):
        export.write(tmp_path / "sized", *_sized())
        generator.load_init(_config(codes, init_from=str(tmp_path / "sized"), model__grids=()))


def _sized():
    model, params = tiny.llama(LlamaConfig(**tiny.LLAMA_SIZES, grids=GRIDS[::-1]))
    return model, tiny.with_sizes(params)


def test_embeddings_of_known_grids_are_kept(tmp_path, codes):
    model, params = _sized()
    export.write(tmp_path / "sized", model, params)
    grids = ((4, 4), (3, 2), (5, 5))
    config = _config(codes, init_from=str(tmp_path / "sized"), model__grids=grids)
    sizes = generator.load_init(config)["condition_embedding"]["sizes"]
    before = np.asarray(params["condition_embedding"]["sizes"])
    np.testing.assert_array_equal(sizes, [before[2], before[0], np.zeros(32)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__grids": ()}, r"data.train=.* holds codes of the grids \[\(2, 3\), .*grids=\(\)"),
        ({"model__grids": GRIDS[:2]}, r"holds codes of the grids \[\(3, 2\)\] but .*other --sizes"),
        ({"model__grid_size": 5}, r"grid_size=5 must be one of model.grids"),
        (
            {"data__source": "digits", "data__train": "train", "data__eval": "test"},
            "holds images",
        ),
    ],
)
def test_data_that_do_not_fit_the_grids(tmp_path, codes, changes, message):
    with pytest.raises(InputError, match=message):
        tiny.train(_config(codes, **changes), tmp_path / "run")


def test_pictures_show_every_grid(codes):
    _, params = tiny.llama(LlamaConfig(**tiny.LLAMA_SIZES, grids=GRIDS[:2]))
    tokenizer = ModelTokenizer(*tiny.vqgan())
    config = _config(codes, model__grids=GRIDS[:2])
    pictures = previews.samples(config, tokenizer, params, {})
    assert pictures.shape == (8, 4, 32, 32, 3)
    margins = np.concatenate([pictures[:, :, :8], pictures[:, :, -8:]], axis=2)
    assert np.all(margins[:, 2:] == 255)
    assert not np.all(margins[:, :2] == 255)
    assert not np.all(pictures[:, 2:, 8:24, 4:28] == 255)


def test_a_run_begun_before_there_were_grids_goes_on():
    before, after = {"model": {"dim": 32}}, {"model": {"dim": 32, "grids": []}}
    assert plan.other_run(before, after, ()) is None
    after["model"]["grids"] = [[4, 4]]
    assert plan.other_run(before, after, ()) == ("model.grids", None, [[4, 4]])
