"""Samples images of classes from a trained or published generator.

python sample.py --generator runs/c2i --labels 207 otter --count 8 --guidance-scale 4
python sample.py --generator c2i_L_384.pt --tokenizer vq_ds16_c2i.pt --labels 207 --top-k 2000
"""

import argparse
import functools
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

import llamagen_jax as lg
from llamagen_jax import export, sharding, zoo
from llamagen_jax.classes import find_class, imagenet_names
from llamagen_jax.errors import InputError, one_line_errors
from llamagen_jax.files import staged
from llamagen_jax.images import grid, resize, save_png, to_uint8


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
    if not tokenizer_path:
        raise InputError("give --tokenizer, the VQGAN that the generator was trained with")
    generator = _load("--generator", args.generator, "class-conditional transformer")
    tokenizer = _load("--tokenizer", tokenizer_path, "tokenizer")
    config = generator[0].config
    _check_fit(args.generator, config, tokenizer_path, tokenizer[0].config)
    names = metadata.get("class_names", ())
    if not names and config.num_classes == 1000:
        names = imagenet_names()
    classes = range(config.num_classes)
    if args.labels:
        classes = [find_class(text, names, config.num_classes) for text in args.labels]
    labels = np.repeat(np.array(classes, np.int32), args.count)
    output = Path(args.output)
    suffix = output.suffix.lower()
    # Opened before the long work, so that a path that cannot be written is known at once.
    with staged(output, overwrite=suffix in (".png", ".npz")) as partial:
        batches = list(_sample(args, generator, tokenizer, labels))
        codes, images = (np.concatenate(part) for part in zip(*batches, strict=True))
        _write(partial, suffix, images, codes, labels, args.columns or args.count)
    print(f"wrote {len(images)} images to {output}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python sample.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    weights = parser.add_argument_group(
        "weights", "each a work folder, an export folder, a .pt or .safetensors file, or a name"
    )
    weights.add_argument("--generator", required=True, help="the transformer")
    weights.add_argument("--tokenizer", help="the VQGAN (the one that a work folder's run named)")
    what = parser.add_argument_group("what to sample")
    what.add_argument("--labels", nargs="+", help="class numbers or names (every class)")
    what.add_argument("--count", type=int, default=1, help="images per label (1)")
    what.add_argument("--seed", type=int, default=0, help="another seed, other images (0)")
    how = parser.add_argument_group("how")
    how.add_argument("--guidance-scale", type=float, default=1.0, help="1 for no guidance (1)")
    how.add_argument(
        "--guidance-interval", type=int, help="guide only the first N + 2 codes (all of them)"
    )
    how.add_argument("--temperature", type=float, default=1.0, help="above 0 (1)")
    how.add_argument("--top-k", type=int, default=0, help="0 keeps all codes (0)")
    how.add_argument("--top-p", type=float, default=1.0, help="1 keeps all codes (1)")
    how.add_argument("--greedy", action="store_true", help="always the most probable code")
    how.add_argument("--batch-size", type=int, default=32, help="images at a time (32)")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output",
        default="samples.png",
        help="NAME.png for one grid; NAME.npz for arr_0 (uint8 [N, H, W, 3]), labels and codes; "
        "any other name for a new folder of single PNGs (samples.png)",
    )
    output.add_argument(
        "--resize", type=int, metavar="N", help="to N px, as for the published FIDs (not at all)"
    )
    output.add_argument("--columns", type=int, help="of the grid (one row per label)")
    return parser


def _load(option: str, name_or_path: str, expected: str):
    model, params = lg.load(name_or_path)
    found = zoo.describe(model.config)
    if found != expected:
        raise InputError(f"{option} {name_or_path} is a {found}; expected a {expected}")
    return model, params


def _check_fit(
    generator: str, config: lg.LlamaConfig, tokenizer: str, tokenizer_config: lg.VQGANConfig
) -> None:
    if tokenizer_config.codebook_size != config.vocab_size:
        raise InputError(
            f"the tokenizer {tokenizer} has {tokenizer_config.codebook_size} codes but the "
            f"generator {config.vocab_size}; name the tokenizer it was trained with"
        )
    name = Path(generator).stem
    size = config.grid_size * tokenizer_config.downsampling
    if name in zoo.PUBLISHED and not name.endswith(f"_{size}"):
        raise InputError(
            f"the generator {generator} with the tokenizer {tokenizer} makes images of {size} px, "
            "unlike its name; name the tokenizer it was trained with"
        )


def _sample(
    args: argparse.Namespace, generator, tokenizer, labels: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields codes int32 [n, L] and images uint8 [n, H, W, 3], a batch at a time."""
    mesh = sharding.make_mesh(data=-1, fsdp=1, tensor=1)
    replicated = jax.NamedSharding(mesh, jax.P())
    (llama, llama_params), (vqgan, vqgan_params) = generator, tokenizer
    llama_params, vqgan_params = jax.device_put((llama_params, vqgan_params), replicated)
    devices = jax.device_count()
    batch_size = -(-min(args.batch_size, len(labels)) // devices) * devices
    with tqdm(total=len(labels), desc="sampling", unit="image") as bar:
        for start in range(0, len(labels), batch_size):
            # The last batch wraps around, so that every batch runs the same compiled program.
            ids = np.arange(start, start + batch_size) % len(labels)
            batch = sharding.put_batch({"ids": ids, "labels": labels[ids]}, mesh)
            codes = lg.generate(
                llama,
                llama_params,
                batch["labels"],
                sample_ids=batch["ids"],
                **{name: getattr(args, name) for name in _GENERATE_ARGUMENTS},
            )
            grids = codes.reshape(batch_size, llama.config.grid_size, llama.config.grid_size)
            images = to_uint8(_decode(vqgan, args.resize, vqgan_params, grids))
            count = min(batch_size, len(labels) - start)
            yield np.asarray(codes)[:count], images[:count]
            bar.update(count)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _decode(vqgan, size: int | None, params, codes):
    images = vqgan.apply({"params": params}, codes, method="decode")
    return resize(images, size) if size else images


def _write(path: Path, suffix: str, images, codes, labels, columns: int) -> None:
    if suffix == ".npz":
        with path.open("wb") as file:
            np.savez(file, arr_0=images, labels=labels, codes=codes)
    elif suffix == ".png":
        columns = min(columns, len(images))
        blank = np.full((-len(images) % columns, *images.shape[1:]), 255, np.uint8)
        cells = np.concatenate([images, blank])
        save_png(path, grid(cells.reshape(-1, columns, *images.shape[1:])))
    else:
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            save_png(path / f"{i:06d}_class_{label}.png", image)


_GENERATE_ARGUMENTS = (
    "seed",
    "guidance_scale",
    "guidance_interval",
    "temperature",
    "top_k",
    "top_p",
    "greedy",
)

if __name__ == "__main__":
    main()
