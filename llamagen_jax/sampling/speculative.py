"""The speculative decoder: a small generator guesses, code by code, what the large one verifies.

The draft draws by the same settings and the same noise as the model, so that its guesses are right
where the two are alike, and the sample is the model's own whatever the draft is (`windows`). That
takes the place of the rejections of arXiv 2211.17192.

Axes: B samples, L codes, T condition tokens.
"""

import functools

import jax
import jax.numpy as jnp

from llamagen_jax.errors import InputError
from llamagen_jax.models.llama import Llama
from llamagen_jax.models.llama_config import LlamaConfig
from llamagen_jax.sampling import draw, windows
from llamagen_jax.sampling.draw import Inputs, Numbers, Program
from llamagen_jax.sampling.settings import SamplingSettings
from llamagen_jax.sampling.windows import Progress

WINDOW = 8


def check_draft(model: LlamaConfig, draft: LlamaConfig) -> None:
    """Raises InputError unless both make the same codes of the same conditions."""
    fields = ["vocab_size", "grid", "condition"]
    fields += ["num_classes"] if model.condition == "class" else ["condition_length", "caption_dim"]
    for field in fields:
        expected, given = getattr(model, field), getattr(draft, field)
        if given != expected:
            raise InputError(
                f"the draft's {field} is {given} but the generator's {expected}; "
                "give a draft that was trained on the same codes"
            )


def decode(
    model: Llama,
    params: dict,
    inputs: Inputs,
    settings: SamplingSettings,
    draft: tuple[Llama, dict],
) -> Progress:
    """All codes, and the passes of the model that they took; arguments as of `plain.decode`.

    Args:
      draft: another model and its parameters, as `generate` takes them. Where it takes no control,
        it guesses without.

    Raises:
      InputError: the draft does not fit the model.
    """
    draft_model, draft_params = draft
    check_draft(model.config, draft_model.config)
    program, numbers = draw.split_settings(settings, model.config)
    return _decode((model, draft_model), program, (params, draft_params), inputs, numbers)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _decode(models, program: Program, params, inputs: Inputs, numbers: Numbers):
    keys, condition, condition_mask, known, control = inputs
    config, B = models[0].config, len(condition)
    width = min(WINDOW, config.code_length - 1)
    pick = functools.partial(draw.pick, program, numbers)

    def open_model(model, params):
        """The first code's logits, the function for those of others, and the cache."""
        decoder, params = model.for_decoding(params)
        apply = functools.partial(decoder.apply, {"params": params})
        rows = 2 * B if program.num_guided else B
        images = control if model.config.control_layers else None
        added = draw.embed_control(apply, images, numbers, rows)
        cache = decoder.init_cache(rows)
        logits, cache = draw.prefill(apply, cache, condition, condition_mask, added)
        length = config.condition_length
        score = functools.partial(windows.score, apply, length, condition_mask, added)
        return logits, score, cache

    logits, score, cache = open_model(models[0], params[0])
    _, score_draft, draft_cache = open_model(models[1], params[1])

    def step(carry):
        progress, (cache, draft_cache) = carry
        places = windows.place(progress, width)

        def guess(carry, place):
            """Draws the code at `place` [B] by the draft, unless it is done."""
            codes, draft_cache = carry
            before = jnp.take_along_axis(codes, place[:, None] - 1, axis=1)
            logits, draft_cache = score_draft(before, place[:, None], draft_cache)
            rows = jnp.arange(B)
            drawn = jnp.where(
                place < progress.done, codes[rows, place], pick(keys, logits[:, 0], place)
            )
            codes = draw.keep_known(known, codes.at[rows, place].set(drawn))
            return (codes, draft_cache), None

        # The last guess also fills the draft's cache, for when all are right.
        (codes, draft_cache), _ = jax.lax.scan(guess, (progress.codes, draft_cache), places.T)
        progress = progress._replace(codes=codes)
        progress, cache = windows.verify(score, pick, keys, progress, places, cache)
        return progress, (cache, draft_cache)

    progress = windows.start(pick(keys, logits, jnp.zeros(B, int)), config.code_length, known)
    return windows.repeat(step, progress, (cache, draft_cache), program.num_guided)
