import dataclasses
import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from absl import logging

from llamagen_jax import flops, zoo
from llamagen_jax.benchmark import __main__ as benchmark
from llamagen_jax.benchmark import bench, fid, serving, suites, versus_torch, versus_vllm
from llamagen_jax.benchmark import parts as benchmark_parts
from llamagen_jax.evaluate.features import Network
from llamagen_jax.training import config_files
from llamagen_jax.training.config import from_mapping
from llamagen_jax.training.generator import forward_flops
from llamagen_jax.weights import export


@pytest.fixture(autouse=True)
def tiny_models(monkeypatch):
    monkeypatch.setitem(zoo.MODELS, "GPT-B", tiny.LLAMA_CONFIG)
    monkeypatch.setitem(zoo.MODELS, "GPT-XL", tiny.LLAMA_CONFIG)
    monkeypatch.setattr(flops, "measured_peak", lambda dtype: 1e11)
    monkeypatch.setattr(bench, "measured_bandwidth", lambda: 1e10)
    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)


# Codes, codes, tokens and programs of a call at this batch size.
COUNTS = {"train step, generator": 8 * 16, "decode": 8 * 256, "prefill": 8 * 120, "compile": 1}


@pytest.mark.parametrize("only", COUNTS)
def test_figures_are_written_and_printed(tmp_path, capsys, only, monkeypatch):
    def half_a_second(call, repeats):
        call()
        return 0.5

    monkeypatch.setattr(flops, "median_seconds", half_a_second)
    output = tmp_path / "figures.json"
    arguments = ["--only", only, "--batch-size", "8", "--repeats", "1", "--output", str(output)]
    benchmark.main(arguments)
    record = json.loads(output.read_text())
    assert record["limits"] == {"matrix product": 1e11, "memory": 1e10}
    assert record["figures"]
    printed = capsys.readouterr().out
    for figure in record["figures"]:
        assert figure["rate"] == pytest.approx(COUNTS[only] / figure["seconds"])
        assert f"| {figure['name']} | {figure['shapes']} |" in printed
    if only == "train step, generator":
        needed = 8 * 3 * forward_flops(tiny.LLAMA_CONFIG)
        assert record["figures"][0]["percent"] == pytest.approx(100 * needed / 0.5 / 1e11)


def test_configs_are_the_papers_with_the_setting_in_place():
    setting = bench.Setting("GPT-XL", "VQ-8", "bfloat16", 6, 3, 1)
    paper = from_mapping(config_files.load("c2i.py:B-256").to_dict())
    generator = benchmark_parts.generator_config(setting, "GPT-XL")
    model = dataclasses.replace(tiny.LLAMA_CONFIG, dtype="bfloat16")
    assert generator == dataclasses.replace(paper, model=model, batch_size=6)
    tokenizer = benchmark_parts._tokenizer_config(setting)
    assert tokenizer.model == dataclasses.replace(zoo.MODELS["VQ-8"], dtype="bfloat16")
    assert tokenizer.batch_size == 3
    assert tokenizer.loss.perceptual_weight == tokenizer.loss.adversarial_weight == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--generator", "GPT-XLL"], "there is no model 'GPT-XLL'; did you mean 'GPT-XL'"),
        (["--draft", "GPT-BB"], "there is no model 'GPT-BB'; did you mean 'GPT-B'"),
        (["--only", "naming"], "no benchmark is called 'naming': train step"),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    with pytest.raises(SystemExit, match=message):
        benchmark.main(arguments)


_DECODERS = ["decode, plain", "decode, jacobi", "decode, speculative"]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ("--only decode", ["decode"]),
        ("--weights int8", ["decode"]),
        ("--only parallel sampling", _DECODERS),
        ("--only images", ["encode images", "decode images"]),
        ("--only train step, generator", ["train step, generator"]),
        pytest.param(
            "--only train step, tokenizer", ["train step, tokenizer"], marks=pytest.mark.slow
        ),
    ],
)
def test_every_kind_of_run_of_the_gpu_suite_runs_at_toy_sizes(
    tmp_path, monkeypatch, options, names
):
    """In this process, and in bfloat16, which it takes there."""
    first = next(run for run in suites.gpu() if options in " ".join(run.options))

    def call(options, seconds):
        output = tmp_path / "run.json"
        benchmark.main([*options, "--dtype", "bfloat16", "--output", str(output)])
        return json.loads(output.read_text())

    monkeypatch.setattr(suites, "_call", call)
    (record,) = suites.run([first], tiny=True, seconds=60)
    assert [figure["name"] for figure in record["figures"]] == names
    assert record["setting"]["tiny"]
    shapes = record["figures"][0]["shapes"]
    assert ("int8 weights" in shapes) == (options == "--weights int8")
    if options == "--only decode":
        assert record["published_seconds"] == {"eager": 7.80, "vLLM": 2.39}
        assert "guidance 2" in shapes
        assert "7.8 s, 2.39 s" in suites.table([record])


def test_trained_generators_are_timed_by_every_decoder(tmp_path, capsys):
    trained, draft = tmp_path / "trained", tmp_path / "draft"
    for folder, seed in ((trained, 0), (draft, 1)):
        export.write(folder, *tiny.llama(seed=seed))
    options = ["--only", "parallel", "--trained", str(trained), "--batch-size", "1"]
    options += ["--repeats", "1"]
    benchmark.main([*options, "--draft", str(draft), "--guidance-scale", "2"])
    printed = capsys.readouterr().out
    for name in _DECODERS:
        assert f"| {name} | trained, 1 samples of 16 codes in " in printed
    export.write(tmp_path / "text", *tiny.llama(tiny.TEXT_CONFIG))
    options[3] = str(tmp_path / "text")
    with pytest.raises(SystemExit, match="text draws from prompts: give --prompt-file"):
        benchmark.main(options)


