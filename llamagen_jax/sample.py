"""Samples images of classes or prompts from a trained or published generator.

python sample.py --generator runs/c2i --labels 207 otter --count 8 --guidance-scale 4
python sample.py --generator c2i_L_384.pt --tokenizer vq_ds16_c2i.pt --labels 207 --top-k 2000
python sample.py --generator t2i_XL_stage2_512.pt --tokenizer vq_ds16_t2i.pt \\
    --text-encoder flan-t5-xl --prompts "a red fox in the snow" "a blue teapot" --count 4
python sample.py --generator runs/c2i --labels otter --image photo.png --mask hole.png
"""

import argparse
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from flax.serialization import to_state_dict
from tqdm import tqdm

from llamagen_jax import commands, compilation_cache, zoo
from llamagen_jax.control_maps import DETECTORS, SURROUNDINGS, hide
from llamagen_jax.data.control_files import MAP, files_of, read_control
from llamagen_jax.errors import InputError, naming, one_line_errors
from llamagen_jax.files import staged
from llamagen_jax.generation import ImageGenerator, Samples, settings_for
from llamagen_jax.images import captioned_grid, grid, save_png
from llamagen_jax.inpainting import Edit, read_edit
from llamagen_jax.interruption import told_kept
from llamagen_jax.models.llama import Llama, LlamaConfig
from llamagen_jax.sample_folders import (
    LAYOUTS,
    check_layout,
    write_dpg,
    write_geneval,
    write_numbered,
)
from llamagen_jax.sample_parts import SampleParts, write_npz
from llamagen_jax.sampling import dry_run
from llamagen_jax.sampling.options import (
    CONTROL_SETTINGS,
    SETTINGS,
    add_models,
    add_settings,
    models_of,
    told,
)
from llamagen_jax.sampling.settings import SamplingSettings
from llamagen_jax.text.prompts import check_prompts, read_prompts
from llamagen_jax.weights.integrity import weights_hash
from llamagen_jax.weights.kinds import describe

# Text features of more prompts would not fit in memory; the text encoder is opened once for these.
_SUBJECTS_AT_ONCE = 1024


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    args = _parser().parse_args(argv)
    compilation_cache.enable()
    with one_line_errors():
        run(args)


def run(args: argparse.Namespace) -> None:
    """Loads, samples and writes; InputError says in one line what is wrong with `args`."""
    if args.extrapolate and not args.size:
        raise InputError("--extrapolate is for a --size that the generator is not trained for")
    if args.dry_run:
        print(_dry_run(args))
        return
    models = models_of(args)
    prompts = read_prompts(args.prompt_file) if args.prompt_file else args.prompts or []
    if args.prompt_file or args.prompts:
        check_prompts(prompts, args.prompt_file or "--prompts")
    generator = ImageGenerator.open(args.generator, **models, draft=args.draft)
    if args.size:
        generator = _for_size(args, generator)
    is_text = generator.config.condition == "text"
    _check_condition(args, generator)
    edit = _edit(args, generator)
    named = {name: getattr(args, name) for name in (*SETTINGS, *CONTROL_SETTINGS)}
    settings = generator.settings(**named)
    subjects = np.array(prompts) if is_text else _labels(args.labels, generator)
    control = _control(args, generator.config, len(subjects), edit)
    output = Path(args.output)
    suffix = output.suffix.lower()
    shown = told(settings)
    shown["generator"] = Path(args.generator).resolve().name
    names = {"image": args.image, "mask": args.mask}
    shown |= {option: Path(name).name for option, name in names.items() if name}
    if control is not None:
        shown["control"] = args.control_kind or MAP
        shown |= {name: getattr(settings, name) for name in CONTROL_SETTINGS}
    if args.size:
        shown["size"] = generator.told_size(generator.config.grid)
    check_layout(args.layout, suffix not in (".png", ".npz"), is_text, args.count)
    # Opened before the long work, so that a path that cannot be written is known at once.
    with staged(output, overwrite=suffix in (".png", ".npz")) as partial:
        repeated = np.repeat(subjects, args.count)
        if suffix == ".png":
            samples = _joined(_draw(args, generator, subjects, control, settings, edit))
            _write_grid(partial, samples.images, repeated, shown, args.columns or args.count)
        else:
            parts = _kept(args, generator, subjects, control, settings, edit, shown)
            _write(partial, args, parts, repeated, shown)
    if suffix != ".png":
        parts.remove()
    print(f"wrote {len(repeated)} images to {output}")


