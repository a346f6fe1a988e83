"""What `benchmark` times of drawing codes: the plain decoder, those that guess, and the prefill."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llamagen_jax import flops, zoo
from llamagen_jax.benchmark.bench import Bench, Setting, Timing, random_llama
from llamagen_jax.errors import InputError
from llamagen_jax.models.llama import Llama
from llamagen_jax.models.llama_config import LlamaConfig
from llamagen_jax.sampling import jacobi, plain, speculative
from llamagen_jax.sampling.draw import Inputs
from llamagen_jax.sampling.generate import generate, sample_keys
from llamagen_jax.sampling.settings import SamplingSettings
from llamagen_jax.text.prompts import check_prompts, encode_prompts, open_encoder, read_prompts
from llamagen_jax.weights import export
from llamagen_jax.weights.kinds import describe

_TEXT_TOKENS = 120


def decode(bench: Bench) -> Iterator[Timing]:
    """A batch by the plain decoder."""
    s = bench.setting
    model, params = random_llama(s, grid_size=s.grid_size)
    model, params = model.for_decoding(params, s.weights)
    labels = np.zeros(s.batch_size, np.int32)
    c = model.config
    # Of the embedding a step reads a row for each sample.
    read = params | {"codes_embedding": {}}
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(read))
    # On average half of the positions are filled.
    rows = s.batch_size * (2 if s.guidance_scale > 1 else 1)
    cache = rows * c.n_layers * 2 * c.kv_heads * c.head_dim * c.code_length / 2
    guided = f", guidance {s.guidance_scale:g}" if s.guidance_scale > 1 else ""
    yield bench.time(
        "decode",
        f"{_name(s)}, {s.batch_size} samples of {c.code_length} codes{guided}",
        lambda: generate(model, params, labels, settings=_settings(s)),
        count=s.batch_size * c.code_length,
        unit="codes",
        limit="memory",
        work=c.code_length * (weights + cache * jnp.dtype(s.dtype).itemsize),
    )


def decoders(bench: Bench) -> Iterator[Timing]:
    """One image, and a batch, by every decoder; how often guesses are right depends on weights.

    Raises:
      InputError: the draft does not fit, or prompts are missing or of no use.
    """
    s = bench.setting
    model, params = _opened(s, s.trained or s.generator)
    draft = _opened(s, s.draft) if s.draft else None
    if draft:
        speculative.check_draft(model.config, draft[0].config)
    conditions, masks = _conditions(s, model.config, s.batch_size)
    settings, length = _settings(s), model.config.code_length
    for count in sorted({1, s.batch_size}):
        mask = None if masks is None else masks[:count]
        inputs = Inputs(sample_keys(0, np.arange(count)), conditions[:count], mask)
        arguments = model, params, inputs, settings
        calls: dict[str, Callable[[], Any]] = {
            "plain": functools.partial(plain.decode, *arguments),
            "jacobi": functools.partial(jacobi.decode, *arguments),
        }
        if draft:
            calls["speculative"] = functools.partial(speculative.decode, *arguments, draft=draft)
        for name, call in calls.items():
            passes = f"{length} passes"
            if name != "plain":
                taken = np.asarray(call().passes)
                passes = f"{taken.max()} passes, {taken.mean():.1f} on average"
            yield bench.time(
                f"decode, {name}",
                f"{_name(s)}, {count} samples of {length} codes in {passes}",
                call,
                count=count * length,
                unit="codes",
            )


def prefill(bench: Bench) -> Iterator[Timing]:
    """The condition of a text-conditional generator."""
    s = bench.setting
    model, params = random_llama(s, condition="text", condition_length=_TEXT_TOKENS)
    x = jnp.zeros((s.batch_size, _TEXT_TOKENS, model.config.dim), s.dtype)

    @jax.jit
    def prefill(params, x):
        decoder, params = model.for_decoding(params)
        positions, cache = jnp.arange(_TEXT_TOKENS)[None], decoder.init_cache(s.batch_size)
        return decoder.apply({"params": params}, x, positions, None, cache, method="extend")

    yield bench.time(
        "prefill",
        f"{s.generator} {s.dtype}, {s.batch_size} x {_TEXT_TOKENS} text features",
        lambda: prefill(params, x),
        count=s.batch_size * _TEXT_TOKENS,
        unit="tokens",
        limit="matrix product",
        work=flops.count(prefill, params, x),
    )


def _opened(setting: Setting, name: str) -> tuple[Llama, dict]:
    """A trained generator, or one of random weights whose logits differ from code to code."""
    if setting.trained:
        model, params = zoo.load(name)
        if not isinstance(model.config, LlamaConfig):
            raise InputError(f"{name} is a {describe(model.config)}; expected a transformer")
    else:
        model, params = random_llama(
            dataclasses.replace(setting, generator=name), grid_size=setting.grid_size
        )
        shape = params["output"].shape
        params = params | {"output": 0.02 * jax.random.normal(jax.random.key(1), shape)}
    model, params = model.for_decoding(params, setting.weights)
    return model, jax.device_put(params)


def _conditions(setting: Setting, config: LlamaConfig, count: int) -> tuple[Any, Any]:
    """What `count` samples are of: labels, or the features of prompts and their mask."""
    if config.condition == "class":
        return np.arange(count) % config.num_classes, None
    encoder = export.recorded(setting.trained or "").get("text_encoder")
    if not setting.prompt_file or not encoder:
        raise InputError(
            f"{setting.trained} draws from prompts: give --prompt-file and the work folder of a "
            "run that named its text encoder"
        )
    prompts = read_prompts(setting.prompt_file)
    check_prompts(prompts, setting.prompt_file)
    opened = open_encoder(encoder, config)
    features = encode_prompts(opened, np.resize(prompts, count).tolist())
    return features["condition"], features["condition_mask"]


def _settings(setting: Setting) -> SamplingSettings:
    return SamplingSettings(0, guidance_scale=setting.guidance_scale, top_p=setting.top_p)


def _name(setting: Setting) -> str:
    name = Path(setting.trained).name if setting.trained else f"{setting.generator} {setting.dtype}"
    return name if setting.weights == "float" else f"{name}, {setting.weights} weights"
