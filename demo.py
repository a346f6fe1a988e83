"""All of LlamaGen on handwritten digits (`make demo`): what a user types, then how good it is."""

import json
import math
import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

FOLDER = Path("demo")
SAMPLES_PER_CLASS = 50


class Figure(NamedTuple):
    """A line of the report and, where it has one, its target: at least one or below another."""

    title: str
    value: float
    form: str
    at_least: float = -math.inf
    below: float = math.inf


def main() -> None:
    """Runs every stage from nothing, then prints the figures and the files to look at."""
    look_at = ("samples.png", "reconstructions.png", "tokenizer/samples", "generator/samples")
    sys.exit(show(FOLDER, stages(), measure, look_at))


def show(
    folder: Path,
    stages: dict[str, list[str]],
    measure: Callable[[], list[Figure]],
    look_at: tuple[str, ...],
) -> int:
    """Runs the stages in the emptied folder, measures, and reports; returns the exit status."""
    seconds = run(folder, stages)
    started = time.perf_counter()
    figures = measure()
    seconds["measure"] = time.perf_counter() - started
    return report(folder, figures, seconds, look_at)


def run(folder: Path, stages: dict[str, list[str]]) -> dict[str, float]:
    """Empties the folder and runs the commands of every stage; returns the stages' seconds."""
    shutil.rmtree(folder, ignore_errors=True)
    # On a CPU each of two devices keeps a core busier than one device keeps both.
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    seconds = {}
    for name, commands in stages.items():
        print(f"\n== {name}", flush=True)
        started = time.perf_counter()
        for command in commands:
            print("$ python " + command, flush=True)
            process = subprocess.run(
                [sys.executable, *shlex.split(command)],
                env=os.environ | {"XLA_FLAGS": flags},
                check=False,
            )
            if process.returncode:
                sys.exit(f"error: `python {command}` failed with status {process.returncode}")
        seconds[name] = time.perf_counter() - started
    return seconds


def stages() -> dict[str, list[str]]:
    """Stage name -> commands, as typed after `python`."""
    prepare = "-m llamagen_jax.data.prepare codes --source digits --image-size 32 --batch-size 64"
    prepare += f" --tokenizer {FOLDER}/tokenizer"
    sample = f"sample.py --generator {FOLDER}/generator --guidance-scale 3 --temperature 0.9"
    return {
        "train the tokenizer": [
            f"train.py --config=configs/digits.py:tokenizer --workdir={FOLDER}/tokenizer"
        ],
        "extract codes": [
            f"{prepare} --location train {FOLDER}/codes/train",
            f"{prepare} --location test {FOLDER}/codes/test",
        ],
        "train the generator": [
            f"train.py --config=configs/digits.py:generator --workdir={FOLDER}/generator"
        ],
        "sample": [
            f"{sample} --count 10 --output {FOLDER}/samples.png",
            f"{sample} --count {SAMPLES_PER_CLASS} --batch-size 100 --output {FOLDER}/samples.npz",
        ],
    }


def measure() -> list[Figure]:
    """Figures of the finished run; also draws real digits beside their reconstructions."""
    import llamagen_jax as lg
    from llamagen_jax.data.sources import ArrayRecordSource, DigitsSource
    from llamagen_jax.images import from_uint8, grid, save_png, to_uint8

    real = {split: list(DigitsSource(split)) for split in ("train", "test")}
    model, params = lg.load(FOLDER / "tokenizer")
    shown = np.stack([r["image"] for r in real["test"][:16]])
    output = model.apply({"params": params}, from_uint8(shown))
    rows = np.stack([shown, to_uint8(output.reconstruction)])
    save_png(FOLDER / "reconstructions.png", grid(rows))

    codes = np.stack([r["codes"][0] for r in ArrayRecordSource(FOLDER / "codes" / "train")])
    known = {row.tobytes() for row in codes}
    samples = np.load(FOLDER / "samples.npz")
    copies = [row.astype(codes.dtype).tobytes() in known for row in samples["codes"]]
    psnr = last_psnr(FOLDER / "tokenizer")
    usage = len(np.unique(codes)) / model.config.codebook_size
    accuracy, worst, on_real = class_accuracy(real, samples["arr_0"], samples["labels"])
    return [
        Figure("reconstruction PSNR, held-out digits", psnr, "{:.1f} dB", at_least=20),
        Figure("codebook usage", usage, "{:.0%}", at_least=0.6),
        Figure("class accuracy of 500 samples", accuracy, "{:.1%}", at_least=0.95),
        Figure("  worst class", worst, "{:.0%}", at_least=0.8),
        Figure("  same classifier on held-out real digits", on_real, "{:.1%}"),
        Figure("samples that copy a training image", np.mean(copies), "{:.1%}", below=0.1),
    ]


def last_psnr(workdir: Path) -> float:
    """Of a tokenizer's reconstructions of held-out images, in dB."""
    metrics = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    return [line["eval/psnr"] for line in metrics if "eval/psnr" in line][-1]


def class_accuracy(
    real: dict, images: np.ndarray, labels: np.ndarray
) -> tuple[float, float, float]:
    """How often a classifier that has seen nothing but real training digits is right.

    Returns: its accuracies on all images, on those of the worst class, and on held-out digits.
    """
    from sklearn.svm import SVC

    def features(images):
        patches = np.asarray(images, np.float32)[..., 0].reshape(-1, 8, 4, 8, 4)
        return patches.mean(axis=(2, 4)).reshape(-1, 64) / 255

    train, test = (
        (features([r["image"] for r in real[split]]), [r["label"] for r in real[split]])
        for split in ("train", "test")
    )
    classifier = SVC().fit(*train)
    right = classifier.predict(features(images)) == labels
    worst = min(right[labels == label].mean() for label in np.unique(labels))
    return right.mean(), worst, classifier.score(*test)


def report(
    folder: Path, figures: list[Figure], seconds: dict[str, float], look_at: tuple[str, ...]
) -> int:
    """Prints the tables; returns the exit status, 1 where a figure misses its target."""
    missed = 0
    print(f"\n{'':52}{'reached':>10}  target")
    for title, value, form, at_least, below in figures:
        good = at_least <= value < below
        missed += not good
        targets = [f">= {form.format(at_least)}"] * math.isfinite(at_least)
        targets += [f"< {form.format(below)}"] * math.isfinite(below)
        line = f"{title:52}{form.format(value):>10}  {' '.join(targets)}"
        print(line + ("" if good else "  MISSED"))
    print(f"\n{'seconds':52}")
    for title, value in (*seconds.items(), ("all", sum(seconds.values()))):
        print(f"  {title:50}{value:>10.0f}")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"{'peak memory of a stage':52}{peak:>6.1f} GiB")
    print("\nLook at:")
    for name in look_at:
        print(f"  {folder / name}")
    print(f"  tensorboard --logdir {folder}   (loss curves; pip install tensorboard)")
    return int(missed > 0)


if __name__ == "__main__":
    main()
