"""Samples images of classes or prompts from a trained or published generator.

python sample.py --generator runs/c2i --labels 207 otter --count 8 --guidance-scale 4
python sample.py --generator c2i_L_384.pt --tokenizer vq_ds16_c2i.pt --labels 207 --top-k 2000
python sample.py --generator t2i_XL_stage2_512.pt --tokenizer vq_ds16_t2i.pt \\
    --text-encoder flan-t5-xl --prompts "a red fox in the snow" "a blue teapot" --count 4
"""

import argparse
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from llamagen_jax import sharding, zoo
from llamagen_jax.classes import find_class, imagenet_names
from llamagen_jax.errors import InputError, one_line_errors
from llamagen_jax.files import staged
from llamagen_jax.images import captioned_grid, grid, resize, save_png, to_uint8
from llamagen_jax.models.llama import LlamaConfig
from llamagen_jax.models.vqgan import VQGANConfig
from llamagen_jax.sampling import generate
from llamagen_jax.text.prompts import check_prompts, encode_prompts, read_prompts
from llamagen_jax.weights import export
from llamagen_jax.weights.kinds import describe, kind_of

# What None means, by the generator's condition; for text the original's settings.
_DEFAULTS = {
    "class": {"guidance_scale": 1.0, "top_k": 0},
    "text": {"guidance_scale": 7.5, "top_k": 1000},
}
_GENERATE_ARGUMENTS = (
    "seed",
    "guidance_scale",
    "guidance_interval",
    "temperature",
    "top_k",
    "top_p",
    "greedy",
)


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    args = _parser().parse_args(argv)
    with one_line_errors():
        run(args)


