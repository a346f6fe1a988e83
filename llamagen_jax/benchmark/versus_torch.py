"""The same jobs by the original LlamaGen in PyTorch and by this package, in turn, in one run.

The original is a user's checkout of github.com/FoundationVision/LlamaGen, whose modules are
imported from there. Both have the same weights and float32 on the CPU.
"""

import importlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from llamagen_jax.benchmark.bench import Setting
from llamagen_jax.benchmark.parts import generator_config
from llamagen_jax.errors import InputError
from llamagen_jax.models.llama import Llama
from llamagen_jax.models.vqgan import VQGAN
from llamagen_jax.sampling.generate import generate
from llamagen_jax.training import generator
from llamagen_jax.weights.mapping import to_torch
from llamagen_jax.weights.published import MODELS

_IMAGES = (1, 4, 8)
_SETTINGS = {"top_k": 2000, "temperature": 1.0, "top_p": 1.0}
_GUIDANCE_SCALE = 2.0
_TRAINED = 4


class Pair(NamedTuple):
    """Milliseconds of one job, a median each."""

    job: str
    original: float
    ours: float

    @property
    def ratio(self) -> float:
        return self.original / self.ours


class _Job(NamedTuple):
    """Two calls that do the same; a time is divided by `parts` of the job."""

    name: str
    original: Callable[[], Any]
    ours: Callable[[], Any]
    parts: int = 1


def compare(checkout: str, setting: Setting, only: str = "") -> list[Pair]:
    """Times every job by both, in turn, after one call of each that is not counted.

    Args:
      checkout: folder of the original.
      setting: names of the models, and how often to repeat.
      only: part of the names of the jobs.

    Raises:
      InputError: PyTorch is missing, or the folder does not hold the original.
    """
    original = _import(checkout)
    pairs = []
    for make in (_decoding, _images, _training):
        for job in (job for job in make(original, setting) if only in job.name):
            times: dict[str, list[float]] = {"original": [], "ours": []}
            for repeat in tqdm(range(setting.repeats + 1), desc=job.name):
                for name, seconds in times.items():
                    started = time.perf_counter()
                    jax.block_until_ready(getattr(job, name)())
                    if repeat:
                        seconds.append(1e3 * (time.perf_counter() - started) / job.parts)
            pairs.append(Pair(job.name, *(statistics.median(t) for t in times.values())))
    return pairs


def table(pairs: list[Pair]) -> str:
    """A Markdown table of the medians and their ratios."""
    lines = ["| job | original | llamagen_jax | ratio |", "|---|---|---|---|"]
    lines += [f"| {p.job} | {p.original:.1f} ms | {p.ours:.1f} ms | {p.ratio:.2f} |" for p in pairs]
    return "\n".join(lines)


class _Original(NamedTuple):
    """Modules of the original, and PyTorch."""

    torch: Any
    gpt: Any
    generate: Any
    vq_model: Any


def _import(checkout: str) -> _Original:
    try:
        import torch
    except ImportError:
        raise InputError("--versus-torch needs PyTorch: pip install torch") from None
    torch.set_num_threads(os.cpu_count() or 1)
    names = (
        "autoregressive.models.gpt",
        "autoregressive.models.generate",
        "tokenizer.tokenizer_image.vq_model",
    )
    sys.path.insert(0, checkout)
    try:
        return _Original(torch, *map(importlib.import_module, names))
    except ImportError as error:
        raise InputError(
            f"{checkout} is no checkout of github.com/FoundationVision/LlamaGen ({error})"
        ) from error
    finally:
        sys.path.remove(checkout)


def _decoding(original: _Original, setting: Setting) -> Iterator[_Job]:
    """Of all codes of some images, timed by step."""
    torch, config = original.torch, MODELS[setting.generator]
    params = _params(Llama(config), jnp.zeros((1, config.code_length), int), jnp.zeros(1, int))
    theirs = _load(original, original.gpt.GPT_models[setting.generator], params, config)
    model, params = Llama(config).for_decoding(params)
    for count in _IMAGES:

        def by_original(count=count):
            labels, length = torch.arange(count), config.code_length
            scale = {"cfg_scale": _GUIDANCE_SCALE}
            return original.generate.generate(theirs, labels, length, **scale, **_SETTINGS).numpy()

        def by_us(count=count):
            scale = {"guidance_scale": _GUIDANCE_SCALE}
            return generate(model, params, np.arange(count), seed=0, **scale, **_SETTINGS)

        name = f"{setting.generator}, decode {count} images, per step"
        yield _Job(name, by_original, by_us, config.code_length)


