"""`train.py` as a user runs it, in processes of its own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tiny

from llamagen_jax import checkpoint, train
from llamagen_jax.errors import InputError

ENVIRONMENT = os.environ | {"XLA_FLAGS": ""}  # one device


def _command(*arguments):
    return [sys.executable, "train.py", *map(str, arguments)]


def _run(*arguments):
    return subprocess.run(
        _command(*arguments), env=ENVIRONMENT, capture_output=True, text=True, check=False
    )


def test_killed_run_ends_with_the_same_bits(tmp_path):
    """kill -9 once a checkpoint is there, then the same command again."""
    codes = tiny.write_codes(tmp_path / "codes")
    values = tiny.generator_config(codes, steps=100, checkpoint_every=20, log_every=20)
    arguments = [f"--config={tiny.write_config(tmp_path / 'config.py', values)}"]
    assert _run(*arguments, f"--workdir={tmp_path / 'whole'}").returncode == 0

    workdir = tmp_path / "killed"
    process = subprocess.Popen(
        _command(*arguments, f"--workdir={workdir}"), env=ENVIRONMENT, stderr=subprocess.DEVNULL
    )
    while not any((workdir / "checkpoints").glob("[0-9]*0")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (workdir / "checkpoints" / "100").exists()

    resumed = _run(*arguments, f"--workdir={workdir}")
    assert resumed.returncode == 0, resumed.stderr
    whole, killed = (
        jax.tree.leaves(checkpoint.load_params(folder)[2])
        for folder in (tmp_path / "whole", workdir)
    )
    for a, b in zip(whole, killed, strict=True):
        np.testing.assert_array_equal(a, b)
    for folder in (tmp_path / "whole", workdir):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
        steps = [line["step"] for line in lines if "train/loss" in line]
        assert steps == list(range(20, 101, 20))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/digits.py:tokeniser"], "did you mean 'tokenizer'"),
        (["--config=configs/digits.py"], "has no variant ''"),
        (["--config=configs/missing.py"], "configs/missing.py"),
        (["--config=configs/digits.py:tokenizer", "--config.model.dimm=3"], "'dimm'"),
        (["--config=configs/digits.py:tokenizer", "--config.seed=x"], "--config.seed=x"),
        (["--config=configs/digits.py:tokenizer", "--config.model.z_channels=0"], "z_channels=0"),
        (
            ["--config=configs/digits.py:generator", "--config.tokenizer=nowhere"],
            "nowhere is neither a file",
        ),
        (["--config=c3i.py"], "did you mean 'c2i.py'? known: c2i.py,"),
        (["--config=digits.py:tokenizer", "--config.modl.dim=3"], "no such configuration key"),
        (["--config=digits.py:tokenizer", "--config.seed.x=3"], "no such configuration key"),
        (
            ["--config=digits.py:tokenizer", "--config.loss.adversarial_weight=1"],
            "needs a discriminator",
        ),
        (
            [
                "--config=digits.py:tokenizer",
                "--config.discriminator={'kind': 'gan', 'base_channels': 8, 'num_layers': 2,"
                " 'dtype': 'float32'}",
            ],
            "config.discriminator: kind='gan' must be one of patchgan, stylegan",
        ),
        ([], "--config"),
    ],
)
def test_bad_input_is_one_line(tmp_path, arguments, message):
    ran = _run(*arguments, f"--workdir={tmp_path / 'run'}")
    assert ran.returncode == 1
    assert message in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_mistake_in_a_config_file_is_told_with_its_line(tmp_path, monkeypatch):
    config = tmp_path / "config.py"
    config.write_text("def get_config():\n    return {}.imagesize\n")
    line = f"{config}:2: AttributeError: 'dict' object has no attribute 'imagesize'\n"
    ran = _run(f"--config={config}")
    assert ran.returncode == 1
    assert ran.stderr.endswith(line)
    assert ran.stderr.count("\n") == 1
    monkeypatch.setitem(ENVIRONMENT, "LLAMAGEN_TRACEBACK", "1")
    ran = _run(f"--config={config}")
    assert ran.returncode == 1
    assert "Traceback" in ran.stderr
    assert "    return {}.imagesize\n" in ran.stderr
    assert ran.stderr.endswith(line)


@pytest.mark.parametrize(
    ("variables", "alone"),
    [
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}, False),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}, False),
        ({"PMI_SIZE": "2", "PMI_RANK": "1"}, False),
        # Of a batch script, without srun.
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, True),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "PMI_SIZE": "1"}, True),
    ],
)
def test_processes_that_are_not_joined_are_refused(monkeypatch, variables, alone):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    refused = pytest.raises(InputError, match=r"give --distributed .* or --nodistributed")
    with contextlib.nullcontext() if alone else refused:
        train.check_alone()


def test_help_shows_how_to_use_it():
    ran = _run("--help")
    assert "--config=configs/digits.py:tokenizer --workdir=" in ran.stdout
