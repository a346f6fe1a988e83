"""The command that draws images by vLLM.

python -m llamagen_jax.serve.vllm --generator for_vllm --tokenizer vq_ds16_c2i.pt --labels 207 otter
"""

import argparse
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from llamagen_jax import commands, compilation_cache
from llamagen_jax.classes import find_class, full_names
from llamagen_jax.errors import InputError, one_line_errors
from llamagen_jax.files import staged
from llamagen_jax.generation import Samples
from llamagen_jax.image_tokenizer import (
    ModelTokenizer,
    check_codes,
    on_all_devices,
    open_tokenizer,
    run_filled,
)
from llamagen_jax.images import grid, save_png, to_uint8
from llamagen_jax.sample_parts import write_npz
from llamagen_jax.sampling.settings import SamplingSettings
from llamagen_jax.serve.vllm.engine import check_settings, draw_codes, open_engine, read_config


def main() -> None:
    """Runs the command."""
    args = _parser().parse_args()
    # Its progress is shown; what it tells beside that is of no use here.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    compilation_cache.enable()
    with one_line_errors():
        _run(args)


def _run(args: argparse.Namespace) -> None:
    config, output = read_config(args.generator), Path(args.output)
    suffix = output.suffix.lower()
    if suffix not in (".png", ".npz"):
        raise InputError(f"--output {output} must end in .png or .npz")
    tokenizer = open_tokenizer(args.tokenizer)
    check_codes(args.tokenizer, tokenizer, config["codebook_size"])
    num_classes = config["num_classes"]
    names = full_names(config["class_names"], num_classes)
    labels = np.arange(num_classes, dtype=np.int32)
    if args.labels:
        found = [find_class(text, names, num_classes) for text in args.labels]
        labels = np.array(found, np.int32)
    labels = np.repeat(labels, args.count)
    scale = config["guidance_scale"] if args.guidance_scale is None else args.guidance_scale
    settings = SamplingSettings(
        args.seed,
        scale,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        greedy=args.greedy,
    )
    check_settings(settings, scale)
    with staged(output, overwrite=True) as partial:
        engine = open_engine(args.generator, batch_size=args.batch_size, guidance_scale=scale)
        codes = draw_codes(engine, labels.tolist(), settings)
        samples = _decode(tokenizer, codes, config["grid"], args.batch_size)
        if suffix == ".npz":
            write_npz(partial, samples, labels=labels)
        else:
            images = np.concatenate([part.images for part in samples])
            picture = grid(images.reshape(-1, args.count, *images.shape[1:]))
            save_png(partial, picture, dataclasses.asdict(settings))
    print(f"wrote {len(labels)} images to {output}")


def _decode(
    tokenizer: ModelTokenizer, codes: np.ndarray, code_grid: list[int], batch_size: int
) -> Iterator[Samples]:
    decode = on_all_devices(lambda opened, batch: opened.decode(batch), tokenizer)
    with tqdm(total=len(codes), desc="decoding", unit="image") as bar:
        for start in range(0, len(codes), batch_size):
            part = codes[start : start + batch_size]
            images = run_filled(decode, part.reshape(-1, *code_grid), min(batch_size, len(codes)))
            yield Samples(part, to_uint8(images))
            bar.update(len(part))


def _parser() -> argparse.ArgumentParser:
    parser = commands.Parser(
        prog="python -m llamagen_jax.serve.vllm",
        description="Draws images of classes by vLLM and decodes them.",
    )
    parser.add_argument(
        "--generator",
        type=commands.path,
        required=True,
        metavar="FOLDER",
        help="of python -m llamagen_jax.convert --vllm",
    )
    parser.add_argument(
        "--tokenizer",
        type=commands.path,
        required=True,
        help="the one it was trained with: a file, a folder or a published name",
    )
    parser.add_argument(
        "--labels", nargs="+", help="class numbers, names, WordNet ids (every class)"
    )
    parser.add_argument("--count", type=commands.whole, default=1, help="images per label (1)")
    parser.add_argument(
        "--seed", type=commands.seed, default=0, help="another seed, other images (0)"
    )
    parser.add_argument(
        "--guidance-scale", type=commands.number, help="1 for no guidance (the folder's)"
    )
    parser.add_argument("--temperature", type=commands.number, default=1.0, help="above 0 (1)")
    parser.add_argument(
        "--top-k", type=commands.whole_or_zero, default=0, help="0 keeps all codes (0)"
    )
    parser.add_argument("--top-p", type=commands.number, default=1.0, help="1 keeps all codes (1)")
    parser.add_argument("--greedy", action="store_true", help="always the most probable code")
    parser.add_argument("--batch-size", type=commands.whole, default=32, help="at a time (32)")
    parser.add_argument(
        "--output",
        type=commands.path,
        default="samples.png",
        help="NAME.png for one grid with a row per label, NAME.npz for arr_0, labels and codes "
        "(samples.png)",
    )
    return parser


if __name__ == "__main__":
    main()
