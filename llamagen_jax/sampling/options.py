"""The options by which commands take models that draw images, and `SamplingSettings`."""

import argparse
from typing import Any

from llamagen_jax import commands, zoo
from llamagen_jax.errors import InputError, naming
from llamagen_jax.models.llama import WEIGHTS
from llamagen_jax.sampling.settings import DECODERS, SamplingSettings
from llamagen_jax.weights import export

# Fields that are options.
SETTINGS = (
    "seed",
    "guidance_scale",
    "guidance_interval",
    "temperature",
    "top_k",
    "top_p",
    "greedy",
    "decoder",
)
# Those that are for a control.
CONTROL_SETTINGS = ("control_scale", "keep_control")


def told(settings: SamplingSettings) -> dict[str, Any]:
    """The settings that an image's metadata tell: all but those that are None."""
    fields = {name: getattr(settings, name) for name in SETTINGS}
    return {name: value for name, value in fields.items() if value is not None}


def add_models(parser: argparse.ArgumentParser) -> None:
    """Adds the options for a generator and what belongs to it; `models_of` reads them."""
    group = parser.add_argument_group(
        "models",
        "generator and tokenizer: each a work folder, an export folder, a .pt or .safetensors "
        "file, or a published name",
    )
    group.add_argument("--generator", type=commands.path, required=True, help="the transformer")
    group.add_argument(
        "--tokenizer", type=commands.path, help="the VQGAN (the one that a work folder's run named)"
    )
    group.add_argument(
        "--text-encoder",
        type=commands.path,
        metavar="FOLDER",
        help="for prompts: folder of the T5 that the generator was trained with, as Hugging Face "
        "stores it (the one that a work folder's run named)",
    )
    group.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="that the transformer computes in (as it was trained)",
    )
    group.add_argument(
        "--weights",
        choices=WEIGHTS,
        default="float",
        help="int8 rounds the transformer's matrices: a quarter of the memory of float32, other "
        "images by a little (float)",
    )


def models_of(args: argparse.Namespace) -> dict[str, Any]:
    """What `ImageGenerator.open` takes beside the generator's name.

    Raises:
      InputError: the generator or the tokenizer is unknown, or no tokenizer is named.
    """
    with naming("--generator"):
        zoo.check_known(args.generator)
    recorded = export.recorded(args.generator)
    tokenizer = args.tokenizer or recorded.get("tokenizer")
    if not tokenizer:
        raise InputError("give --tokenizer, the VQGAN that the generator was trained with")
    with naming("--tokenizer"):
        zoo.check_known(tokenizer)
    return {
        "tokenizer": tokenizer,
        "text_encoder": args.text_encoder or recorded.get("text_encoder") or None,
        "dtype": args.dtype,
        "weights": args.weights,
    }


def add_settings(parser: argparse._ActionsContainer) -> None:
    """Adds the options; None is for what suits the generator, see `ImageGenerator.settings`."""
    parser.add_argument(
        "--seed", type=commands.seed, default=0, help="another seed, other images (0)"
    )
    parser.add_argument(
        "--guidance-scale",
        type=commands.number,
        help="1 for no guidance (1 for classes, 7.5 for prompts)",
    )
    parser.add_argument(
        "--guidance-interval",
        type=commands.whole_or_zero,
        help="guide only the first N + 2 codes (all of them)",
    )
    parser.add_argument("--temperature", type=commands.number, default=1.0, help="above 0 (1)")
    parser.add_argument(
        "--top-k",
        type=commands.whole_or_zero,
        help="0 keeps all codes (0 for classes, 1000 for prompts)",
    )
    parser.add_argument("--top-p", type=commands.number, default=1.0, help="1 keeps all codes (1)")
    parser.add_argument("--greedy", action="store_true", help="always the most probable code")
    parser.add_argument(
        "--decoder",
        choices=DECODERS,
        default="plain",
        help="plain draws code by code; jacobi and, with a --draft, speculative draw the same "
        "images in fewer passes, which pays for few images at a time; auto chooses (plain)",
    )
    parser.add_argument(
        "--draft",
        type=commands.path,
        help="for the speculative decoder: a small generator of the same codes",
    )
