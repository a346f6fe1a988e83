"""Figures of a run's images while it trains, by a small network."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from llamagen_jax.data.records import TextEncoderId, TokenizerId, write_dataset
from llamagen_jax.errors import InputError
from llamagen_jax.evaluate import small_network, tokenizers
from llamagen_jax.models.classifier import Classifier, ClassifierConfig
from llamagen_jax.training import loop
from llamagen_jax.training.config import from_mapping
from llamagen_jax.training.tasks import make_mesh, open_task
from llamagen_jax.weights import export
from llamagen_jax.weights.integrity import weights_hash


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of 16 px, a network of these and one of 32 px, a reference, a tokenizer, its codes."""
    folder, rng = tmp_path_factory.mktemp("evaluation"), np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 32, 32, 3), np.uint8)
    np.savez(folder / "reference.npz", arr_0=images)
    small = [{"image": tiny.png(image[:16, :16]), "label": 0} for image in images]
    write_dataset(folder / "images16", small)
    for size in (16, 32):
        config = ClassifierConfig(size, classes=3, channels=4)
        blank = jnp.zeros((1, size, size, 3), jnp.uint8)
        params = Classifier(config).init(jax.random.key(0), blank)["params"]
        small_network.write(folder / f"network{size}", config, params, "nothing")
    vqgan = tiny.vqgan()
    export.write(folder / "tokenizer", *vqgan)
    made_by = TokenizerId("tiny", weights_hash(vqgan[1]), 32)
    tiny.write_codes(folder / "codes", made_by)
    text = (
        {
            "codes": rng.integers(0, 32, (1, 16), np.uint16),
            "captions": {"long": "a circle"},
            "text": {"long": rng.normal(size=(1 + i % 5, 16)).astype(jnp.bfloat16)},
        }
        for i in range(11)
    )
    encoder = TextEncoderId("t5", "0", 16, 5)
    write_dataset(
        folder / "text", text, tokenizer=made_by, text_encoder=encoder, code_shape=(1, 16)
    )
    return folder


def _generator(folder, codes="codes", **changes):
    evaluate = {
        "every": 2,
        "samples": 20,
        "reference": str(folder / "reference.npz"),
        "network": str(folder / "network32"),
    }
    evaluate |= {k: str(folder / v) if isinstance(v, str) else v for k, v in changes.items()}
    return tiny.generator_config(
        folder / codes,
        tokenizer=str(folder / "tokenizer"),
        evaluate=evaluate,
        optimizer__schedule="constant",
        optimizer__learning_rate=0.1,
        optimizer__warmup_steps=0,
        optimizer__ema_decay=0.5,
    )


def _lines(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    return [line for line in lines if "eval/fid" in line or "eval/rfid" in line]


def test_samples_are_measured_and_training_is_the_same_without(tmp_path, folder):
    config = from_mapping(_generator(folder))
    task = open_task(config, make_mesh(config))
    measured = loop.train(task, tmp_path / "whole")
    lines = _lines(tmp_path / "whole")
    assert [line["step"] for line in lines] == [2, 4]
    assert lines[0]["eval/fid"] != lines[1]["eval/fid"]
    assert all(line["eval/sfid"] > 0 and line["eval/inception_score"] >= 1 for line in lines)

    # The same run without it, stopped, and going on with it; compiled only once.
    off = dataclasses.replace(config.evaluate, every=0)
    without = dataclasses.replace(config, steps=2, evaluate=off)
    loop.train(dataclasses.replace(task, config=without, measure=None), tmp_path / "cut")
    assert not _lines(tmp_path / "cut")
    resumed = loop.train(task, tmp_path / "cut")
    for a, b in zip(jax.tree.leaves(resumed), jax.tree.leaves(measured), strict=True):
        np.testing.assert_array_equal(a, b)
    assert _lines(tmp_path / "cut") == lines[1:]


@pytest.mark.slow
def test_more_samples_than_captions_are_drawn_of_these(tmp_path, folder):
    config = _generator(folder, "text", samples=13)
    config["model"].update(condition="text", condition_length=5, caption_dim=16)
    config["data"]["caption_weights"] = (("long", 1.0),)
    tiny.train(from_mapping(config | {"steps": 1}), tmp_path / "run")
    (line,) = _lines(tmp_path / "run")
    assert line["eval/fid"] > 0


@pytest.mark.slow
def test_reconstructions_are_measured_as_by_the_command(tmp_path, folder):
    images, network = str(folder / "images16"), str(folder / "network16")
    config = tiny.tokenizer_config(
        steps=1,
        evaluate={"every": 1, "network": network},
        data__source="array_record",
        data__train=images,
        data__eval=images,
    )
    tiny.train(from_mapping(config), tmp_path / "run")
    (line,) = _lines(tmp_path / "run")
    figures, _ = tokenizers.evaluate(images, str(tmp_path / "run"), network=network, size=16)
    assert line["eval/rfid"] == pytest.approx(figures[0].value, rel=1e-3)
    config["data"]["eval"] = ""
    with pytest.raises(InputError, match=r"evaluate\.every needs data\.eval"):
        from_mapping(config)


def test_more_than_one_process_is_refused_in_one_line(folder, monkeypatch):
    config = from_mapping(_generator(folder))
    mesh = make_mesh(config)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(InputError) as error:
        open_task(config, mesh)
    assert str(error.value) == (
        "config.evaluate.every=2 works in one process alone: set it to 0 and run `python -m "
        "llamagen_jax.evaluate` on the work folder"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": 1}, "config.evaluate: samples=1 must be at least 2"),
        ({"every": -1}, "config.evaluate: every=-1 must not be negative"),
        ({"reference": None}, "every=2 needs reference: name"),
        ({"network": None}, "every=2 needs network: name"),
        ({"reference": "nowhere"}, r"config\.evaluate\.reference: .*nowhere does not exist"),
        ({"network": "tokenizer"}, r"config\.evaluate\.network: .* holds a model 'VQGAN'"),
        ({"network": "network16"}, r"config\.evaluate\.network: .*16x16 px, not 32x32"),
        ({"reference": "other.npz"}, r"config\.evaluate\.reference: .*other.npz' was made with ne"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_first_step(
    tmp_path, folder, change, message
):
    square = np.eye(16), np.eye(64)
    means = np.zeros(16), np.zeros(64)
    held = dict(zip(("sigma", "sigma_s", "mu", "mu_s"), (*square, *means), strict=True))
    np.savez(folder / "other.npz", **held, network="another")
    config = _generator(folder, **change)
    config["evaluate"] = {k: "" if v is None else v for k, v in config["evaluate"].items()}
    with pytest.raises(InputError, match=message):
        tiny.train(from_mapping(config), tmp_path / "run")
    assert not (tmp_path / "run").exists()
