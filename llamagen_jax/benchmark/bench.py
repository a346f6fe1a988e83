"""What is timed, and how: medians of calls beside the machine's limits."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from llamagen_jax import flops, zoo
from llamagen_jax.models import attention
from llamagen_jax.models.llama import Llama
from llamagen_jax.models.vqgan import VQGANConfig

_TINY_LLAMA = {"dim": 64, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "vocab_size": 128}
_TINY_VQGAN = {
    "base_channels": 32,
    "channel_multipliers": (1, 1, 1),
    "num_res_blocks": 1,
    "z_channels": 32,
    "codebook_size": 128,
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is timed, on one device.

    Attributes:
      generator, tokenizer: names of `zoo.MODELS`.
      dtype: compute dtype.
      batch_size, image_batch_size: sequences and images per call.
      repeats: timed calls.
      grid_size: side of the code grid that is decoded.
      guidance_scale: of decoding, see `SamplingSettings`.
      top_p: of decoding, likewise.
      weights: of `Llama.for_decoding`, for decoding.
      trained: of `zoo.load`, a trained generator for parallel sampling; None for random weights.
      draft: for the speculative decoder there: of `zoo.load` beside a trained generator, else a
        name of `zoo.MODELS`; None to leave that decoder out.
      prompt_file: of `read_prompts`, for a trained generator that draws from prompts.
      tiny: toys in the place of the models, which prove that all runs.
    """

    generator: str
    tokenizer: str
    dtype: str
    batch_size: int
    image_batch_size: int
    repeats: int
    grid_size: int = 16
    guidance_scale: float = 1.0
    top_p: float = 1.0
    weights: str = "float"
    trained: str | None = None
    draft: str | None = None
    prompt_file: str | None = None
    tiny: bool = False

    @property
    def image_size(self) -> int:
        """Side in pixels of images."""
        return 64 if self.tiny else 256

    def config(self, name: str) -> Any:
        """The configuration of the model `name` of the zoo, or of a toy of its kind."""
        config = dataclasses.replace(zoo.MODELS[name], dtype=self.dtype)
        if not self.tiny:
            return config
        toy = _TINY_VQGAN if isinstance(config, VQGANConfig) else _TINY_LLAMA
        return dataclasses.replace(config, **toy)


@dataclasses.dataclass(frozen=True)
class Timing:
    """One timing.

    Attributes:
      name, shapes: what was run.
      seconds: median of one call.
      rate: of `unit` per second.
      limit: "matrix product" or "memory", or "" for none.
      percent: of that limit's rate, reached by the FLOPs or bytes that the work needs at least.
    """

    name: str
    shapes: str
    seconds: float
    rate: float
    unit: str
    limit: str = ""
    percent: float | None = None


class Bench:
    """Runs calls and sets them against the machine's limits."""

    def __init__(self, setting: Setting):
        self.setting = setting
        self.limits = {
            "matrix product": flops.measured_peak(setting.dtype),
            "memory": measured_bandwidth(),
        }

    def time(
        self,
        name: str,
        shapes: str,
        call: Callable[[], Any],
        *,
        count: float,
        unit: str,
        limit: str = "",
        work: float = 0.0,
    ) -> Timing:
        """Times `call`, which makes `count` of `unit` and needs `work` FLOPs or bytes."""
        seconds = flops.median_seconds(call, self.setting.repeats)
        percent = 100 * work / seconds / self.limits[limit] if limit else None
        return Timing(name, shapes, seconds, count / seconds, unit, limit, percent)


def measured_bandwidth() -> float:
    """Bytes per second of one device's memory: the faster of a long sum and a long copy."""
    on_cpu = jax.default_backend() == "cpu"
    numbers = jnp.ones(2**27 if on_cpu else 2**30, jnp.float32)
    read = jax.jit(jnp.sum)
    copy = jax.jit(lambda x: x + 1)
    return max(
        numbers.nbytes / flops.median_seconds(lambda: read(numbers), 5),
        2 * numbers.nbytes / flops.median_seconds(lambda: copy(numbers), 5),
    )


def random_llama(setting: Setting, **fields: Any) -> tuple[Llama, dict]:
    """The generator of the setting as it is before training; `fields` change its configuration."""
    config = dataclasses.replace(setting.config(setting.generator), **fields)
    model = Llama(config, attention=attention.choose("auto", setting.dtype))
    codes = jnp.zeros((1, config.code_length), jnp.int32)
    text = jnp.zeros((1, config.condition_length, config.caption_dim))
    condition = jnp.zeros(1, jnp.int32) if config.condition == "class" else text
    return model, jax.jit(model.init)(jax.random.key(0), codes, condition)["params"]
