"""Many devices, many processes and many kills, as a user runs them; minutes each."""

import contextlib
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


def _joins():
    """Arguments by which two processes train one run."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    together = [f"--coordinator={address}", "--num-processes=2"]
    return [[*together, f"--process-id={i}"] for i in range(2)]


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

    fsdp = "--config.mesh.fsdp=2"
    _finish(*(_start(config, tmp_path / "two", *join, fsdp, devices=2) for join in _joins()))
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


@pytest.mark.parametrize("kills", [100])
def test_kills_lose_no_more_than_the_steps_since_the_checkpoint(tmp_path, codes, kills):
    """At random moments, of which some are before the first step; every fifth in a save."""
    steps = 80 * kills
    values = _values("generator", codes, steps=steps, checkpoint_every=20, log_every=20)
    config = tiny.write_config(tmp_path / "config.py", values)
    _finish(_start(config, tmp_path / "whole"))
    killed, moments = tmp_path / "killed", random.Random(0)
    folder, newest = killed / "checkpoints", 0
    for kill in range(kills):
        assert newest < steps, f"the run was at its end after {kill} kills"
        cut_off, process = _saves(folder), _start(config, killed)
        if kill % 5 == 0:
            while process.poll() is None and _saves(folder) <= cut_off:
                time.sleep(0.001)
        else:
            while kill % 5 > 1 and process.poll() is None and _newest(folder) <= newest:
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 0.5) if kill % 5 > 1 else moments.uniform(0, 5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert _newest(folder) >= newest
        newest = _newest(folder)
    _finish(_start(config, killed))
    for a, b in zip(_params(killed), _params(tmp_path / "whole"), strict=True):
        np.testing.assert_array_equal(a, b)
    assert _losses(killed) == _losses(tmp_path / "whole")
    assert not _saves(folder)  # what was cut off is gone


def _saves(folder):
    """Saves that are in progress or were cut off."""
    return {(path.name, path.stat().st_ino) for path in folder.glob("*orbax-checkpoint-tmp")}


def test_told_processes_stop_after_the_same_step(tmp_path, codes):
    """SIGTERM reaches one of two."""
    values = _values("generator", codes, steps=100_000, checkpoint_every=0, log_every=10)
    config = tiny.write_config(tmp_path / "config.py", values)
    processes = [_start(config, tmp_path / "run", *join) for join in _joins()]
    while not (tmp_path / "run" / "metrics.jsonl").is_file() or not _losses(tmp_path / "run"):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    lines = [process.communicate()[1].splitlines()[-1] for process in processes]
    assert [process.returncode for process in processes] == [143, 143]
    step = _newest(tmp_path / "run" / "checkpoints")
    told = f"stopped by SIGTERM: {tmp_path / 'run'} keeps step {step}; start the same command again"
    assert lines == [f"{told} to go on"] * 2


def _assert_no_space(process):
    error = process.communicate()[1]
    assert process.returncode == 1
    assert "make space and start the same command again" in error.splitlines()[-1]


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount the small disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_run_goes_on_once_there_is_space_again(tmp_path, codes, small_disk):
    """The disk fills after the first checkpoint; later it is full before the first step."""
    values = _values("generator", codes, steps=400, checkpoint_every=20)
    config = tiny.write_config(tmp_path / "config.py", values)
    _finish(_start(config, tmp_path / "whole"))
    run, filler = small_disk / "run", small_disk / "filler"
    process = _start(config, run)
    while not _newest(run / "checkpoints"):
        assert process.poll() is None
        time.sleep(0.01)
    with contextlib.suppress(OSError):
        filler.write_bytes(bytes(2**23))
    _assert_no_space(process)
    _assert_no_space(_start(config, run))
    assert 0 < _newest(run / "checkpoints") < 400
    filler.unlink()
    _finish(_start(config, run))
    for a, b in zip(_params(run), _params(tmp_path / "whole"), strict=True):
        np.testing.assert_array_equal(a, b)
    assert _losses(run) == _losses(tmp_path / "whole")


def _newest(folder):
    return max((int(path.name) for path in folder.glob("*") if path.name.isdigit()), default=0)
