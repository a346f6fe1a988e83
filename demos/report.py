"""What the demos share: stages of commands, figures with targets, and the report."""

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


class Figure(NamedTuple):
    """A line of the report and, where it has one, its target: at least one or below another."""

    title: str
    value: float
    form: str
    at_least: float = -math.inf
    below: float = math.inf


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


def report(
    folder: Path, figures: list[Figure], seconds: dict[str, float], look_at: tuple[str, ...]
) -> int:
    """Prints the tables; returns the exit status, 1 where a figure misses its target."""
    missed = 0
    print(f"\n{'':52}{'reached':>13}  target")
    for title, value, form, at_least, below in figures:
        good = at_least <= value < below
        missed += not good
        targets = [f">= {form.format(at_least)}"] * math.isfinite(at_least)
        targets += [f"< {form.format(below)}"] * math.isfinite(below)
        line = f"{title:52}{form.format(value):>13}  {' '.join(targets)}"
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


def last_psnr(workdir: Path) -> float:
    """Of a tokenizer's reconstructions of held-out images, in dB."""
    metrics = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    return [line["eval/psnr"] for line in metrics if "eval/psnr" in line][-1]


def evaluated(title: str, path: Path, name: str) -> Figure:
    """A figure of the command `evaluate`, with its standard error if it has one, from --output.

    Args:
      title: of the line.
      path: of the JSON file.
      name: of the figure there, such as "FID".
    """
    figures = {figure["name"]: figure for figure in json.loads(path.read_text())["figures"]}
    value, error = figures[name]["value"], figures[name]["error"]
    return Figure(title, value, "{:.2f}" if error is None else f"{{:.2f}} ± {error:.2f}")
