"""Codes drawn by vLLM in this process's company.

Axes: B images, L codes.
"""

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from llamagen_jax.errors import InputError
from llamagen_jax.sampling.settings import SamplingSettings
from llamagen_jax.weights import export

# Positions in a block of vLLM's cache: at most so many, by the platform.
_BLOCK = 128
_MAX_TEMPERATURE = 2


def read_config(folder: str | os.PathLike) -> dict[str, Any]:
    """The `config.json` of a folder that `folder.write` made; InputError for any other."""
    config = export.read_config(folder)
    if config.get("model_type") != "llamagen":
        raise InputError(
            f"{folder} is no folder for vLLM: make one of it with "
            f"python -m llamagen_jax.convert {folder} NEW_FOLDER --vllm"
        )
    return config


def open_engine(
    folder: str | os.PathLike,
    *,
    batch_size: int = 32,
    guidance_scale: float | None = None,
    **options: Any,
) -> Any:
    """A `vllm.LLM` of a folder that `folder.write` made, with a cache for a batch of images.

    Args:
      batch_size: images that are drawn at the same time; others wait for their turn.
      guidance_scale: of all that it draws; None for the folder's.
      **options: of `vllm.LLM`, such as dtype or tensor_parallel_size.

    Raises:
      InputError: the folder is another one or damaged, the scale is not finite, or vLLM is missing.
    """
    config = read_config(folder)
    scale = config["guidance_scale"] if guidance_scale is None else guidance_scale
    if not math.isfinite(scale):
        raise InputError(f"guidance_scale={scale} must be finite")
    try:
        from vllm import LLM  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError:
        raise InputError('drawing by vLLM needs it: pip install "llamagen_jax[vllm]"') from None
    dtype = options.pop("dtype", config["dtype"])
    return LLM(
        os.fspath(folder),
        dtype=dtype,
        hf_overrides={"guidance_scale": scale},
        skip_tokenizer_init=True,
        max_num_seqs=batch_size,
        kv_cache_memory_bytes=_cache_bytes(config, dtype, batch_size, scale > 1),
        **options,
    )


def draw_codes(engine: Any, labels: Sequence[int], settings: SamplingSettings) -> np.ndarray:
    """Draws one image of each label, by other random numbers than `generate`'s.

    Greedy codes are those of `generate`, up to ties that products of another order of sums tip.

    Args:
      engine: of `open_engine`.
      labels: whole numbers [B] in [0, num_classes].
      settings: image i depends on its label, the seed and i alone.

    Returns:
      int32 codes [B, L].

    Raises:
      InputError: a label is out of range, or settings are not the engine's or nothing it has.
    """
    config = engine.llm_engine.model_config.hf_config
    _check(settings, config.guidance_scale)
    for label in labels:
        if not 0 <= label <= config.num_classes:
            raise InputError(f"label {label} must be in [0, {config.num_classes}]")
    prompts = [{"prompt_token_ids": [config.codebook_size + int(label)]} for label in labels]
    params = [_params(settings, i, math.prod(config.grid)) for i in range(len(prompts))]
    outputs = engine.generate(prompts, params)
    return np.array([output.outputs[0].token_ids for output in outputs], np.int32)


def _check(settings: SamplingSettings, guidance_scale: float) -> None:
    """Refuses what would otherwise be left out without a word."""
    wanted = max(settings.guidance_scale, 1)
    if wanted != max(guidance_scale, 1):
        raise InputError(
            f"this engine of vLLM draws with guidance_scale={guidance_scale}, not {wanted}: open "
            "one with that"
        )
    if settings.guidance_interval is not None or settings.decoder != "plain":
        raise InputError(
            "vLLM guides every code and draws code by code: leave out guidance_interval and decoder"
        )
    if settings.temperature > _MAX_TEMPERATURE:
        raise InputError(
            f"vLLM takes temperatures up to {_MAX_TEMPERATURE}, not {settings.temperature}"
        )


def _params(settings: SamplingSettings, number: int, length: int) -> Any:
    from vllm import SamplingParams  # pyright: ignore[reportAttributeAccessIssue]

    # vLLM takes seeds of 63 bits.
    (seed,) = np.random.SeedSequence([settings.seed, number]).generate_state(1, np.uint64) >> 1
    return SamplingParams(
        temperature=0.0 if settings.greedy else settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        seed=int(seed),
        max_tokens=length,
        ignore_eos=True,
        detokenize=False,
    )


def _cache_bytes(config: dict[str, Any], dtype: str, batch_size: int, guided: bool) -> int:
    """Keys and values of a batch's images, and of one more for what vLLM keeps free."""
    blocks = -(-config["max_position_embeddings"] // _BLOCK) * (batch_size + 1)
    width = config["num_key_value_heads"] * config["kernel_width"] * (1 + guided)
    itemsize = 4 if dtype == "float32" else 2
    return 2 * config["num_hidden_layers"] * blocks * _BLOCK * width * itemsize
