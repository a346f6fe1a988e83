"""Many devices, many processes and many kills, as a user runs them; minutes each."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tiny

from llamagen_jax import checkpoint
from llamagen_jax.training.config import from_mapping

pytestmark = pytest.mark.slow
MESHES = [(d, f, 8 // (d * f)) for d in (1, 2, 4, 8) for f in (1, 2, 4, 8) if 8 % (d * f) == 0]


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    return tiny.write_codes(tmp_path_factory.mktemp("data") / "codes")


def _values(task, codes, **changes):
    if task == "tokenizer":
        return tiny.tokenizer_config(**changes)
    return tiny.generator_config(codes, **changes)


def _start(config, workdir, *arguments, devices=1):
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command = [sys.executable, "train.py", f"--config={config}", f"--workdir={workdir}"]
    return subprocess.Popen(
        [*command, *map(str, arguments)], env=environment, stderr=subprocess.PIPE, text=True
    )


def _finish(*processes):
    for process in processes:
        error = process.communicate()[1]
        assert process.returncode == 0, error


def _losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    return [line["train/loss"] for line in lines if "train/loss" in line]


def _params(workdir):
    return jax.tree.leaves(checkpoint.load_params(workdir)[2])


@pytest.mark.parametrize("task", ["tokenizer", "generator"])
def test_losses_are_equal_on_every_factorisation_of_eight_devices(codes, task):
    config = from_mapping(_values(task, codes))
    one, *many = (tiny.losses(config, mesh) for mesh in tiny.meshes((1, 1, 1), *MESHES))
    assert len(many) == 10
    for shape, losses in zip(MESHES, many, strict=True):
        np.testing.assert_allclose(losses, one, rtol=1e-5, err_msg=str(shape))


@pytest.mark.parametrize("task", ["tokenizer", "generator"])
def test_two_processes_train_as_one(tmp_path, codes, task):
    """With two devices each; the run then goes on in one process with one device."""
    options = {"steps": 4, "log_every": 1, "eval_every": 2, "sample_every": 2}
    values = _values(task, codes, **options, optimizer__schedule="constant")
    config = tiny.write_config(tmp_path / "config.py", values)
    _finish(_start(config, tmp_path / "one", "--config.steps=6"))

    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    join = [f"--coordinator={address}", "--num-processes=2", "--config.mesh.fsdp=2"]
    _finish(
        *(_start(config, tmp_path / "two", *join, f"--process-id={i}", devices=2) for i in range(2))
    )
    assert len(_losses(tmp_path / "two")) == 4
    _finish(_start(config, tmp_path / "two", "--config.steps=6"))
    np.testing.assert_allclose(_losses(tmp_path / "two"), _losses(tmp_path / "one"), rtol=1e-5)
    if task == "tokenizer":
        assert (tmp_path / "two" / "samples" / "step_0000004.png").exists()


def test_checkpoint_of_eight_devices_goes_on_on_four_and_on_one(tmp_path, codes):
    """Mid-epoch: an epoch is five steps; equal losses say that the batches were equal."""
    values = _values("generator", codes, log_every=1, optimizer__schedule="constant")
    config = tiny.write_config(tmp_path / "config.py", values)
    _finish(_start(config, tmp_path / "whole", "--config.steps=9", devices=8))
    for steps, devices in ((3, 8), (6, 4), (9, 1)):
        mesh = f"--config.mesh.tensor={min(devices, 2)}"
        _finish(
            _start(config, tmp_path / "moved", f"--config.steps={steps}", mesh, devices=devices)
        )
    np.testing.assert_allclose(_losses(tmp_path / "moved"), _losses(tmp_path / "whole"), rtol=1e-4)


def test_ten_kills_lose_no_more_than_the_steps_since_the_checkpoint(tmp_path, codes):
    """A checkpoint every ten steps, so that many kills fall into a save."""
    values = _values("generator", codes, steps=1200, checkpoint_every=10, log_every=10)
    config = tiny.write_config(tmp_path / "config.py", values)
    _finish(_start(config, tmp_path / "whole"))
    killed, moments = tmp_path / "killed", random.Random(0)
    steps = [0]
    for _ in range(10):
        process = _start(config, killed)
        folder = killed / "checkpoints"
        while process.poll() is None and _newest(folder) <= steps[-1]:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert _newest(folder) >= steps[-1]
        steps.append(_newest(folder))
    assert steps[-2] < 1200
    _finish(_start(config, killed))
    for a, b in zip(_params(killed), _params(tmp_path / "whole"), strict=True):
        np.testing.assert_array_equal(a, b)
    assert _losses(killed) == _losses(tmp_path / "whole")


def _newest(folder):
    return max((int(path.name) for path in folder.glob("*") if path.name.isdigit()), default=0)
