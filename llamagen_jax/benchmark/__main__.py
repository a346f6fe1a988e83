"""Times the parts of LlamaGen on the device at hand, each beside what the machine allows.

Limits are measured in the same run: the rate of a large matrix product in the model's dtype, and
the bandwidth of memory. Each figure is the median of repeated calls after one that compiles.
"""

import argparse
import dataclasses
import datetime
import json
import os
from importlib.metadata import version

import jax
from absl import logging
from tqdm import tqdm

from llamagen_jax import commands, zoo
from llamagen_jax.benchmark import suites, versus_torch, versus_vllm
from llamagen_jax.benchmark.bench import Bench, Setting, Timing
from llamagen_jax.benchmark.parts import BENCHMARKS
from llamagen_jax.errors import InputError, nearest, one_line_errors
from llamagen_jax.files import staged
from llamagen_jax.models.llama import WEIGHTS

_SUITE_SECONDS = 9 * 60


def run(setting: Setting, only: str = "") -> tuple[dict[str, float], list[Timing]]:
    """The limits and the figures of the benchmarks whose name contains `only`."""
    bench, figures = Bench(setting), []
    with tqdm([b for b in BENCHMARKS if only in b]) as bar:
        for name in bar:
            bar.set_description(name)
            figures += BENCHMARKS[name](bench)
    return bench.limits, figures


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    arguments = _parser().parse_args(argv)
    # A batch that is still being read when its folder goes is no news.
    logging.set_verbosity(logging.ERROR)
    with one_line_errors():
        names = [arguments.generator, arguments.tokenizer]
        if arguments.draft and not arguments.trained:
            names.append(arguments.draft)
        for name in names:
            if name not in zoo.MODELS:
                raise InputError(f"there is no model '{name}'; {nearest(name, zoo.MODELS)}")
        compared = arguments.versus_torch or arguments.versus_vllm
        known = compared or any(arguments.only in name for name in BENCHMARKS)
        if not known:
            raise InputError(f"no benchmark is called '{arguments.only}': {', '.join(BENCHMARKS)}")
        jax.config.update("jax_enable_compilation_cache", False)
        values = vars(arguments)
        only, output, checkout, vllm, suite = (
            values.pop(key) for key in ("only", "output", "versus_torch", "versus_vllm", "suite")
        )
        setting = Setting(**values)
        if suite:
            records = list(suites.run(suites.gpu(), setting.tiny, _SUITE_SECONDS))
            print(suites.table(records))
            if output:
                _write(output, {"runs": records})
            return
        if checkout:
            pairs = versus_torch.compare(checkout, setting, only)
            print(versus_torch.table(pairs))
            if output:
                _write(output, _about(setting) | {"pairs": [pair._asdict() for pair in pairs]})
            return
        if vllm:
            drawn = versus_vllm.compare(setting)
            print(versus_vllm.table(drawn))
            if output:
                _write(output, _about(setting) | {"pairs": [pair._asdict() for pair in drawn]})
            return
        limits, figures = run(setting, only)
        print(_table(limits, figures))
        if output:
            found = {"limits": limits, "figures": [dataclasses.asdict(f) for f in figures]}
            _write(output, _about(setting) | found)


def _write(output: str, record: dict) -> None:
    with staged(output, overwrite=True) as partial:
        partial.write_text(json.dumps(record, indent=2) + "\n")


def _about(setting: Setting) -> dict:
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores",
        "versions": {name: version(name) for name in ("jax", "jaxlib", "flax", "llamagen_jax")},
        "setting": dataclasses.asdict(setting),
    }


def _table(limits: dict[str, float], timings: list[Timing]) -> str:
    lines = [
        f"matrix product {limits['matrix product'] / 1e9:.0f} GFLOP/s, "
        f"memory {limits['memory'] / 1e9:.1f} GB/s",
        "",
        "| what | shapes | median | rate | of the limit |",
        "|---|---|---|---|---|",
    ]
    for f in timings:
        share = f"{f.percent:.0f} % of {f.limit}" if f.limit else ""
        lines.append(
            f"| {f.name} | {f.shapes} | {f.seconds * 1e3:.1f} ms | "
            f"{f.rate:.3g} {f.unit}/s | {share} |"
        )
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = commands.Parser(prog="python -m llamagen_jax.benchmark", description=__doc__)
    on_cpu = jax.default_backend() == "cpu"

    def option(flag, default, help, **kind):
        parser.add_argument(flag, default=default, help=f"{help} ({default})", **kind)

    option("--generator", "GPT-B" if on_cpu else "GPT-XL", "name in the model zoo")
    option("--tokenizer", "VQ-16", "name in the model zoo")
    option(
        "--dtype",
        "float32" if on_cpu else "bfloat16",
        "compute dtype",
        choices=("float32", "bfloat16"),
    )
    option("--batch-size", 4 if on_cpu else 64, "sequences per call", type=commands.whole)
    option("--image-batch-size", 1 if on_cpu else 32, "images per call", type=commands.whole)
    option("--grid-size", 16, "side of the code grid that is decoded", type=commands.whole)
    option("--guidance-scale", 1.0, "of decoding", type=commands.number)
    option("--top-p", 1.0, "of parallel sampling", type=commands.number)
    option("--weights", "float", "of decoding", choices=WEIGHTS)
    parser.add_argument(
        "--trained",
        type=commands.path,
        metavar="PATH",
        help="a trained generator for parallel sampling (random weights)",
    )
    parser.add_argument(
        "--draft",
        help="for parallel sampling, the small generator of the speculative decoder: beside "
        "--trained a trained one, else a name in the model zoo (none)",
    )
    parser.add_argument(
        "--prompt-file",
        type=commands.path,
        metavar="FILE",
        help="prompts for a trained generator that draws from them, see sample.py",
    )
    parser.add_argument("--tiny", action="store_true", help="toy models, to prove that all runs")
    option(
        "--repeats",
        3 if on_cpu else 10,
        "timed calls, of which the median counts",
        type=commands.whole,
    )
    parser.add_argument(
        "--only", default="", help="part of a benchmark's name: " + ", ".join(BENCHMARKS)
    )
    parser.add_argument(
        "--suite",
        choices=("gpu",),
        help="instead, what matters on one GPU, in under nine minutes: every size at 384 px beside "
        "the original's published times, int8, the decoders, large batches, training, images; each "
        "in its own process",
    )
    parser.add_argument(
        "--versus-torch",
        type=commands.path,
        metavar="PATH",
        help="instead, the same jobs by the original in PyTorch, a checkout of "
        "github.com/FoundationVision/LlamaGen, and by us, in turn in float32",
    )
    parser.add_argument(
        "--versus-vllm",
        action="store_true",
        help="instead, images of the generator drawn by vLLM and by us, in turn",
    )
    parser.add_argument("--output", type=commands.path, help="JSON file to write")
    return parser


if __name__ == "__main__":
    main()