def _images(original: _Original, setting: Setting) -> Iterator[_Job]:
    torch, config, count = original.torch, MODELS[setting.tokenizer], 2
    size = 16 * config.downsampling
    images = jnp.zeros((count, size, size, 3))
    variables = {"params": _params(VQGAN(config), images[:1])}
    theirs = _load(
        original, original.vq_model.VQ_models[setting.tokenizer], variables["params"], config
    )
    encode, decode = (
        jax.jit(lambda v, x, m=method: VQGAN(config).apply(v, x, method=m))
        for method in ("encode", "decode")
    )
    pixels, codes = torch.zeros(count, 3, size, size), jnp.zeros((count, 16, 16), int)
    shape = (count, config.codebook_dim, 16, 16)
    flat = torch.zeros(count * 256, dtype=torch.long)

    def inference(call):
        def run():
            with torch.inference_mode():
                return call()

        return run

    yield _Job(
        f"{setting.tokenizer}, encode {count} images of {size} px",
        inference(lambda: theirs.encode(pixels)[2][2].numpy()),
        lambda: encode(variables, images),
    )
    yield _Job(
        f"{setting.tokenizer}, decode {count} images of {size} px",
        inference(lambda: theirs.decode_code(flat, shape).numpy()),
        lambda: decode(variables, codes),
    )


def _training(original: _Original, setting: Setting) -> Iterator[_Job]:
    """Of one step of AdamW on teacher-forced codes."""
    torch, config = original.torch, MODELS[setting.generator]
    theirs = original.gpt.GPT_models[setting.generator](**_sizes(config)).train()
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-4, betas=(0.9, 0.95))
    codes, labels = torch.zeros(_TRAINED, config.code_length, dtype=torch.long), torch.arange(4)

    def by_original():
        optimizer.zero_grad(set_to_none=True)
        _, loss = theirs(cond_idx=labels, idx=codes[:, :-1], targets=codes)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    task = generator.make_task(generator_config(setting, setting.generator))
    step, state = jax.jit(task.train_step, donate_argnums=0), jax.jit(task.init)()
    batch = {"codes": jnp.array(codes.numpy()), "label": jnp.arange(4)}

    def by_us():
        nonlocal state
        state, metrics = step(state, batch)
        return metrics

    name = f"{setting.generator}, training step of {_TRAINED} x {config.code_length} codes"
    yield _Job(name, by_original, by_us)


def _params(model: Any, *inputs: Any) -> dict:
    params = jax.jit(model.init)(jax.random.key(0), *inputs)["params"]
    if "output" in params:  # At its start all codes would be tied.
        params["output"] = jax.random.normal(jax.random.key(1), params["output"].shape) * 0.02
    return params


def _load(original: _Original, make: Callable[..., Any], params: dict, config: Any) -> Any:
    """The original's model with our parameters."""
    module = make(**_sizes(config)).eval()
    tensors = to_torch(jax.tree.map(np.asarray, params), config)
    found = {name: original.torch.from_numpy(np.array(t)) for name, t in tensors.items()}
    # Not strictly, for it keeps tables and statistics among its tensors.
    module.load_state_dict(found, strict=False)
    if others := dict(module.named_parameters()).keys() - found.keys():
        raise InputError(f"the original has parameters that are not ours: {', '.join(others)}")
    return module


def _sizes(config: Any) -> dict[str, Any]:
    """What the original's constructors take beside a model's name."""
    if hasattr(config, "codebook_size"):
        return {
            "codebook_size": config.codebook_size,
            "codebook_embed_dim": config.codebook_dim,
        }
    return {
        "vocab_size": config.vocab_size,
        "block_size": config.code_length,
        "num_classes": config.num_classes,
        "cls_token_num": config.condition_length,
        "model_type": "c2i",
    }
