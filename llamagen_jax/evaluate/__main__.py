"""Says how good images are, by the figures of the field, each with its error.

python -m llamagen_jax.evaluate images samples.npz VIRTUAL_imagenet256_labeled.npz \\
    --inception pt_inception-2015-12-05-6726825d.pth
python -m llamagen_jax.evaluate reconstructions imagenet/val --tokenizer vq_ds16_c2i \\
    --inception pt_inception-2015-12-05-6726825d.pth --picture worst_and_best.png
python -m llamagen_jax.evaluate text samples.npz --prompts PartiPrompts.tsv \\
    --clip clip-vit-base-patch32
python -m llamagen_jax.evaluate verify c2i_L_384 VIRTUAL_imagenet256_labeled.npz \\
    --inception pt_inception-2015-12-05-6726825d.pth
python -m llamagen_jax.evaluate verify runs/generator imagenet/val --quick
"""

import argparse
import json
import sys
from pathlib import Path

from llamagen_jax import commands, compilation_cache
from llamagen_jax.errors import one_line_errors
from llamagen_jax.evaluate import figures, images, small_network, texts, tokenizers, verify
from llamagen_jax.files import staged


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    arguments = vars(_parser().parse_args(argv))
    compilation_cache.enable()
    run, output = arguments.pop("run"), arguments.pop("output")
    with one_line_errors():
        found, about = run(**arguments)
        print(figures.table(found))
        print(figures.row(Path(about["samples"]).name, found))
        if output:
            with staged(output, overwrite=True) as partial:
                partial.write_text(json.dumps(figures.as_json(found, about), indent=2) + "\n")
        if not about.get("passed", True):
            sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = commands.Parser(
        prog="python -m llamagen_jax.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(required=True)
    of_images = subparsers.add_parser(
        "images", help="samples beside a reference: FID, sFID, IS, precision, recall, KID"
    )
    of_images.set_defaults(run=images.evaluate)
    images.add_arguments(of_images)
    of_reconstructions = subparsers.add_parser(
        "reconstructions", help="a tokenizer: rFID, PSNR, SSIM, LPIPS, codebook usage, perplexity"
    )
    of_reconstructions.set_defaults(run=tokenizers.evaluate)
    tokenizers.add_arguments(of_reconstructions)
    of_texts = subparsers.add_parser(
        "text", help="samples beside their prompts: CLIP score, or what rendered scenes show"
    )
    of_texts.set_defaults(run=texts.evaluate)
    texts.add_arguments(of_texts)
    of_published = subparsers.add_parser(
        "verify",
        help="a published model beside its published figure, or any model in minutes",
        description="Measures the published figure of a model with the settings that it was "
        "published with: 50,000 samples, the classes in turn. --quick checks any model for the "
        "mistakes that are commonly made. Ends with status 1 where something is not as it should "
        "be.",
    )
    of_published.set_defaults(run=verify.evaluate)
    verify.add_arguments(of_published)
    of_network = subparsers.add_parser(
        "network",
        help="train a small network on images, whose features stand in for Inception's",
        description="Trains a small network to tell the classes of images, or the words of their "
        "captions. Figures by it compare samples of the same kind of images with each other; they "
        "compare with no published ones.",
    )
    of_network.set_defaults(run=small_network.evaluate)
    small_network.add_arguments(of_network)
    for command in (of_images, of_published):
        command.add_argument(
            "--network",
            "--inception",
            type=commands.path,
            required=command is of_images,
            metavar="FILE",
            help="pt_inception-2015-12-05-6726825d.pth, classify_image_graph_def.pb, or what "
            "`evaluate network` wrote",
        )
    for command in (of_images, of_reconstructions, of_published):
        command.add_argument(
            "--keep",
            type=commands.path,
            metavar="FOLDER",
            help="keep what is computed there: the same command goes on where it was stopped",
        )
    for command in (of_images, of_texts, of_published):
        command.add_argument(
            "--batch-size", type=commands.whole, default=64, help="images at a time (64)"
        )
    for command in (of_images, of_reconstructions, of_texts, of_published, of_network):
        command.add_argument(
            "--output", type=commands.path, metavar="FILE.json", help="write the figures there too"
        )
    return parser


if __name__ == "__main__":
    main()
