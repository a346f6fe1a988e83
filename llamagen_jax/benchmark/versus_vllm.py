"""The same images drawn by vLLM and by `generate`, in turn, in one run.

Both have the same weights, which are random. It runs where vLLM is installed; each vLLM call ends
with codes on the host, as each of ours does.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from llamagen_jax.benchmark.bench import Setting, random_llama
from llamagen_jax.sampling.generate import generate
from llamagen_jax.sampling.settings import SamplingSettings
from llamagen_jax.serve.vllm import engine, folder
from llamagen_jax.weights.mapping import layout_of

_IMAGES = (1, 8)


class Pair(NamedTuple):
    """Images per second of a batch, a median each."""

    images: int
    vllm: float
    ours: float


def compare(setting: Setting) -> list[Pair]:
    """Draws batches by both, in turn, after one of each that is not counted.

    Args:
      setting: the generator, its dtype and grid, the guidance scale, and how often to repeat.

    Raises:
      InputError: vLLM is missing.
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    model, params = random_llama(setting, condition="class", grid_size=setting.grid_size)
    settings = SamplingSettings(0, setting.guidance_scale, top_k=2000)
    with tempfile.TemporaryDirectory() as parent:
        tensors = layout_of(model.config).tensor_views(params, "random parameters")
        path = Path(parent) / "for_vllm"
        folder.write(path, model.config, tensors, guidance_scale=setting.guidance_scale)
        opened = engine.open_engine(path, batch_size=max(_IMAGES))
    model, params = model.for_decoding(params)
    params = jax.device_put(params)
    pairs = []
    for images in _IMAGES:
        labels = list(range(images))
        calls = {
            "vllm": lambda labels=labels: engine.draw_codes(opened, labels, settings),
            "ours": lambda labels=labels: generate(model, params, labels, settings=settings),
        }
        rates: dict[str, list[float]] = {name: [] for name in calls}
        for repeat in tqdm(range(setting.repeats + 1), desc=f"{images} images"):
            for name, call in calls.items():
                started = time.perf_counter()
                np.asarray(call())
                if repeat:
                    rates[name].append(images / (time.perf_counter() - started))
        pairs.append(Pair(images, *(statistics.median(r) for r in rates.values())))
    return pairs


def table(pairs: list[Pair]) -> str:
    """A Markdown table of images per second."""
    lines = ["| images at a time | vLLM | llamagen_jax |", "|---|---|---|"]
    lines += [f"| {p.images} | {p.vllm:.3g} images/s | {p.ours:.3g} images/s |" for p in pairs]
    return "\n".join(lines)
