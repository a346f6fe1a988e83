"""All of LlamaGen on handwritten digits (`make demo`): what a user types, then how good it is."""

import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

FOLDER = Path("demo")
SAMPLES_PER_CLASS = 50


def main() -> None:
    """Runs every stage from nothing, then prints the figures and the files to look at."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    seconds = {}
    for name, commands in stages().items():
        print(f"\n== {name}", flush=True)
        started = time.perf_counter()
        for command in commands:
            print("$ python " + command, flush=True)
            status = subprocess.run([sys.executable, *command.split()], check=False).returncode
            if status:
                sys.exit(f"error: `python {command}` failed with status {status}")
        seconds[name] = time.perf_counter() - started
    started = time.perf_counter()
    figures = measure()
    seconds["measure"] = time.perf_counter() - started
    sys.exit(report(figures, seconds))


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


def measure() -> dict[str, float]:
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
    metrics = [json.loads(line) for line in (FOLDER / "tokenizer/metrics.jsonl").open()]
    psnr = [line["eval/psnr"] for line in metrics if "eval/psnr" in line][-1]
    return {
        "psnr": psnr,
        "usage": len(np.unique(codes)) / model.config.codebook_size,
        "copies": np.mean(copies),
        **class_accuracy(real, samples["arr_0"], samples["labels"]),
    }


def class_accuracy(real: dict, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracies of a classifier that has seen nothing but real training digits."""
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
    return {
        "accuracy": right.mean(),
        "worst class": min(right[labels == label].mean() for label in np.unique(labels)),
        "real accuracy": classifier.score(*test),
    }


def report(figures: dict[str, float], seconds: dict[str, float]) -> int:
    """Prints the tables; returns the exit status, 1 where a figure misses its target."""
    rows = [
        ("reconstruction PSNR, held-out digits", "psnr", "{:.1f} dB", ">= 20 dB", 20),
        ("codebook usage", "usage", "{:.0%}", ">= 60 %", 0.6),
        ("class accuracy of 500 samples", "accuracy", "{:.1%}", ">= 95 %", 0.95),
        ("  worst class", "worst class", "{:.0%}", ">= 80 %", 0.8),
        ("  same classifier on held-out real digits", "real accuracy", "{:.1%}", "", 0),
        ("samples that copy a training image", "copies", "{:.1%}", "< 10 %", -0.1),
    ]
    missed = 0
    print(f"\n{'':44}{'reached':>10}  target")
    for title, key, form, target, bound in rows:
        value = figures[key]
        good = value >= bound if bound >= 0 else value < -bound
        missed += not good
        print(f"{title:44}{form.format(value):>10}  {target}{'' if good else '  MISSED'}")
    print(f"\n{'seconds':44}")
    for title, value in (*seconds.items(), ("all", sum(seconds.values()))):
        print(f"  {title:42}{value:>10.0f}")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"{'peak memory of a stage':44}{peak:>6.1f} GiB")
    print("\nLook at:")
    for name in ("samples.png", "reconstructions.png", "tokenizer/samples", "generator/samples"):
        print(f"  {FOLDER / name}")
    print(f"  tensorboard --logdir {FOLDER}   (loss curves; pip install tensorboard)")
    return int(missed > 0)


if __name__ == "__main__":
    main()
