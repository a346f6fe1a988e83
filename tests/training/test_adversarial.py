"""Training a tokenizer against its discriminator."""

import itertools
import json
import logging
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from llamagen_jax import checkpoint, sharding
from llamagen_jax.data.pipeline import train_batches
from llamagen_jax.data.sources import open_source
from llamagen_jax.errors import InputError
from llamagen_jax.models.vqgan import VQGAN
from llamagen_jax.training import codebook, tokenizer
from llamagen_jax.training.config import from_mapping
from llamagen_jax.weights import export


def adversarial_config(**changes):
    """A run of four steps on eight devices; the discriminator joins at the second."""
    defaults = {
        "log_every": 1,
        "mesh": {"data": 4, "fsdp": 2, "tensor": 1},
        "data__image_size": 8,
        "data__eval": "",
        "model__channel_multipliers": (1,),
        "loss__adversarial_weight": 0.5,
        "loss__adversarial_start": 2,
        "loss__adaptive_weight": True,
        "discriminator__base_channels": 8,
        "discriminator__num_layers": 1,
        "optimizer__warmup_steps": 0,
        "optimizer__ema_decay": 0.9,
    }
    return from_mapping(tiny.tokenizer_config(**defaults | changes))


@pytest.fixture(scope="module")
def fresh():
    """The state that the loop starts from, on one device."""
    config = adversarial_config()
    mesh = sharding.make_mesh(**vars(config.mesh))
    with jax.set_mesh(mesh):
        init = tokenizer.make_task(config).init
        state = sharding.sharded_init(init, config.sharding_rules, mesh)
        return jax.device_put(state, jax.devices()[0])


@pytest.fixture(scope="module")
def first_steps(fresh):
    """States and metrics after each of two steps on one device, of the loop's batches."""
    config = adversarial_config()
    step, state, states, values = jax.jit(tokenizer.make_task(config).train_step), fresh, [], []
    source = open_source(config.data.source, config.data.train)
    batches = train_batches(source, config.data, batch_size=config.batch_size, seed=config.seed)
    for batch in itertools.islice(batches, 2):
        state, metrics = step(state, {"image": batch["image"]})
        states.append(state)
        values.append(metrics.compute())
    return states, values


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """Work folder and final state."""
    workdir = tmp_path_factory.mktemp("adversarial") / "run"
    return workdir, tiny.train(adversarial_config(), workdir)


