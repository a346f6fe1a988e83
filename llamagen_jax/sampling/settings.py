"""How codes are drawn: one object for every command and for training's previews."""

import dataclasses

from llamagen_jax import seeds
from llamagen_jax.errors import InputError, check_finite, nearest

DECODERS = ("plain", "jacobi", "speculative", "auto")


@dataclasses.dataclass(frozen=True)
class SamplingSettings:
    """What a sample depends on beside the model, its condition and its sample id.

    Attributes:
      seed: 0 to 2^64 - 1.
      guidance_scale: logits are uncond + scale * (cond - uncond); at most 1 means no guidance and
        computes no unconditional branch.
      guidance_interval: None to guide every code; n to guide the first n + 2 only (the count of
        the original's `cfg_interval=n`), after which the unconditional branch is not computed.
      temperature: > 0, divides the logits before the filters.
      top_k: keep the k most probable codes and those tied with the last; 0 keeps all.
      top_p: keep the most probable codes up to and including the one that brings their
        probability over top_p; 1 keeps all.
      greedy: take the most probable code; temperature and filters then change nothing.
      control_scale: >= 0, multiplies what the control adds; without control it changes nothing.
      keep_control: the unconditional branch keeps the control, so that guidance strengthens the
        condition alone; else it has neither.
      decoder: one of `DECODERS`, all of which draw the same samples: "plain" code by code, "jacobi"
        and "speculative" several per pass of the model, the latter with a draft; "auto" takes the
        one that pays for the batch, see `generate.choose_decoder`.

    Raises:
      InputError: a value is out of its range (the message names it).
    """

    seed: int
    guidance_scale: float = 1.0
    guidance_interval: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    greedy: bool = False
    control_scale: float = 1.0
    keep_control: bool = False
    decoder: str = "plain"

    def __post_init__(self):
        seeds.check(self.seed, "seed")
        check_finite(self)
        if self.temperature <= 0:
            raise InputError(
                f"temperature={self.temperature} must be positive; use greedy for the limit"
            )
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p={self.top_p} must be in (0, 1]")
        if self.top_k < 0:
            raise InputError(f"top_k={self.top_k} must not be negative")
        if self.guidance_interval is not None and self.guidance_interval < 0:
            raise InputError(f"guidance_interval={self.guidance_interval} must not be negative")
        if self.control_scale < 0:
            raise InputError(f"control_scale={self.control_scale} must not be negative")
        if self.decoder not in DECODERS:
            raise InputError(
                f"there is no decoder '{self.decoder}'; {nearest(self.decoder, DECODERS)}"
            )

    def num_guided(self, length: int) -> int:
        """How many of `length` codes are guided; they come first."""
        if self.guidance_scale <= 1:
            return 0
        if self.guidance_interval is None:
            return length
        return min(length, self.guidance_interval + 2)