def run(args: argparse.Namespace) -> None:
    """Loads, samples and writes; InputError says in one line what is wrong with `args`."""
    for option in ("count", "batch_size", "columns", "resize"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise InputError(f"--{option.replace('_', '-')} is {value}; it must be at least 1")
    has_config = (Path(args.generator) / "config.json").exists()
    metadata = export.read_config(args.generator) if has_config else {}
    tokenizer_path = args.tokenizer or metadata.get("tokenizer")
    text_encoder = args.text_encoder or metadata.get("text_encoder")
    if not tokenizer_path:
        raise InputError("give --tokenizer, the VQGAN that the generator was trained with")
    prompts = read_prompts(args.prompt_file) if args.prompt_file else args.prompts
    if prompts is not None:
        check_prompts(prompts, args.prompt_file or "--prompts")
    generator = _load("--generator", args.generator, "generator")
    tokenizer = _load("--tokenizer", tokenizer_path, "tokenizer")
    config = generator[0].config
    _check_fit(args.generator, config, tokenizer_path, tokenizer[0].config)
    _check_condition(args, config, text_encoder)
    given = {name: getattr(args, name) for name in _GENERATE_ARGUMENTS}
    settings = _DEFAULTS[config.condition] | {k: v for k, v in given.items() if v is not None}
    is_text = config.condition == "text"
    subjects = np.array(prompts) if is_text else _labels(args.labels, config, metadata)
    output = Path(args.output)
    suffix = output.suffix.lower()
    # Opened before the long work, so that a path that cannot be written is known at once.
    with staged(output, overwrite=suffix in (".png", ".npz")) as partial:
        if is_text:
            conditions = encode_prompts(text_encoder, config, prompts)
        else:
            conditions = {"condition": subjects}
        batches = list(_sample(args, settings, generator, tokenizer, conditions))
        codes, images = (np.concatenate(part) for part in zip(*batches, strict=True))
        subjects = np.repeat(subjects, args.count)
        settings["generator"] = Path(args.generator).resolve().name
        _write(partial, suffix, images, codes, subjects, settings, args.columns or args.count)
    print(f"wrote {len(images)} images to {output}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python sample.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    weights = parser.add_argument_group(
        "weights",
        "generator and tokenizer: each a work folder, an export folder, a .pt or .safetensors "
        "file, or a published name",
    )
    weights.add_argument("--generator", required=True, help="the transformer")
    weights.add_argument("--tokenizer", help="the VQGAN (the one that a work folder's run named)")
    weights.add_argument(
        "--text-encoder",
        metavar="FOLDER",
        help="for prompts: folder of the T5 that the generator was trained with, as Hugging Face "
        "stores it (the one that a work folder's run named)",
    )
    what = parser.add_argument_group("what to sample")
    subjects = what.add_mutually_exclusive_group()
    subjects.add_argument("--labels", nargs="+", help="class numbers or names (every class)")
    subjects.add_argument("--prompts", nargs="+", metavar="PROMPT", help="texts, each in quotes")
    subjects.add_argument(
        "--prompt-file",
        metavar="FILE",
        help=".txt with a prompt per line, or .csv or .tsv with a column Prompt",
    )
    what.add_argument("--count", type=int, default=1, help="images per label or prompt (1)")
    what.add_argument("--seed", type=int, default=0, help="another seed, other images (0)")
    how = parser.add_argument_group("how")
    how.add_argument(
        "--guidance-scale", type=float, help="1 for no guidance (1 for classes, 7.5 for prompts)"
    )
    how.add_argument(
        "--guidance-interval", type=int, help="guide only the first N + 2 codes (all of them)"
    )
    how.add_argument("--temperature", type=float, default=1.0, help="above 0 (1)")
    how.add_argument(
        "--top-k", type=int, help="0 keeps all codes (0 for classes, 1000 for prompts)"
    )
    how.add_argument("--top-p", type=float, default=1.0, help="1 keeps all codes (1)")
    how.add_argument("--greedy", action="store_true", help="always the most probable code")
    how.add_argument("--batch-size", type=int, default=32, help="images at a time (32)")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output",
        default="samples.png",
        help="NAME.png for one grid, with prompts under their images; NAME.npz for arr_0 (uint8 "
        "[N, H, W, 3]), labels or prompts, and codes; any other name for a new folder of single "
        "PNGs. PNGs hold the settings as text chunks (samples.png)",
    )
    output.add_argument(
        "--resize", type=int, metavar="N", help="to N px, as for the published FIDs (not at all)"
    )
    output.add_argument("--columns", type=int, help="of the grid (one row per label or prompt)")
    return parser


def _load(option: str, name_or_path: str, role: str):
    model, params = zoo.load(name_or_path)
    if kind_of(model.config).role != role:
        expected = {"generator": "transformer", "tokenizer": "tokenizer"}[role]
        raise InputError(
            f"{option} {name_or_path} is a {describe(model.config)}; expected a {expected}"
        )
    return model, params


def _check_fit(
    generator: str, config: LlamaConfig, tokenizer: str, tokenizer_config: VQGANConfig
) -> None:
    if tokenizer_config.codebook_size != config.vocab_size:
        raise InputError(
            f"the tokenizer {tokenizer} has {tokenizer_config.codebook_size} codes but the "
            f"generator {config.vocab_size}; name the tokenizer it was trained with"
        )
    name = Path(generator).stem
    size = config.grid_size * tokenizer_config.downsampling
    if name in zoo.PUBLISHED and zoo.PUBLISHED[name].resolution != size:
        raise InputError(
            f"the generator {generator} with the tokenizer {tokenizer} makes images of {size} px, "
            "unlike its name; name the tokenizer it was trained with"
        )


def _check_condition(
    args: argparse.Namespace, config: LlamaConfig, text_encoder: str | None
) -> None:
    """Refuses options for another condition than the generator's, and missing ones."""
    other = {"class": ("prompts", "prompt_file", "text_encoder"), "text": ("labels",)}
    for name in other[config.condition]:
        if getattr(args, name) is not None:
            raise InputError(
                f"--{name.replace('_', '-')} does not fit the generator {args.generator}, "
                f"which is a {describe(config)}"
            )
    if config.condition == "text":
        if args.prompts is None and args.prompt_file is None:
            raise InputError(
                f"give --prompts or --prompt-file: the generator {args.generator} is a "
                f"{describe(config)}"
            )
        if not text_encoder:
            raise InputError("give --text-encoder, the T5 that the generator was trained with")


