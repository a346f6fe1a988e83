"""The options by which commands take `SamplingSettings`."""

import argparse

from llamagen_jax import commands
from llamagen_jax.sampling.settings import DECODERS

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
