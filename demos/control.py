"""Sizes and control (`make demo-control`): what a user types, then how good it is.

Scenes of three aspect ratios are learned by one generator, which is then taught to follow edges.
Prompts are of held-out scenes, and so are the drawings whose edges are given with them; where their
things lie exactly no caption tells.
"""

import sys
from pathlib import Path

import numpy as np

from demos.report import Figure, last_psnr, show
from demos.scenes import PROMPTS, PROMPTS_SEED, extraction, rendering

FOLDER = Path("demo_control")
SIZES = ("64x64", "96x64", "64x96")
_SHOWN = 12
_PREPARE = "-m llamagen_jax.data.prepare"


def main() -> None:
    """Runs every stage from nothing, then prints the figures and the files to look at."""
    look_at = ("sizes.png", "control.png", "base/samples", "control/samples")
    sys.exit(show(FOLDER, stages(), measure, look_at))


def stages() -> dict[str, list[str]]:
    """Stage name -> commands, as typed after `python`."""
    sizes = " ".join(SIZES)
    prompts = f"--prompt-file {FOLDER}/prompts.txt --batch-size 100"
    prompts += " --guidance-scale 1.4 --top-k 0 --top-p 0.9"
    by_control = f"sample.py --generator {FOLDER}/control {prompts}"
    return {
        "render captioned scenes, filter them": rendering(
            FOLDER, f" --sizes {sizes}", f" --drawings {FOLDER}/drawings --scatter", " --scatter"
        ),
        "train the tokenizer": [
            f"train.py --config=configs/vqgan.py:scenes-alone --workdir={FOLDER}/tokenizer"
        ],
        "draw the text encoder": [f"{_PREPARE} scene-encoder {FOLDER}/kept_train {FOLDER}/t5"],
        "extract codes and features, and edges": extraction(
            FOLDER, "sizes", f"--sizes {sizes} --control canny"
        ),
        "train the generator": [
            f"train.py --config=configs/t2i.py:scenes-aspects --workdir={FOLDER}/base"
        ],
        "train control": [
            f"train.py --config=configs/control.py:scenes --workdir={FOLDER}/control"
        ],
        "sample": [
            *(
                f"sample.py --generator {FOLDER}/base {prompts} --size {size}"
                f" --output {FOLDER}/{size}.npz"
                for size in SIZES
            ),
            f"{by_control} --output {FOLDER}/uncontrolled.npz",
            f"{by_control} --control {FOLDER}/drawings --control-kind canny"
            f" --output {FOLDER}/controlled.npz",
        ],
    }


def measure() -> list[Figure]:
    """Figures of the finished run, read off the pixels of the samples; also draws some of them."""
    from llamagen_jax.data.control_files import MAP, files_of, read_control
    from llamagen_jax.scenes.check import score
    from llamagen_jax.scenes.edges import edge_overlaps
    from llamagen_jax.scenes.world import held_out_prompts

    prompts = held_out_prompts(PROMPTS, PROMPTS_SEED)
    scenes = [prompt.scene for prompt in prompts]
    names = *SIZES, "uncontrolled", "controlled"
    images = {name: np.load(FOLDER / f"{name}.npz")["arr_0"] for name in names}
    right = {name: score(drawn, scenes).things for name, drawn in images.items()}
    square, *others = (right[size] for size in SIZES)
    lost = square - min(others), square - right["uncontrolled"]
    psnr = last_psnr(FOLDER / "tokenizer")

    files = files_of([str(FOLDER / "drawings")])
    drawings, controls = (read_control(files, kind, (64, 64)) for kind in (MAP, "canny"))
    followed, by_chance = (
        float(edge_overlaps(images[name], controls).mean())
        for name in ("controlled", "uncontrolled")
    )
    captions = [prompt.caption for prompt in prompts]
    _draw("control", (controls, images["controlled"], drawings), captions)
    _draw("sizes", tuple(images[size] for size in SIZES), captions)
    return [
        Figure("reconstruction PSNR, held-out scenes", psnr, "{:.1f} dB"),
        *(
            Figure(f"colours and shapes right, {size}", right[size], "{:.1%}", at_least=0.9)
            for size in SIZES
        ),
        Figure("  most that a size loses beside squares", lost[0], "{:.1%}", below=0.05),
        Figure("overlap of edges, with control", followed, "{:.2f}", at_least=0.75),
        Figure("  without control", by_chance, "{:.2f}", below=0.4),
        Figure("colours and shapes right, with control", right["controlled"], "{:.1%}", 0.9),
        Figure("  what is lost where none is given", lost[1], "{:.1%}", below=0.02),
    ]


def _draw(name: str, columns: tuple[np.ndarray, ...], captions: list[str]) -> None:
    """Writes images side by side, on white where one is lower, captions below."""
    from llamagen_jax.images import captioned_grid, save_png

    height = max(images.shape[1] for images in columns)
    padded = [
        np.pad(
            images[:_SHOWN],
            ((0, 0), (0, height - images.shape[1]), (0, 0), (0, 0)),
            constant_values=255,
        )
        for images in columns
    ]
    shown = np.concatenate(padded, axis=2)
    save_png(FOLDER / f"{name}.png", captioned_grid(shown, captions[:_SHOWN], columns=3))


if __name__ == "__main__":
    main()