def _for_size(args: argparse.Namespace, generator: ImageGenerator) -> ImageGenerator:
    """The generator for images of `--size`; tells where it extrapolates."""
    width, height = args.size
    if args.resize and width != height:
        raise InputError(f"--resize makes squares: leave it out for images of {width}x{height}")
    with naming("--size"):
        generator = generator.for_size(args.size, extrapolate=args.extrapolate)
    if trained := generator.model.position_grid:
        logging.warning(
            "%s is not trained for %dx%d: its positions are scaled to those of %s, and images are "
            "worse than of that size",
            generator.name,
            width,
            height,
            generator.told_size(trained),
        )
    return generator


def _dry_run(args: argparse.Namespace) -> str:
    """Of the generator alone; a published one is not fetched for it."""
    if args.size:
        raise InputError("--dry-run tells the memory of the generator's own size: leave out --size")
    with naming("--generator"):
        zoo.check_known(args.generator)
    if args.generator in zoo.PUBLISHED and not Path(args.generator).exists():
        config = zoo.PUBLISHED[args.generator].config
    else:
        config = zoo.load(args.generator)[0].config
    if not isinstance(config, LlamaConfig):
        raise InputError(f"{args.generator} is a {describe(config)}; expected a transformer")
    if args.dtype:
        config = dataclasses.replace(config, dtype=args.dtype)
    settings = settings_for(config, **{name: getattr(args, name) for name in SETTINGS})
    return dry_run.report(Llama(config), args.batch_size, settings, args.weights)


def _labels(wanted: list[str] | None, generator: ImageGenerator) -> np.ndarray:
    if wanted:
        return generator.labels(wanted)
    return np.arange(generator.config.num_classes, dtype=np.int32)


def _edit(args: argparse.Namespace, generator: ImageGenerator) -> Edit | None:
    """What --image and --mask say; None where all is drawn."""
    if args.image is None:
        if args.mask is not None:
            raise InputError("--mask is of an image: give --image too")
        return None
    if args.resize is not None:
        raise InputError("--resize does not go with --image, whose pixels are kept as they are")
    files = {"--image": args.image, "--mask": args.mask}
    image, mask = (_read(option, name) if name else None for option, name in files.items())
    assert image is not None
    height, width = (side * generator.tokenizer.downsampling for side in generator.config.grid)
    names = f"--image {args.image}", f"--mask {args.mask}"
    return read_edit(image, mask, (height, width), names)


