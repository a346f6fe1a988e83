"""Runs of the command `benchmark` that belong together, each in a process of its own.

A run that fails, or that finds no time any more, loses its own rows alone.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

# Seconds for 8 images of 384 px with guidance on an A100: the original as it is, and in vLLM
# (README of github.com/FoundationVision/LlamaGen, "serving").
_PUBLISHED = {
    "GPT-B": (7.80, 2.39),
    "GPT-L": (13.72, 3.48),
    "GPT-XL": (19.76, 4.84),
    "GPT-XXL": (26.38, 6.36),
    "GPT-3B": (14.73, 6.26),
}


class Run(NamedTuple):
    """One call of the command; `published` is of `_PUBLISHED` where that is the same job."""

    options: tuple[str, ...]
    published: tuple[float, float] | None = None


def gpu() -> list[Run]:
    """What matters on one GPU, the most telling first."""

    size = ("--grid-size", "24", "--guidance-scale", "2")

    def decode(generator: str, images: int, published: Any = None, weights: str = "float") -> Run:
        options = ("--only", "decode", "--generator", generator, "--batch-size", str(images))
        return Run((*options, *size, "--weights", weights), published)

    def parallel(generator: str, images: int, draft: str) -> Run:
        options = ("--only", "parallel sampling", "--generator", generator, "--draft", draft)
        return Run((*options, "--batch-size", str(images), *size))

    def train(generator: str, batch_size: int) -> Run:
        options = ("--generator", generator, "--batch-size", str(batch_size))
        return Run(("--only", "train step, generator", *options))

    return [
        *(decode(generator, 8, published) for generator, published in _PUBLISHED.items()),
        train("GPT-XL", 32),
        *(decode(generator, 8, weights="int8") for generator in ("GPT-B", "GPT-XL", "GPT-3B")),
        parallel("GPT-XL", 8, draft="GPT-B"),
        Run(("--only", "images", "--image-batch-size", "16")),
        decode("GPT-B", 64),
        decode("GPT-XL", 64),
        train("GPT-B", 64),
        train("GPT-L", 64),
        Run(("--only", "train step, tokenizer", "--image-batch-size", "16")),
    ]


def run(runs: list[Run], tiny: bool, seconds: float) -> Iterator[dict[str, Any]]:
    """Yields a record of each run: its options, and its figures and limits or the error.

    Args:
      runs: such as those of `gpu`.
      tiny: as of `bench.Setting`, with a batch of one.
      seconds: for all of them; those that find no time are told as errors.
    """
    deadline = time.monotonic() + seconds
    for wanted in tqdm(runs, unit="run"):
        record: dict[str, Any] = {"options": " ".join(wanted.options)}
        if wanted.published:
            record["published_seconds"] = dict(
                zip(("eager", "vLLM"), wanted.published, strict=True)
            )
        small = ("--tiny", "--batch-size", "1", "--image-batch-size", "1", "--repeats", "1")
        left = deadline - time.monotonic()
        yield record | _call((*wanted.options, *(small if tiny else ())), left)


def _call(options: tuple[str, ...], seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "figures.json"
        command = [sys.executable, "-m", "llamagen_jax.benchmark", *options, "--output", output]
        try:
            # A bar of its own would write over ours.
            done = subprocess.run(command, capture_output=True, text=True, timeout=max(seconds, 0))
        except subprocess.TimeoutExpired:
            return {"error": "no time was left"}
        if done.returncode:
            return {"error": (done.stderr.strip() or "it failed").splitlines()[-1]}
        return json.loads(output.read_text())


def table(records: list[dict[str, Any]]) -> str:
    """A Markdown table of the records of `run`."""
    lines = [
        "| what | shapes | median | of the limit | original on an A100, eager and vLLM |",
        "|---|---|---|---|---|",
    ]
    for record in records:
        if "error" in record:
            lines.append(f"| `{record['options']}` | {record['error']} | | | |")
        published = record.get("published_seconds", {})
        before = ", ".join(f"{seconds} s" for seconds in published.values())
        for f in record.get("figures", []):
            share = f"{f['percent']:.0f} % of {f['limit']}" if f["limit"] else ""
            median = f"{1e3 * f['seconds']:.1f} ms"
            lines.append(f"| {f['name']} | {f['shapes']} | {median} | {share} | {before} |")
    return "\n".join(lines)
