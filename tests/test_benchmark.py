import dataclasses
import json

import pytest
import tiny
from absl import logging

from llamagen_jax import zoo
from llamagen_jax.benchmark import __main__ as benchmark
from llamagen_jax.benchmark import parts as benchmark_parts
from llamagen_jax.training import config_files
from llamagen_jax.training.config import from_mapping
from llamagen_jax.training.generator import forward_flops


@pytest.fixture(autouse=True)
def tiny_models(monkeypatch):
    monkeypatch.setitem(zoo.MODELS, "GPT-B", tiny.LLAMA_CONFIG)
    monkeypatch.setitem(zoo.MODELS, "GPT-XL", tiny.LLAMA_CONFIG)
    monkeypatch.setattr(benchmark_parts.flops, "measured_peak", lambda dtype: 1e11)
    monkeypatch.setattr(benchmark_parts, "measured_bandwidth", lambda: 1e10)
    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)


# Codes, codes, tokens and programs of a call at this batch size.
COUNTS = {"train step, generator": 8 * 16, "decode": 8 * 16, "prefill": 8 * 120, "compile": 1}


@pytest.mark.parametrize("only", COUNTS)
def test_figures_are_written_and_printed(tmp_path, capsys, only, monkeypatch):
    def half_a_second(call, repeats):
        call()
        return 0.5

    monkeypatch.setattr(benchmark_parts.flops, "median_seconds", half_a_second)
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
    setting = benchmark_parts.Setting("GPT-XL", "VQ-8", "bfloat16", 6, 3, 1)
    paper = from_mapping(config_files.load("c2i.py:B-256").to_dict())
    generator = benchmark_parts._generator_config(setting, "GPT-XL")
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
        (["--only", "sampling"], "no benchmark is called 'sampling': train step"),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    with pytest.raises(SystemExit, match=message):
        benchmark.main(arguments)
