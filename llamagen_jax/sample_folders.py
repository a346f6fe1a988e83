"""Folders of samples, laid out for people or as a benchmark's own tools read them."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from llamagen_jax.errors import InputError
from llamagen_jax.generation import Samples
from llamagen_jax.images import save_png
from llamagen_jax.text.prompts import prompt_files, read_text

LAYOUTS = ("numbered", "geneval", "dpg")
# DPG-Bench's tools cut a picture into its quarters.
_DPG_IMAGES = 4


def check_layout(layout: str, is_folder: bool, is_text: bool, count: int) -> None:
    """Raises InputError where a layout does not fit the output, the generator or the count."""
    if layout != "numbered" and not (is_folder and is_text):
        raise InputError(f"--layout {layout} is a folder of images of prompts: name it as --output")
    if layout == "dpg" and count != _DPG_IMAGES:
        raise InputError(f"--layout dpg shows {_DPG_IMAGES} images of each prompt: give --count 4")


def write_numbered(
    folder: Path,
    parts: Iterable[Samples],
    kind: str,
    subjects: Sequence[Any],
    settings: Mapping[str, Any],
) -> None:
    """Writes 000123.png, or 000123_class_7.png, of every image.

    Args:
      parts: all images.
      kind: "label" or "prompt".
      subjects: the label or prompt of each image.
      settings: become text chunks of the PNGs.
    """
    for i, (image, subject) in enumerate(zip(_images(parts, len(subjects)), subjects, strict=True)):
        name = f"{i:06d}.png" if kind == "prompt" else f"{i:06d}_class_{subject}.png"
        save_png(folder / name, image, {kind: subject, "number": i, **settings})


def write_geneval(
    folder: Path, parts: Iterable[Samples], prompts: Sequence[str], count: int, prompt_file: str
) -> None:
    """Writes 00012/samples/0003.png of every image, as github.com/djghosh13/geneval reads them.

    Args:
      parts: `count` images of each prompt in turn.
      prompt_file: its lines become 00012/metadata.jsonl where it is a .jsonl file.
    """
    metadata = [json.dumps({"prompt": prompt}) for prompt in prompts]
    if Path(prompt_file).suffix.lower() == ".jsonl":
        lines = read_text(Path(prompt_file)).split("\n")
        metadata = [line for line in lines if line.strip()]
    for i, image in enumerate(_images(parts, len(prompts) * count)):
        of_prompt = folder / f"{i // count:05d}"
        save_png(of_prompt / "samples" / f"{i % count:04d}.png", image)
        if i % count == 0:
            (of_prompt / "metadata.jsonl").write_text(metadata[i // count] + "\n")


def write_dpg(
    folder: Path, parts: Iterable[Samples], prompts: Sequence[str], prompt_file: str
) -> None:
    """Writes a picture of 2 x 2 images per prompt, as DPG-Bench (github.com/TencentQQGYLab/ELLA).

    Args:
      parts: four images of each prompt in turn.
      prompt_file: where it is a folder of .txt files, pictures are called like them, or else by
        the number of their prompt.
    """
    names = [f"{number:06d}" for number in range(len(prompts))]
    if Path(prompt_file).is_dir():
        names = [path.stem for path in prompt_files(Path(prompt_file))]
    images = _images(parts, len(prompts) * _DPG_IMAGES)
    for name in names:
        a, b, c, d = (next(images) for _ in range(_DPG_IMAGES))
        rows = [np.concatenate([a, b], axis=1), np.concatenate([c, d], axis=1)]
        save_png(folder / f"{name}.png", np.concatenate(rows))


def _images(parts: Iterable[Samples], total: int) -> Iterator[np.ndarray]:
    # Shown only where it takes long.
    with tqdm(total=total, desc="writing", unit="image", delay=2) as bar:
        for part in parts:
            for image in part.images:
                yield image
                bar.update()
