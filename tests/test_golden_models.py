"""The models, losses, sampler and optimiser compute what the original does (tests/golden)."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden_weights import load, params

from llamagen_jax import convert
from llamagen_jax.models.llama import Llama, LlamaConfig
from llamagen_jax.models.vqgan import VQGAN, VQGANConfig
from llamagen_jax.sampling.filters import filter_logits
from llamagen_jax.sampling.generate import generate
from llamagen_jax.training.optimizer import OptimizerConfig, adamw

TRANSFORMERS = ["gpt_tiny_c2i", "gpt_tiny_gqa", "gpt_wide_c2i", "gpt_tiny_t2i"]


def close(actual, expected, atol=1e-4):
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=atol)


def vqgan_config(meta) -> VQGANConfig:
    return VQGANConfig(
        base_channels=meta["ch"],
        channel_multipliers=meta["ch_mult"],
        z_channels=meta["z_channels"],
        codebook_size=meta["codebook_size"],
        codebook_dim=meta["codebook_dim"],
        l2_normalize=meta["l2_norm"],
        commitment_weight=meta["commit_loss_beta"],
        entropy_weight=meta["entropy_loss_ratio"],
    )


def llama_config(meta) -> LlamaConfig:
    return LlamaConfig(
        dim=meta["dim"],
        n_layers=meta["n_layer"],
        n_heads=meta["n_head"],
        n_kv_heads=meta.get("n_kv_head"),
        vocab_size=meta["vocab_size"],
        grid_size=math.isqrt(meta["block_size"]),
        num_classes=meta["num_classes"],
        condition={"c2i": "class", "t2i": "text"}[meta["model_type"]],
        condition_length=meta["cls_token_num"],
        caption_dim=meta.get("caption_dim", 2048),
        multiple_of=meta["multiple_of"],
    )


@pytest.mark.parametrize("name", ["vq_small", "vq_small_nol2", "vq16_full", "vq8_full"])
def test_tokenizer(name):
    golden, entries = load(name)
    config = vqgan_config(entries["meta"])
    model, variables = VQGAN(config), {"params": params(config)}
    output = jax.jit(model.apply)(variables, golden["image"])
    decoded = jax.jit(lambda v, codes: model.apply(v, codes, method="decode"))(
        variables, output.codes
    )
    close(output.prequant, golden["prequant"])
    codes = output.codes.reshape(golden["codes"].shape)
    np.testing.assert_array_equal(codes, golden["codes"])
    close(output.reconstruction, golden["recon"])
    close(decoded, golden["decoded"])
    close(output.vq_loss, golden["vq_loss"])
    close(output.commitment_loss, golden["commit_loss"])
    close(output.entropy_loss, golden["entropy_loss"])


def apply(model, weights, golden):
    """Teacher-forced logits for the inputs of a golden file."""
    inputs = golden["tokens"], golden["cond"], golden.get("cond_mask")
    return model.apply({"params": weights}, *inputs)


def mean_loss(logits, golden):
    """Cross-entropy averaged over the samples marked as valid."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, golden["tokens"])
    return jnp.average(losses.mean(axis=-1), weights=golden.get("valid"))


def assert_near_in_bfloat16(model, weights, golden, positions=slice(None)):
    """The root mean square error is below 2 % of the logits' standard deviation."""
    model = Llama(dataclasses.replace(model.config, dtype="bfloat16"))
    logits = jax.jit(lambda w: apply(model, w, golden)[:, positions])(weights)
    error = np.sqrt(np.mean((np.asarray(logits) - golden["logits"]) ** 2))
    assert 0 < error < 0.02 * golden["logits"].std()


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformer(name):
    golden, entries = load(name)
    model = Llama(llama_config(entries["meta"]))
    weights = params(model.config)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss_and_grads(weights):
        logits = apply(model, weights, golden)
        return mean_loss(logits, golden), logits

    (loss, logits), grads = loss_and_grads(weights)
    close(logits, golden["logits"])
    close(loss, golden["loss"])
    grads = convert.to_torch(grads, model.config)
    norms = {tensor: np.linalg.norm(grad) for tensor, grad in grads.items()}
    assert norms.pop("cls_embedding.uncond_embedding", 0) == 0
    assert norms.keys() == entries["grad_norms"].keys()
    for tensor, expected in entries["grad_norms"].items():
        np.testing.assert_allclose(norms[tensor], expected, rtol=1e-3, err_msg=tensor)
    assert_near_in_bfloat16(model, weights, golden)


@pytest.mark.parametrize(("scale", "interval"), [(1.0, None), (2.0, None), (2.0, 5)])
@pytest.mark.parametrize("name", ["gpt_tiny_c2i", "gpt_wide_c2i", "gpt_tiny_t2i"])
def test_greedy_samples(name, scale, interval):
    golden, entries = load(name)
    model = Llama(llama_config(entries["meta"]))
    codes = generate(
        model,
        params(model.config),
        golden["cond"],
        seed=0,
        condition_mask=golden.get("cond_mask"),
        guidance_scale=scale,
        guidance_interval=interval,
        greedy=True,
    )
    expected = golden[f"greedy_cfg{scale}_int{-1 if interval is None else interval}"]
    np.testing.assert_array_equal(codes, expected)


def test_gpt_b_at_full_size():
    golden, _ = load("gptb_full")
    model = Llama(LlamaConfig())
    weights = params(model.config)
    logits = jax.jit(lambda w: apply(model, w, golden))(weights)
    close(logits[:, golden["positions"]], golden["logits"])
    close(mean_loss(logits, golden), golden["loss"])
    assert_near_in_bfloat16(model, weights, golden, golden["positions"])


def test_sampling_filters():
    golden, _ = load("sampling_filter")
    for (top_k, top_p), expected in zip(golden["cases"], golden["probs"], strict=True):
        kept = filter_logits(golden["logits"], min(int(top_k), 200), float(top_p))
        close(jax.nn.softmax(kept), expected, atol=1e-6)
        np.testing.assert_array_equal(np.isfinite(kept), expected > 0)


def test_adamw_trajectory():
    golden, entries = load("adamw_trajectory")
    meta = entries["meta"]
    config = llama_config(meta)
    model, weights = Llama(config), params(config)
    optimizer = adamw(
        OptimizerConfig(
            learning_rate=meta["lr"],
            schedule="constant",
            warmup_steps=0,
            b1=meta["b1"],
            b2=meta["b2"],
            weight_decay=meta["weight_decay"],
            clip_norm=meta["clip"],
            ema_decay=0.0,
        ),
        steps=len(golden["losses"]),
    )

    @jax.jit
    def step(weights, state, codes, labels):
        batch = {"tokens": codes, "cond": labels}
        loss, grads = jax.value_and_grad(lambda w: mean_loss(apply(model, w, batch), batch))(
            weights
        )
        updates, state = optimizer.update(grads, state, weights)
        norm = jnp.sqrt(sum(jnp.vdot(grad, grad) for grad in jax.tree.leaves(grads)))
        return optax.apply_updates(weights, updates), state, loss, norm

    state, losses, norms = optimizer.init(weights), [], []
    for codes, labels in zip(golden["tokens"], golden["labels"], strict=True):
        weights, state, loss, norm = step(weights, state, codes, labels)
        losses.append(loss)
        norms.append(norm)
    close(losses, golden["losses"])
    np.testing.assert_allclose(norms, golden["grad_norms"], rtol=1e-3)
