"""Holes in handwritten digits (`make demo-holes`), filled with and without their surroundings.

A generator learns to be shown what is around a hole. Then halves and the middle of held-out digits
are drawn anew: without that control, where a code knows none but those above it and to its left,
and with it.
"""

import math
import sys
from pathlib import Path

import numpy as np

from demos.report import Figure, last_psnr, show

FOLDER = Path("demo_holes")
# Name -> first row, row after the last, the same of columns.
HOLES = {
    "upper half": (0, 16, 0, 32),
    "lower half": (16, 32, 0, 32),
    "left half": (0, 32, 0, 16),
    "right half": (0, 32, 16, 32),
    "middle": (8, 24, 8, 24),
}
# Nothing that is kept is above these holes or to their left.
_AT_THE_START = ("upper half", "left half")
_SHOWN = 16


def main() -> None:
    """Runs every stage from nothing, then prints the figures and the files to look at."""
    sys.exit(show(FOLDER, stages(), measure, ("holes.png", "generator/samples")))


def stages() -> dict[str, list[str]]:
    """Stage name -> commands, as typed after `python`."""
    return {
        "train the tokenizer": [
            f"train.py --config=configs/digits.py:tokenizer --workdir={FOLDER}/tokenizer"
        ],
        "train the generator": [
            f"train.py --config=configs/digits.py:surroundings --workdir={FOLDER}/generator"
            f" --config.tokenizer={FOLDER}/tokenizer"
        ],
    }


def measure() -> list[Figure]:
    """Figures of the finished run, of all held-out digits; also draws some of them."""
    from llamagen_jax.control_maps import hide
    from llamagen_jax.data.package_sources import DigitsSource
    from llamagen_jax.images import grid, save_png

    source = DigitsSource("test")
    records = [source[index] for index in range(len(source))]
    digits = np.stack([record["image"] for record in records])
    labels = np.array([record["label"] for record in records], np.int32)
    filled = _fill(digits, labels)

    rows = []
    for name in _AT_THE_START:
        hidden = [hide(digit, _hole(name)) for digit in digits[:_SHOWN]]
        rows += [np.stack(hidden), *(images[:_SHOWN] for images in filled[name])]
    save_png(FOLDER / "holes.png", grid(np.stack([*rows, digits[:_SHOWN]])))

    figures = [
        Figure("reconstruction PSNR", last_psnr(FOLDER / "tokenizer"), "{:.1f} dB", at_least=20)
    ]
    for name, (alone, shown) in filled.items():
        hole = _hole(name)
        edge = _step(shown, hole), _step(alone, hole), _step(digits, hole)
        most = edge[1] if name in _AT_THE_START else math.inf
        distances = _distance(shown, digits, hole), _distance(alone, digits, hole)
        figures += [
            Figure(f"{name}, step at its edge", edge[0], "{:.1f}", below=most),
            Figure("  without surroundings", edge[1], "{:.1f}"),
            Figure("  in the digits themselves", edge[2], "{:.1f}"),
            Figure("  distance from the digit", distances[0], "{:.1f}", below=distances[1]),
            Figure("  without surroundings", distances[1], "{:.1f}"),
        ]
    return figures


def _fill(digits: np.ndarray, labels: np.ndarray) -> dict[str, list[np.ndarray]]:
    """Of each hole the digits filled without surroundings and with them: uint8 [N, 32, 32, 3]."""
    from llamagen_jax.control_maps import hide
    from llamagen_jax.generation import ImageGenerator
    from llamagen_jax.inpainting import Edit

    generator = ImageGenerator.open(str(FOLDER / "generator"), str(FOLDER / "tokenizer"))
    settings = generator.settings(seed=0, guidance_scale=1.0, top_k=0)
    filled = {}
    for name in HOLES:
        mask = _hole(name)
        edits = [Edit(digit, mask) for digit in digits]
        known = np.stack([edit.known(generator.tokenizer) for edit in edits])
        alone = {"condition": labels, "known": known}
        shown = alone | {"control": np.stack([hide(*edit) for edit in edits])}
        filled[name] = []
        for conditions in (alone, shown):
            batches = generator.sample(conditions, settings, batch_size=120)
            drawn = np.concatenate([samples.images for samples in batches])
            pasted = [edit.paste(image) for edit, image in zip(edits, drawn, strict=True)]
            filled[name].append(np.stack(pasted))
    return filled


def _hole(name: str) -> np.ndarray:
    """bool [32, 32], True in the hole."""
    top, bottom, left, right = HOLES[name]
    hole = np.zeros((32, 32), bool)
    hole[top:bottom, left:right] = True
    return hole


def _step(images: np.ndarray, hole: np.ndarray) -> float:
    """Mean difference, of 255, of the pixels on both sides of the hole's edge."""
    grey = images[..., 0].astype(np.float32)
    down = np.abs(np.diff(grey, axis=1))[:, np.diff(hole, axis=0)]
    across = np.abs(np.diff(grey, axis=2))[:, np.diff(hole, axis=1)]
    return float(np.concatenate([down, across], axis=1).mean())


def _distance(images: np.ndarray, digits: np.ndarray, hole: np.ndarray) -> float:
    """Mean difference, of 255, of the pixels in the hole."""
    return float(np.abs(images[:, hole].astype(np.float32) - digits[:, hole]).mean())


if __name__ == "__main__":
    main()
