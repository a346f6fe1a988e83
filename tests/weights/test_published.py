"""The published models: sizes, shapes, and the figures in README's tables."""

import functools
import re
from pathlib import Path

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llamagen_jax as lg
from llamagen_jax.weights.kinds import build, kind_of
from llamagen_jax.weights.published import PUBLISHED
from llamagen_jax.weights.shapes import param_shapes

README = Path(__file__).parents[2] / "README.md"


def count(config):
    shapes = param_shapes(config)
    return sum(int(np.prod(shape)) for path, shape in shapes.items() if "null_features" not in path)


@pytest.mark.parametrize(
    ("name", "millions"),
    {
        "VQ-16": 72,
        "VQ-8": 70,
        "GPT-B": 111,
        "GPT-L": 343,
        "GPT-XL": 775,
        "GPT-XXL": 1.4e3,
        "GPT-XXXL": 3.9e3,
        "GPT-1B": 1.2e3,
        "GPT-3B": 3.1e3,
        "GPT-7B": 6.6e3,
    }.items(),
)
def test_parameter_counts_of_the_paper(name, millions):
    digits = 0 if millions < 1e3 else -2
    assert round(count(lg.MODELS[name]) / 1e6, digits) == millions


def test_parameter_counts_of_the_inventory():
    inventory = golden_weights.inventory()
    published = {
        "VQ-16": "vq_ds16_c2i",
        "VQ-8": "vq_ds8_c2i",
        "GPT-B/c2i/384": "c2i_B_384",
        "GPT-L/c2i/384": "c2i_L_384",
        "GPT-XL/c2i/384": "c2i_XL_384",
        "GPT-XL/t2i/256": "t2i_XL_stage1_256",
    }
    assert inventory.keys() == published.keys()
    for key, name in published.items():
        assert count(PUBLISHED[name].config) == inventory[key]["params"], name


@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_of_the_published_models(name):
    config, resolution = PUBLISHED[name].config, PUBLISHED[name].resolution
    assert count(config) == pytest.approx(PUBLISHED[name].parameters, rel=0.02)
    model = build(config)
    if kind_of(config).role == "tokenizer":
        images = jnp.zeros((2, 256, 256, 3))
        codes, _ = jax.eval_shape(
            functools.partial(model.init_with_output, method="encode"), jax.random.key(0), images
        )
        grid = 256 // config.downsampling
        assert grid == (16 if "16_" in name else 32)
        if config.codebook_size is None:
            assert (codes.shape, codes.dtype) == ((2, grid, grid, 4), jnp.float32)
        else:
            assert (codes.shape, codes.dtype) == ((2, grid, grid), jnp.int32)
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
        decoded = jax.eval_shape(functools.partial(model.apply, method="decode"), variables, codes)
        assert (decoded.shape, decoded.dtype) == (images.shape, jnp.float32)
        assert resolution is None
        return
    side = int(name.rsplit("_", 1)[-1])
    assert resolution == side
    length = (side // 16) ** 2
    condition = jnp.zeros(2, int) if name[0] == "c" else jnp.zeros((2, 120, 2048))
    codes = jnp.zeros((2, length), int)
    logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), codes, condition)
    assert (logits.shape, logits.dtype) == ((2, length, 16384), jnp.float32)
    assert config.code_length == length


def test_figures_in_the_readme_are_those_of_the_records():
    lines = README.read_text().splitlines()
    listed = [line for line in lines if re.match(r"\| `\w+` \| [\d.]+[MB] \|", line)]
    assert sorted(listed) == sorted(map(readme_row, PUBLISHED))


def readme_row(name):
    """The row of README's tables that the record of a published model makes."""
    record = PUBLISHED[name]
    grid = getattr(record.config, "grid_size", None)
    if kind_of(record.config).role == "tokenizer":
        per_resolution = [
            f"{side // record.config.downsampling}x{side // record.config.downsampling}: {side}: "
            f"{rfid:.2f}"
            for side, rfid in record.rfid.items()
        ]
        cells = ["; ".join(per_resolution) or "not published"]
    elif record.training_data:
        cells = [f"{grid}x{grid}", record.resolution, record.training_data]
    else:
        figures = [f"{record.fid:.2f}", f"{record.guidance_scale:.2f}"]
        cells = [f"{grid}x{grid}", record.resolution, *figures]
    cells = [f"`{name}`", in_words(record.parameters), *cells, f"`{record.file}`"]
    return f"| {' | '.join(map(str, cells))} |"


def in_words(parameters):
    return f"{parameters / 1e6:.0f}M" if parameters < 1e9 else f"{parameters / 1e9:.1f}B"
