"""Text to image on rendered scenes (`make demo-text`): what a user types, then how good it is.

The scenes are captioned as LAION-COCO is and pass the same commands: filtered, drawn into tar
shards, made codes and text features of, and learned in two stages. Prompts are of held-out scenes.
"""

import sys
from pathlib import Path

import numpy as np

from demos.report import Figure, evaluated, last_psnr, show

FOLDER = Path("demo_text")
PROMPTS, PROMPTS_SEED = 300, 3
_GUIDANCE = "--guidance-scale 1.4"
# What guidance gains is told from samples of all codes: without the improbable ones most prompts
# are met with or without it.
_SAMPLERS = {
    "best": f"{_GUIDANCE} --top-p 0.9",
    "guided": _GUIDANCE,
    "unguided": "--guidance-scale 1",
}
_PREPARE = "-m llamagen_jax.data.prepare"
_EVALUATE = "-m llamagen_jax.evaluate"


def main() -> None:
    """Runs every stage from nothing, then prints the figures and the files to look at."""
    look_at = (
        "samples.png",
        "kept_train/report.png",
        "tokenizer/samples",
        "stage1/samples",
        "stage2/samples",
    )
    sys.exit(show(FOLDER, stages(), measure, look_at))


def stages() -> dict[str, list[str]]:
    """Stage name -> commands, as typed after `python`."""
    train, held_out = f"{FOLDER}/shards_train", f"{FOLDER}/shards_val"
    best = f"{FOLDER}/best.npz"
    sample = f"sample.py --generator {FOLDER}/stage2 --top-k 0"
    return {
        "render captioned scenes, filter them": rendering(FOLDER),
        "train the tokenizer": [
            f"train.py --config=configs/vqgan.py:scenes --workdir={FOLDER}/tokenizer_base",
            f"train.py --config=configs/vqgan.py:scenes-finetune --workdir={FOLDER}/tokenizer",
        ],
        "draw the text encoder": [f"{_PREPARE} scene-encoder {FOLDER}/kept_train {FOLDER}/t5"],
        "extract codes and features of stage 1": extraction(FOLDER, "stage1", "--image-size 32"),
        "train stage 1": [
            f"train.py --config=configs/t2i.py:scenes-stage1 --workdir={FOLDER}/stage1"
        ],
        "extract codes and features of stage 2": extraction(FOLDER, "stage2", "--image-size 64"),
        "train stage 2": [
            f"train.py --config=configs/t2i.py:scenes-stage2 --workdir={FOLDER}/stage2"
        ],
        "sample": [
            f"{sample} {_SAMPLERS['best']} --count 4 --output {FOLDER}/samples.png"
            " --prompts 'a small blue square left of a large red triangle'"
            " 'a large red circle above a small yellow square'"
            " 'three purple squares' 'a large green circle at the bottom right'",
            *(
                f"{sample} {options} --prompt-file {FOLDER}/prompts.txt --batch-size 100"
                f" --output {FOLDER}/{name}.npz"
                for name, options in _SAMPLERS.items()
            ),
        ],
        "evaluate": [
            f"{_EVALUATE} network {train} {FOLDER}/network",
            *(
                f"{_EVALUATE} images {samples} {reference} --network {FOLDER}/network"
                f" --output {FOLDER}/{name}.json"
                for name, samples, reference in (
                    ("fid", best, train),
                    ("fid_real", held_out, train),
                    ("fid_held_out", best, held_out),
                )
            ),
        ],
    }


def rendering(folder: Path, scenes: str = "", prompts: str = "", images: str = "") -> list[str]:
    """Commands that write shards of scenes to train on, of held-out ones, and prompts of these.

    Args:
      scenes, prompts, images: more options of the commands that write them.
    """
    return [
        f"{_PREPARE} scenes {folder}/train.parquet --count 12000 --seed 1{scenes}",
        f"{_PREPARE} scenes {folder}/val.parquet --count 600 --seed 2 --held-out{scenes}",
        f"{_PREPARE} scene-prompts {folder}/prompts.txt"
        f" --count {PROMPTS} --seed {PROMPTS_SEED}{prompts}",
        *(
            command
            for split in ("train", "val")
            for command in (
                f"{_PREPARE} filter {folder}/{split}.parquet {folder}/kept_{split}",
                f"{_PREPARE} render {folder}/kept_{split} {folder}/shards_{split}{images}",
            )
        ),
    ]


def extraction(folder: Path, name: str, images: str) -> list[str]:
    """Commands that make codes, then codes with features, of the images that options tell."""
    return [
        command
        for split in ("train", "val")
        for command in (
            f"{_PREPARE} codes --source tar_shards --location {folder}/shards_{split}"
            f" --tokenizer {folder}/tokenizer {images} --batch-size 64"
            f" {folder}/{name}_{split}_codes",
            f"{_PREPARE} text {folder}/{name}_{split}_codes {folder}/{name}_{split}"
            f" --text-encoder {folder}/t5 --captions long short --length 20",
        )
    ]


def measure() -> list[Figure]:
    """Figures of the finished run, read off the pixels of the samples."""
    from llamagen_jax.scenes.check import score
    from llamagen_jax.scenes.world import held_out_prompts

    scenes = [prompt.scene for prompt in held_out_prompts(PROMPTS, PROMPTS_SEED)]
    best, guided, unguided = (
        score(np.load(FOLDER / f"{name}.npz")["arr_0"], scenes) for name in _SAMPLERS
    )
    gain = guided.relation - unguided.relation
    psnr = last_psnr(FOLDER / "tokenizer")
    return [
        Figure("reconstruction PSNR, held-out scenes", psnr, "{:.1f} dB"),
        Figure("colours and shapes right, held-out prompts", best.things, "{:.1%}", at_least=0.9),
        Figure("  and in the right relation", best.relation, "{:.1%}", at_least=0.8),
        Figure("  the same without top-p", guided.relation, "{:.1%}"),
        Figure("  nor guidance", unguided.relation, "{:.1%}"),
        Figure("gain of guidance", gain, "{:.1%}", at_least=0.001),
        evaluated("FID by a small network (no published FID)", FOLDER / "fid.json", "FID"),
        evaluated("  held-out real scenes, the floor", FOLDER / "fid_real.json", "FID"),
        evaluated("  samples against those instead", FOLDER / "fid_held_out.json", "FID"),
    ]


if __name__ == "__main__":
    main()