def logged(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    return [line for line in lines if "train/loss" in line]


def assert_same_bits(first, second):
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


def test_discriminator_starts_when_it_is_told(fresh, first_steps):
    (before, after), (no_values, values) = first_steps
    assert_same_bits(before.discriminator, fresh.discriminator)
    assert no_values["adversarial_loss"] == no_values["discriminator_loss"] == 0
    real, fake = values["logits_real"], values["logits_fake"]
    weight = 0.5 * values["adaptive_weight"]
    np.testing.assert_allclose(values["adversarial_loss"], -weight * fake, rtol=1e-4)
    # Of the hinge's logits all are on its slope, as those of a fresh discriminator are.
    np.testing.assert_allclose(
        values["discriminator_loss"], 0.5 * (1 - real + 1 + fake) / 2, rtol=1e-4
    )
    now, drawn = after.discriminator, fresh.discriminator
    assert (now.params["conv_0"]["kernel"] != drawn.params["conv_0"]["kernel"]).any()
    assert (now.batch_stats["norm_1"]["mean"] != 0).any()
    # Adam's bias correction and the learning rate count from its own first step.
    counts = [x for x in jax.tree.leaves(now.opt_state) if x.dtype == np.int32]
    assert counts
    assert all(count == 1 for count in counts)


def test_no_discriminator_without_a_weight():
    task = tokenizer.make_task(from_mapping(tiny.tokenizer_config()))
    state = jax.eval_shape(task.init)
    assert state.discriminator is None
    assert state.lpips is None


def test_losses_are_equal_on_one_device_and_eight(first_steps, finished_run):
    """So the statistics of the batch normalisation are over the whole batch."""
    for one, eight in zip(first_steps[1], logged(finished_run[0])[:2], strict=True):
        for name, value in one.items():
            rtol = 1e-5 if "loss" in name else 1e-4
            np.testing.assert_allclose(eight[f"train/{name}"], value, rtol, 1e-6, err_msg=name)


def test_resumed_run_ends_with_the_same_bits(finished_run, monkeypatch, caplog):
    workdir, whole = finished_run
    before = logged(workdir)
    shutil.rmtree(workdir / "checkpoints" / "4")
    monkeypatch.setattr(codebook, "collapse_warning", "alarm {} {} {}".format)
    with caplog.at_level(logging.WARNING, logger="absl"):
        resumed = tiny.train(adversarial_config(), workdir)
    assert_same_bits(resumed, whole)
    assert_same_bits(checkpoint.load_params(workdir)[2], whole.ema)

    after = logged(workdir)
    assert codebook.usage(resumed.code_age) == after[-1]["train/codebook_usage"]
    assert [line["train/loss"] for line in after] == [line["train/loss"] for line in before]
    for line in after[2:]:
        step, usage = line["step"], line["train/codebook_usage"]
        assert f"alarm {step} {step * 8 * 64} {usage}" in caplog.messages


def test_fine_tuning_starts_from_a_model_alone(tmp_path, fresh):
    config = adversarial_config(init_from=str(tmp_path / "trained"))
    trained = jax.tree.map(lambda leaf: leaf + 1, fresh.params)
    export.write(tmp_path / "trained", VQGAN(config.model), trained)
    state = tokenizer.put_weights(tokenizer.load_weights(config), fresh)
    assert_same_bits(state.params, trained)
    assert_same_bits(state.ema, trained)
    assert_same_bits((state.discriminator, state.opt_state), (fresh.discriminator, fresh.opt_state))


def test_fine_tuning_another_model_is_refused(tmp_path, fresh):
    config = adversarial_config()
    params = fresh.params | {"quantizer": {"codebook": jnp.zeros((64, 4))}}
    larger = adversarial_config(model__codebook_size=64).model
    export.write(tmp_path / "larger", VQGAN(larger), params)
    export.write(tmp_path / "trained", VQGAN(config.model), fresh.params)
    for changes, message in (
        ({"init_from": str(tmp_path / "larger")}, r"codebook \[64, 4\] instead of \[32, 4\]"),
        (
            {"init_from": str(tmp_path / "trained"), "model__l2_normalize": False},
            "l2_normalize is True there",
        ),
    ):
        with pytest.raises(InputError, match=message):
            tiny.train(adversarial_config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


class _Brightness(nn.Module):
    """In the place of LPIPS: the mean of the first images."""

    @nn.compact
    def __call__(self, first, second):
        return first.mean(axis=(1, 2, 3)) + self.param("zero", nn.initializers.zeros, ())


def test_perceptual_loss_of_a_part_of_the_batch(monkeypatch):
    monkeypatch.setattr(tokenizer, "LPIPS", _Brightness)
    changes = {"loss__perceptual_weight": 0.5, "loss__perceptual_every": 4, "batch_size": 8}
    task = tokenizer.make_task(adversarial_config(loss__adversarial_weight=0.0, **changes))
    images = np.full((8, 8, 8, 3), 255, np.uint8)
    images[[0, 4]] = 0
    _, metrics = jax.jit(task.train_step)(jax.jit(task.init)(), {"image": images})
    np.testing.assert_allclose(metrics.compute()["perceptual_loss"], -0.5)


def test_perceptual_loss_without_its_files_is_refused(tmp_path):
    config = adversarial_config(loss__perceptual_weight=1.0, loss__vgg16="vgg16.pth")
    with pytest.raises(InputError, match=r"vgg16\.pth' is no file; get it from https"):
        tiny.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