def _read(option: str, name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise InputError(f"{option} {name} cannot be read: {error.strerror}") from error


def _control(
    args: argparse.Namespace, config: LlamaConfig, num_subjects: int, edit: Edit | None
) -> np.ndarray | None:
    """Control images uint8 [num_subjects, H, W, 3], or None."""
    surroundings = args.control_kind == SURROUNDINGS
    if surroundings and (args.control or not edit):
        raise InputError(
            f"--control-kind {SURROUNDINGS} is for an --image, of which it shows what is kept; "
            "give one, and no --control"
        )
    if not args.control and not surroundings:
        for name in ("control_kind", *CONTROL_SETTINGS):
            if getattr(args, name) is not None:
                raise InputError(
                    f"--{name.replace('_', '-')} is for a --control: give one, or neither"
                )
        return None
    if not config.control_layers:
        raise InputError(
            f"the generator {args.generator} was trained without control images and takes none"
        )
    if edit and surroundings:
        images = hide(*edit)[None]
    else:
        files = files_of(args.control)
        if len(files) not in (1, num_subjects):
            raise InputError(
                f"--control names {len(files)} images for {num_subjects} labels or prompts: give "
                "one for all, or one for each"
            )
        images = read_control(files, args.control_kind or MAP, config.control_size)
    return np.broadcast_to(images, (num_subjects, *images.shape[1:]))


def _draw(
    args: argparse.Namespace,
    generator: ImageGenerator,
    subjects: np.ndarray,
    control: np.ndarray | None,
    settings: SamplingSettings,
    edit: Edit | None,
    start: int = 0,
) -> Iterator[Samples]:
    """Batches of the images from number `start` on."""
    known = edit.known(generator.tokenizer) if edit else None
    total, is_text = len(subjects) * args.count, generator.config.condition == "text"
    sizes = {"count": args.count, "batch_size": args.batch_size, "size": args.resize}
    with tqdm(total=total, initial=start, desc="sampling", unit="image") as bar:
        for first in range(0, len(subjects), _SUBJECTS_AT_ONCE):
            chunk = subjects[first : first + _SUBJECTS_AT_ONCE]
            if (first + len(chunk)) * args.count <= start:
                continue
            conditions = generator.read(chunk.tolist()) if is_text else {"condition": chunk}
            if known is not None:
                conditions["known"] = np.tile(known, (len(chunk), 1))
            if control is not None:
                conditions["control"] = control[first : first + len(chunk)]
            for part in generator.sample(conditions, settings, first=first, start=start, **sizes):
                yield part._replace(images=edit.paste(part.images)) if edit else part
                bar.update(len(part.codes))


def _kept(
    args: argparse.Namespace,
    generator: ImageGenerator,
    subjects: np.ndarray,
    control: np.ndarray | None,
    settings: SamplingSettings,
    edit: Edit | None,
    shown: Mapping[str, Any],
) -> SampleParts:
    """All images on disk: those that this command drew before it was stopped, and the others."""
    weights = {"generator": generator.params, "tokenizer": to_state_dict(generator.tokenizer)}
    hashes = {f"weights of the {name}": weights_hash(params) for name, params in weights.items()}
    what = {"count": args.count, "size": args.resize, "labels or prompts": subjects.tolist()}
    if edit:
        what["image and mask"] = weights_hash(edit._asdict())
    if control is not None:
        hashes["control images"] = weights_hash({"control": control})
    parts = SampleParts(Path(args.output), {**shown, **what, **hashes})
    if parts.done:
        print(f"going on with image {parts.done} of {len(subjects) * args.count}")
    with told_kept(f"{parts.folder} keeps the images so far"):
        for part in _draw(args, generator, subjects, control, settings, edit, parts.done):
            parts.add(part)
    return parts


def _joined(parts: Iterable[Samples]) -> Samples:
    return Samples(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _parser() -> argparse.ArgumentParser:
    parser = commands.Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_models(parser)
    what = parser.add_argument_group("what to sample")
    subjects = what.add_mutually_exclusive_group()
    subjects.add_argument(
        "--labels", nargs="+", help="class numbers, names, WordNet ids (every class)"
    )
    subjects.add_argument("--prompts", nargs="+", metavar="PROMPT", help="texts, each in quotes")
    subjects.add_argument(
        "--prompt-file",
        type=commands.path,
        metavar="FILE",
        help=".txt with a prompt per line, or .csv, .tsv or .jsonl with prompt, caption or text",
    )
    what.add_argument(
        "--count", type=commands.whole, default=1, help="images per label or prompt (1)"
    )
    what.add_argument(
        "--control",
        nargs="+",
        type=commands.path,
        metavar="IMAGE",
        help="control images, one for all labels or prompts or one for each, or a folder of these "
        "(none)",
    )
    what.add_argument(
        "--control-kind",
        choices=(MAP, *DETECTORS),
        help=f"what they are: {MAP} is the control map itself, {SURROUNDINGS} is what --image "
        f"keeps, without --control, and all others are found in a picture ({MAP})",
    )
    what.add_argument(
        "--control-scale", type=commands.number, help="multiplies what the control adds (1)"
    )
    what.add_argument(
        "--keep-control",
        action="store_true",
        default=None,
        help="guidance strengthens the class or prompt alone (the control too)",
    )
    what.add_argument(
        "--size",
        type=commands.size,
        metavar="WIDTHxHEIGHT",
        help="of the images in pixels, one that the generator is trained for (its grid_size)",
    )
    what.add_argument(
        "--extrapolate",
        action="store_true",
        help="draw a --size that the generator is not trained for, the positions of its codes "
        "scaled to those of the trained size of the nearest aspect ratio: worse images",
    )
    edit = parser.add_argument_group(
        "what to keep of an image",
        "Codes are drawn row by row, from those above and to the left: they do not know what is "
        "kept below or to the right of them, unless --control-kind surroundings shows it to a "
        "generator that was trained with it.",
    )
    edit.add_argument(
        "--image",
        type=commands.path,
        metavar="FILE",
        help="to draw a part of; its other pixels are kept. Resized where only its size is another",
    )
    edit.add_argument(
        "--mask",
        type=commands.path,
        metavar="FILE",
        help="image of the same size, transparent where pixels are to be drawn or, where nothing "
        "of it is transparent, white there (what is transparent in --image)",
    )
    how = parser.add_argument_group("how")
    add_settings(how)
    how.add_argument("--batch-size", type=commands.whole, default=32, help="images at a time (32)")
    how.add_argument(
        "--dry-run",
        action="store_true",
        help="print the memory that a batch takes, by the compiler's analysis; draw nothing",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output",
        type=commands.path,
        default="samples.png",
        help="NAME.png for one grid, with prompts under their images; NAME.npz for arr_0 (uint8 "
        "[N, H, W, 3]), labels or prompts, and codes; any other name for a new folder of single "
        "PNGs; both of these go on where the same command was stopped. PNGs hold the settings as "
        "text chunks (samples.png)",
    )
    output.add_argument(
        "--layout",
        choices=LAYOUTS,
        default="numbered",
        help="of a folder: numbered PNGs, or as the tools of GenEval (--prompt-file of its "
        "metadata .jsonl) or DPG-Bench (--prompt-file of its folder of .txt) read it (numbered)",
    )
    output.add_argument(
        "--resize",
        type=commands.whole,
        metavar="N",
        help="to N px, as for the published FIDs (not at all)",
    )
    output.add_argument(
        "--columns", type=commands.whole, help="of the grid (one row per label or prompt)"
    )
    return parser


def _check_condition(args: argparse.Namespace, generator: ImageGenerator) -> None:
    """Refuses options for another condition than the generator's, and missing ones."""
    config = generator.config
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
        if not generator.text_encoder:
            raise InputError("give --text-encoder, the T5 that the generator was trained with")


def _write(
    path: Path,
    args: argparse.Namespace,
    parts: Iterable[Samples],
    subjects: np.ndarray,
    settings: Mapping[str, Any],
) -> None:
    """Writes a .npz or a folder; `subjects` are the labels or the prompts of the images."""
    kind, prompt_file = _kind(subjects), args.prompt_file or ""
    prompts = subjects[:: args.count].tolist()
    if Path(args.output).suffix.lower() == ".npz":
        write_npz(path, parts, **{f"{kind}s": subjects})
    elif args.layout == "geneval":
        write_geneval(path, parts, prompts, args.count, prompt_file)
    elif args.layout == "dpg":
        write_dpg(path, parts, prompts, prompt_file)
    else:
        write_numbered(path, parts, kind, subjects.tolist(), settings)


def _write_grid(
    path: Path,
    images: np.ndarray,
    subjects: np.ndarray,
    settings: Mapping[str, Any],
    columns: int,
) -> None:
    columns, kind = min(columns, len(images)), _kind(subjects)
    if kind == "prompt":
        picture = captioned_grid(images, subjects.tolist(), columns)
    else:
        blank = np.full((-len(images) % columns, *images.shape[1:]), 255, np.uint8)
        cells = np.concatenate([images, blank])
        picture = grid(cells.reshape(-1, columns, *images.shape[1:]))
    listed = "\n".join(str(subject) for subject in dict.fromkeys(subjects.tolist()))
    save_png(path, picture, {f"{kind}s": listed, **settings})


def _kind(subjects: np.ndarray) -> str:
    return "prompt" if subjects.dtype.kind == "U" else "label"


if __name__ == "__main__":
    main()
