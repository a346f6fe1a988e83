"""All of LlamaGen on handwritten digits (`make demo`): what a user types, then how good it is."""

import sys
from pathlib import Path

import numpy as np

from demos.report import Figure, evaluated, last_psnr, show

FOLDER = Path("demo")
SAMPLES_PER_CLASS = 50


def main() -> None:
    """Runs every stage from nothing, then prints the figures and the files to look at."""
    look_at = ("samples.png", "reconstructions.png", "tokenizer/samples", "generator/samples")
    sys.exit(show(FOLDER, stages(), measure, look_at))


def stages() -> dict[str, list[str]]:
    """Stage name -> commands, as typed after `python`."""
    prepare = "-m llamagen_jax.data.prepare codes --source digits --image-size 32 --batch-size 64"
    prepare += f" --tokenizer {FOLDER}/tokenizer"
    pack = "-m llamagen_jax.data.prepare pack --source digits"
    evaluate, network = "-m llamagen_jax.evaluate", f"--network {FOLDER}/network"
    real = f"{FOLDER}/images/train"
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
        "evaluate": [
            f"{pack} --location train {real}",
            f"{pack} --location test {FOLDER}/images/test",
            f"{evaluate} network {real} {FOLDER}/network",
            f"{evaluate} images {FOLDER}/samples.npz {real} {network} --output {FOLDER}/fid.json",
            f"{evaluate} images {FOLDER}/images/test {real} {network}"
            f" --output {FOLDER}/fid_real.json",
            f"{evaluate} reconstructions {FOLDER}/images/test --tokenizer {FOLDER}/tokenizer"
            f" --size 32 {network} --output {FOLDER}/rfid.json",
        ],
    }


def measure() -> list[Figure]:
    """Figures of the finished run; also draws real digits beside their reconstructions."""
    import llamagen_jax as lg
    from llamagen_jax.data.package_sources import DigitsSource
    from llamagen_jax.data.sources import ArrayRecordSource
    from llamagen_jax.images import from_uint8, grid, save_png, to_uint8

    sources = {split: DigitsSource(split) for split in ("train", "test")}
    real = {split: [s[i] for i in range(len(s))] for split, s in sources.items()}
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
        Figure("samples that copy a training image", float(np.mean(copies)), "{:.1%}", below=0.1),
        evaluated("FID by a small network (no published FID)", FOLDER / "fid.json", "FID"),
        evaluated("  held-out real digits, the floor", FOLDER / "fid_real.json", "FID"),
        evaluated("  rFID of held-out digits", FOLDER / "rfid.json", "rFID"),
    ]


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


if __name__ == "__main__":
    main()