def _labels(wanted: Sequence[str] | None, config: LlamaConfig, metadata: Mapping) -> np.ndarray:
    if not wanted:
        return np.arange(config.num_classes, dtype=np.int32)
    names = metadata.get("class_names", ())
    if not names and config.num_classes == 1000:
        names = imagenet_names()
    return np.array([find_class(text, names, config.num_classes) for text in wanted], np.int32)


def _sample(
    args: argparse.Namespace,
    settings: Mapping[str, Any],
    generator,
    tokenizer,
    conditions: Mapping[str, np.ndarray],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields codes int32 [n, L] and images uint8 [n, H, W, 3], a batch at a time.

    Args:
      conditions: what `generate` takes under these names, one row per label or prompt.
    """
    mesh = sharding.make_mesh(data=-1, fsdp=1, tensor=1)
    replicated = jax.NamedSharding(mesh, jax.P())
    (llama, llama_params), (vqgan, vqgan_params) = generator, tokenizer
    llama_params, vqgan_params = jax.device_put((llama_params, vqgan_params), replicated)
    devices = jax.device_count()
    total = len(conditions["condition"]) * args.count
    batch_size = -(-min(args.batch_size, total) // devices) * devices
    with tqdm(total=total, desc="sampling", unit="image") as bar:
        for start in range(0, total, batch_size):
            # The last batch wraps around, so that every batch runs the same compiled program.
            ids = np.arange(start, start + batch_size) % total
            rows = {name: array[ids // args.count] for name, array in conditions.items()}
            batch = sharding.put_batch({"sample_ids": ids, **rows}, mesh)
            codes = generate(llama, llama_params, **batch, **settings)
            grids = codes.reshape(batch_size, llama.config.grid_size, llama.config.grid_size)
            images = to_uint8(_decode(vqgan, args.resize, vqgan_params, grids))
            count = min(batch_size, total - start)
            yield np.asarray(codes)[:count], images[:count]
            bar.update(count)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _decode(vqgan, size: int | None, params, codes):
    images = vqgan.apply({"params": params}, codes, method="decode")
    return resize(images, size) if size else images


def _write(
    path: Path,
    suffix: str,
    images: np.ndarray,
    codes: np.ndarray,
    subjects: np.ndarray,
    settings: Mapping[str, Any],
    columns: int,
) -> None:
    """Writes what `suffix` asks for; `subjects` are the labels or the prompts of the images."""
    kind = "prompt" if subjects.dtype.kind == "U" else "label"
    if suffix == ".npz":
        with path.open("wb") as file:
            np.savez(file, arr_0=images, codes=codes, **{f"{kind}s": subjects})
    elif suffix == ".png":
        columns = min(columns, len(images))
        if kind == "prompt":
            picture = captioned_grid(images, subjects.tolist(), columns)
        else:
            blank = np.full((-len(images) % columns, *images.shape[1:]), 255, np.uint8)
            cells = np.concatenate([images, blank])
            picture = grid(cells.reshape(-1, columns, *images.shape[1:]))
        listed = "\n".join(str(subject) for subject in dict.fromkeys(subjects.tolist()))
        save_png(path, picture, {f"{kind}s": listed, **settings})
    else:
        for i, (image, subject) in enumerate(zip(images, subjects.tolist(), strict=True)):
            name = f"{i:06d}.png" if kind == "prompt" else f"{i:06d}_class_{subject}.png"
            save_png(path / name, image, {kind: subject, "number": i, **settings})


if __name__ == "__main__":
    main()