def test_a_run_that_fails_loses_its_own_rows_alone(monkeypatch):
    runs = [suites.Run(("--only", "nothing")), suites.Run(("--only", "decode"))]
    records = list(suites.run(runs[:1], tiny=True, seconds=60))
    assert records[0]["error"].startswith("error: no benchmark is called 'nothing'")
    (late,) = suites.run(runs[1:], tiny=True, seconds=0)
    assert late["error"] == "no time was left"
    assert "| `--only nothing` | error: no benchmark" in suites.table(records)


@pytest.fixture
def small_fid(monkeypatch):
    """FID of 16 colours instead of Inception's features."""

    def colours(images):
        return {"pool": images.reshape(len(images), -1)[:, :16].astype(np.float32)}

    network = Network("torch-fidelity", "x", colours, {"pool": 16})
    monkeypatch.setattr(Network, "open", lambda path, protocol: network)
    moments = fid._random_moments
    monkeypatch.setattr(fid, "_random_moments", lambda seed, width: moments(seed, 16))


def test_fid_is_timed_beside_torch_fidelity(monkeypatch, small_fid):
    torch = pytest.importorskip("torch")
    asked = []

    def calculate_metrics(input1, input2, feature_extractor_weights_path, **options):
        asked.append([len(list(Path(folder).glob("*.png"))) for folder in (input1, input2)])
        assert torch.load(feature_extractor_weights_path)["fc.bias"].shape == (1008,)
        return {"frechet_inception_distance": 0.0}

    theirs = SimpleNamespace(calculate_metrics=calculate_metrics)
    metric = SimpleNamespace(fid_statistics_to_metric=lambda ours, theirs, verbose: {})
    monkeypatch.setitem(sys.modules, "torch_fidelity", theirs)
    monkeypatch.setitem(sys.modules, "torch_fidelity.metric_fid", metric)
    jobs = list(fid.jobs(3))
    names = ["FID", "FID's distance"]
    assert [j.name for j in jobs] == names + [f"{name}, torch-fidelity" for name in names]
    assert [(j.count, j.unit) for j in jobs] == 2 * [(6, "images"), (1, "distances")]
    assert asked == [[3, 3]]


def test_without_torch_fidelity_the_row_tells_so(monkeypatch, small_fid):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    first, second = fid.jobs(3)
    assert (first.name, second.name) == ("FID", "FID's distance")
    assert first.shapes.startswith("2 x 3 PNGs of 256 px; torch-fidelity cannot be imported (")


def test_the_comparison_with_the_original_needs_its_checkout(tmp_path):
    pytest.importorskip("torch")
    with pytest.raises(SystemExit, match=r"is no checkout of github.com/FoundationVision/LlamaGen"):
        benchmark.main(["--versus-torch", str(tmp_path)])
    pairs = [versus_torch.Pair("decode", 30.0, 10.0)]
    assert "| decode | 30.0 ms | 10.0 ms | 3.00 |" in versus_torch.table(pairs)


def test_vllm_is_timed_on_the_same_weights(monkeypatch, capsys):
    opened = []

    def open_engine(folder, batch_size):
        opened.append(sorted(path.name for path in folder.iterdir()))
        return "engine"

    def draw_codes(engine, labels, settings):
        assert engine == "engine"
        assert settings.guidance_scale == 2
        return [[0] * 4] * len(labels)

    monkeypatch.setattr(versus_vllm.engine, "open_engine", open_engine)
    monkeypatch.setattr(versus_vllm.engine, "draw_codes", draw_codes)
    options = ["--grid-size", "2", "--guidance-scale", "2", "--repeats", "1"]
    benchmark.main(["--versus-vllm", *options])
    assert opened == [["config.json", "model.safetensors"]]
    printed = capsys.readouterr().out
    assert all(f"| {images} |" in printed for images in (1, 8))


@pytest.mark.parametrize(
    ("latency", "share"), [(1.3, 1 / 1.3), (0.6, 1 / 0.6), (0.1, 2.0), (9.0, 0.25)]
)
def test_the_rate_of_equal_latency_is_found(latency, share):
    """Of a server whose latency grows with its rate, once it is within the rates that are tried, on
    a machine whose speed is another one each time."""
    means = itertools.cycle((2.0, 5.0, 1.0))
    ours = []

    def engine() -> serving.Arrivals:
        ours.append(serving.Arrivals(3.0, next(means), 9.0))
        return ours[-1]

    def batches(share: float) -> serving.Arrivals:
        return serving.Arrivals(3.0 * share, ours[-1].mean * latency * share, 9.0)

    beside, found = serving._highest(engine, batches)
    assert abs(found.rate / 3.0 - share) < 0.03
    assert (found.mean <= beside.mean) == (latency < 4)


@pytest.mark.slow
def test_engine_is_timed_beside_batches(capsys):
    arguments = ["--only", "serve", "--tiny", "--repeats", "1", "--grid-size", "4"]
    benchmark.main([*arguments, "--guidance-scale", "2"])
    printed = capsys.readouterr().out
    assert "of generate's rate" in printed
    assert printed.count("| serve, ") == 5
